"""LiteLLM's SDK."""

from pathlib import Path

import litellm
from report import Report, downloaded, main

litellm.suppress_debug_info = True
litellm.telemetry = False


def generate(url: str, picture: Path) -> Report:
    answer = litellm.image_generation(
        model="openai/gpt-image-1",
        prompt="a fox",
        n=2,
        size="1536x1024",
        quality="medium",
        api_base=f"{url}/v1",
        api_key="none",
    )
    return {"pictures": [image.b64_json for image in answer.data]}


def generate_as_urls(url: str, picture: Path) -> Report:
    answer = litellm.image_generation(
        model="openai/dall-e-3",
        prompt="a fox",
        size="1024x1792",
        quality="hd",
        style="natural",
        response_format="url",
        api_base=f"{url}/v1",
        api_key="none",
    )
    return {"pictures": [downloaded(image.url) for image in answer.data]}


def edit(url: str, picture: Path) -> Report:
    with picture.open("rb") as file:
        answer = litellm.image_edit(
            model="openai/gpt-image-1",
            image=file,
            prompt="a fox",
            size="512x512",
            input_fidelity="high",
            api_base=f"{url}/v1",
            api_key="none",
        )
    return {"pictures": [image.b64_json for image in answer.data]}


def edit_with_mask(url: str, picture: Path) -> Report:
    try:
        with picture.open("rb") as file, picture.open("rb") as mask:
            litellm.image_edit(
                model="openai/gpt-image-1", image=file, mask=mask, prompt="a fox", api_base=f"{url}/v1", api_key="none"
            )
    except litellm.exceptions.BadRequestError as error:  # as LiteLLM reports 422
        return {"error": str(error)}
    return {}


main(generate, generate_as_urls, edit, edit_with_mask)
