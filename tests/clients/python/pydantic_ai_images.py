"""Pydantic AI's image generation, which calls OpenAI's Images API."""

import asyncio
from pathlib import Path

from pydantic_ai import BinaryImage
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.images.openai import OpenAIImageGenerationModel, OpenAIImageGenerationSettings
from pydantic_ai.providers.openai import OpenAIProvider
from report import Report, Service, encoded, main


def report(
    service: Service, settings: OpenAIImageGenerationSettings | None = None, images: tuple[BinaryImage, ...] = ()
) -> Report:
    provider = OpenAIProvider(base_url=f"{service.url}/v1", api_key=service.key)
    model = OpenAIImageGenerationModel("gpt-image-1", provider=provider)
    result = asyncio.run(model.generate("a fox", images=images or None, settings=settings))
    return {"pictures": [encoded(image.content.data) for image in result.images], "details": result.provider_details}


def generate(service: Service, picture: Path) -> Report:
    settings = OpenAIImageGenerationSettings(
        dimensions=(1536, 1024),
        openai_n=2,
        openai_quality="high",
        extra_body={"seed": 7, "num_inference_steps": 3},
    )
    return report(service, settings)


def generate_by_default(service: Service, picture: Path) -> Report:
    return report(service)


def edit(service: Service, picture: Path) -> Report:
    settings = OpenAIImageGenerationSettings(
        aspect_ratio="2:3",
        openai_input_fidelity="high",
        extra_body={"seed": 7, "num_inference_steps": 3, "strength": 0.75},
    )
    return report(service, settings, (BinaryImage(data=picture.read_bytes(), media_type="image/png"),))


def edit_by_default(service: Service, picture: Path) -> Report:
    return report(service, images=(BinaryImage(data=picture.read_bytes(), media_type="image/png"),))


def transparent(service: Service, picture: Path) -> Report:
    return report(service, OpenAIImageGenerationSettings(openai_background="transparent"))


main(
    generate,
    generate_by_default,
    edit,
    edit_by_default,
    transparent,
    refusal=ModelHTTPError,
    told=lambda error: {"error": str(error), "status": error.status_code},
)
