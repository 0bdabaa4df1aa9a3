"""Hugging Face's InferenceClient."""

import io
from pathlib import Path

from huggingface_hub import ImageToImageTargetSize, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from report import Report, Service, encoded, main


def client(service: Service) -> InferenceClient:
    return InferenceClient(model=service.url, token=service.key)


def report(image: Image.Image) -> Report:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"pictures": [encoded(file.getvalue())]}


def text_to_image(service: Service, picture: Path) -> Report:
    return report(client(service).text_to_image("a fox", seed=7))


def text_to_image_with_all_parameters(service: Service, picture: Path) -> Report:
    """Send each parameter of the method, with values that users of SDXL send."""
    image = client(service).text_to_image(
        "a fox",
        negative_prompt="blurry",
        height=256,
        width=768,
        num_inference_steps=30,
        guidance_scale=7.5,
        scheduler="EulerDiscreteScheduler",
        seed=7,
    )
    return report(image)


def image_to_image(service: Service, picture: Path) -> Report:
    """Send the file alone, as the client does without parameters."""
    return report(client(service).image_to_image(picture))


def image_to_image_with_seed(service: Service, picture: Path) -> Report:
    return report(client(service).image_to_image(picture, prompt="a fox", seed=7))


def image_to_image_with_all_parameters(service: Service, picture: Path) -> Report:
    image = client(service).image_to_image(
        picture,
        prompt="a fox",
        negative_prompt="blurry",
        num_inference_steps=30,
        guidance_scale=7.5,
        target_size=ImageToImageTargetSize(width=256, height=384),
        strength=0.75,
        seed=7,
    )
    return report(image)


def image_to_image_with_mask(service: Service, picture: Path) -> Report:
    """Send the mask as a further parameter, which the client passes on."""
    mask = encoded(picture.with_name("white.png").read_bytes())
    return report(client(service).image_to_image(picture, prompt="a fox", mask_image=mask, padding=16, seed=7))


def refused(service: Service, picture: Path) -> Report:
    return report(client(service).text_to_image("a fox", width=100000, height=64))


main(
    text_to_image,
    text_to_image_with_all_parameters,
    image_to_image,
    image_to_image_with_seed,
    image_to_image_with_all_parameters,
    image_to_image_with_mask,
    refused,
    refusal=HfHubHTTPError,
)
