"""Hugging Face's InferenceClient."""

import io
from pathlib import Path

from huggingface_hub import ImageToImageTargetSize, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from report import Report, encoded, main


def report(image: Image.Image) -> Report:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"pictures": [encoded(file.getvalue())]}


def text_to_image(url: str, picture: Path) -> Report:
    return report(InferenceClient(model=url).text_to_image("a fox"))


def text_to_image_with_all_parameters(url: str, picture: Path) -> Report:
    """Send each parameter of the method, with values that users of SDXL send."""
    image = InferenceClient(model=url).text_to_image(
        "a fox",
        negative_prompt="blurry",
        height=256,
        width=768,
        num_inference_steps=30,
        guidance_scale=7.5,
        scheduler="EulerDiscreteScheduler",
        seed=1,
    )
    return report(image)


def image_to_image(url: str, picture: Path) -> Report:
    return report(InferenceClient(model=url).image_to_image(picture))


def image_to_image_with_all_parameters(url: str, picture: Path) -> Report:
    image = InferenceClient(model=url).image_to_image(
        picture,
        prompt="a fox",
        negative_prompt="blurry",
        num_inference_steps=30,
        guidance_scale=7.5,
        target_size=ImageToImageTargetSize(width=256, height=384),
    )
    return report(image)


def refused(url: str, picture: Path) -> Report:
    try:
        InferenceClient(model=url).text_to_image("a fox", width=100000, height=64)
    except HfHubHTTPError as error:
        return {"error": str(error)}
    return {}


main(text_to_image, text_to_image_with_all_parameters, image_to_image, image_to_image_with_all_parameters, refused)
