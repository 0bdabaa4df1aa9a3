"""LangChain's DallEAPIWrapper. It sends no response format, and reads the URLs of the answer."""

from pathlib import Path

from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper
from report import Report, downloaded, main


def generate(url: str, picture: Path) -> Report:
    text = DallEAPIWrapper(base_url=f"{url}/v1", api_key="none").run("a fox")
    return {"pictures": [downloaded(line) for line in text.splitlines()]}


def generate_several(url: str, picture: Path) -> Report:
    wrapper = DallEAPIWrapper(
        model="dall-e-3", n=2, size="1792x1024", quality="hd", base_url=f"{url}/v1", api_key="none"
    )
    return {"pictures": [downloaded(line) for line in wrapper.run("a fox").splitlines()]}


main(generate, generate_several)
