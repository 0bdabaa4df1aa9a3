"""LlamaIndex' tool for OpenAI's pictures. It has no parameter for the address; the variable of OpenAI's SDK sets it."""

import os
from pathlib import Path

from llama_index.tools.openai.image_generation.base import OpenAIImageGenerationToolSpec
from report import Report, downloaded, encoded, main


def tool(url: str, folder: Path) -> OpenAIImageGenerationToolSpec:
    os.environ["OPENAI_BASE_URL"] = f"{url}/v1"
    return OpenAIImageGenerationToolSpec(api_key="none", cache_dir=str(folder))


def generate_as_url(url: str, picture: Path) -> Report:
    return {"pictures": [downloaded(tool(url, picture.parent).image_generation("a fox"))]}


def generate_file(url: str, picture: Path) -> Report:
    (path,) = tool(url, picture.parent).image_generation("a fox", size="1792x1024", quality="hd", download=True)
    return {"pictures": [encoded(Path(path).read_bytes())]}


main(generate_as_url, generate_file)
