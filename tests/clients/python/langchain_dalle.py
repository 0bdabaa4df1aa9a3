"""LangChain's DallEAPIWrapper. It sends no response format, and reads the URLs of the answer."""

from pathlib import Path
from typing import Any

import openai
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper
from report import Report, Service, downloaded, main


def report(service: Service, **options: Any) -> Report:
    wrapper = DallEAPIWrapper(base_url=f"{service.url}/v1", api_key=service.key, **options)
    return {"pictures": [downloaded(line) for line in wrapper.run("a fox").splitlines()]}


def generate(service: Service, picture: Path) -> Report:
    return report(service)


def generate_several(service: Service, picture: Path) -> Report:
    return report(service, model="dall-e-3", n=2, size="1792x1024", quality="hd")


main(generate, generate_several, refusal=openai.APIStatusError)
