"""Pydantic AI's image generation, which calls OpenAI's Images API."""

import asyncio
from pathlib import Path

from pydantic_ai import BinaryImage
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.images import ImageGenerationResult
from pydantic_ai.images.openai import OpenAIImageGenerationModel, OpenAIImageGenerationSettings
from pydantic_ai.providers.openai import OpenAIProvider
from report import Report, encoded, main


def model(url: str) -> OpenAIImageGenerationModel:
    return OpenAIImageGenerationModel("gpt-image-1", provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))


def report(result: ImageGenerationResult) -> Report:
    return {"pictures": [encoded(image.content.data) for image in result.images], "details": result.provider_details}


def generate(url: str, picture: Path) -> Report:
    settings = OpenAIImageGenerationSettings(dimensions=(1536, 1024), openai_n=2, openai_quality="high")
    return report(asyncio.run(model(url).generate("a fox", settings=settings)))


def generate_by_default(url: str, picture: Path) -> Report:
    return report(asyncio.run(model(url).generate("a fox")))


def edit(url: str, picture: Path) -> Report:
    image = BinaryImage(data=picture.read_bytes(), media_type="image/png")
    settings = OpenAIImageGenerationSettings(aspect_ratio="2:3", openai_input_fidelity="high")
    return report(asyncio.run(model(url).generate("a fox", images=[image], settings=settings)))


def transparent(url: str, picture: Path) -> Report:
    settings = OpenAIImageGenerationSettings(openai_background="transparent")
    try:
        asyncio.run(model(url).generate("a fox", settings=settings))
    except ModelHTTPError as error:
        return {"error": str(error), "status": error.status_code}
    return {}


main(generate, generate_by_default, edit, transparent)
