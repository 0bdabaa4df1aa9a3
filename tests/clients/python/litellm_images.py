"""LiteLLM's SDK."""

from pathlib import Path
from typing import Any

import litellm
from report import Report, Service, downloaded, main

litellm.suppress_debug_info = True
litellm.telemetry = False


def generation(service: Service, **options: Any) -> litellm.ImageResponse:
    return litellm.image_generation(prompt="a fox", api_base=f"{service.url}/v1", api_key=service.key, **options)


def edition(service: Service, picture: Path, **options: Any) -> Report:
    with picture.open("rb") as file:
        answer = litellm.image_edit(
            model="openai/gpt-image-1",
            image=file,
            prompt="a fox",
            api_base=f"{service.url}/v1",
            api_key=service.key,
            **options,
        )
    return {"pictures": [image.b64_json for image in answer.data]}


def generate(service: Service, picture: Path) -> Report:
    answer = generation(
        service,
        model="openai/gpt-image-1",
        n=2,
        size="1536x1024",
        quality="medium",
        num_inference_steps=3,
        seed=7,
    )
    return {"pictures": [image.b64_json for image in answer.data]}


def generate_as_urls(service: Service, picture: Path) -> Report:
    answer = generation(service, model="openai/dall-e-3", size="1024x1792", quality="hd", response_format="url", seed=7)
    return {"pictures": [downloaded(image.url) for image in answer.data]}


def generate_in_a_style(service: Service, picture: Path) -> Report:
    """Ask for base64 with a model that has URLs by default."""
    answer = generation(service, model="openai/dall-e-3", style="natural", response_format="b64_json", seed=7)
    return {"pictures": [image.b64_json for image in answer.data]}


def generate_with_response_format(service: Service, picture: Path) -> Report:
    generation(service, model="openai/gpt-image-1", response_format="url")
    return {}


def generate_with_style(service: Service, picture: Path) -> Report:
    generation(service, model="openai/gpt-image-1", style="natural")
    return {}


def edit(service: Service, picture: Path) -> Report:
    return edition(
        service, picture, size="512x512", input_fidelity="high", num_inference_steps=3, strength=0.75, seed=7
    )


def edit_by_default(service: Service, picture: Path) -> Report:
    return edition(service, picture)


def edit_with_mask(service: Service, picture: Path) -> Report:
    with picture.with_name("clear.png").open("rb") as mask:
        return edition(service, picture, mask=mask, num_inference_steps=3, strength=0.75, seed=7)


def edit_with_wrong_size(service: Service, picture: Path) -> Report:
    return edition(service, picture, size="100000x64")


def told(error: litellm.exceptions.APIError) -> Report:
    return {"error": str(error), "status": error.status_code, "kind": type(error).__name__}


main(
    generate,
    generate_as_urls,
    generate_in_a_style,
    generate_with_response_format,
    generate_with_style,
    edit,
    edit_by_default,
    edit_with_mask,
    edit_with_wrong_size,
    refusal=(litellm.BadRequestError, litellm.AuthenticationError),
    told=told,
)
