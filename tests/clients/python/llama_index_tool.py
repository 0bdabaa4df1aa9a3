"""LlamaIndex' tool for OpenAI's pictures. It has no parameter for the address; the variable of OpenAI's SDK sets it."""

import os
from pathlib import Path

import openai
from llama_index.tools.openai.image_generation.base import OpenAIImageGenerationToolSpec
from report import Report, Service, downloaded, encoded, main


def tool(service: Service, folder: Path) -> OpenAIImageGenerationToolSpec:
    os.environ["OPENAI_BASE_URL"] = f"{service.url}/v1"
    return OpenAIImageGenerationToolSpec(api_key=service.key, cache_dir=str(folder))


def generate_as_url(service: Service, picture: Path) -> Report:
    return {"pictures": [downloaded(tool(service, picture.parent).image_generation("a fox"))]}


def generate_file(service: Service, picture: Path) -> Report:
    (path,) = tool(service, picture.parent).image_generation("a fox", size="1792x1024", quality="hd", download=True)
    return {"pictures": [encoded(Path(path).read_bytes())]}


main(generate_as_url, generate_file, refusal=openai.APIStatusError)
