"""OpenAI's SDK for Python. It also calls LiteLLM's proxy, which has the same API and needs a key."""

import os
from pathlib import Path

import openai
from report import Report, downloaded, main


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=0)


def report(answer: openai.types.ImagesResponse) -> Report:
    return {
        "pictures": [image.b64_json for image in answer.data],
        "size": answer.size,
        "warnings": (answer.model_extra or {}).get("warnings"),
    }


def generate(url: str, picture: Path) -> Report:
    """Send each parameter that OpenAI documents for gpt-image-1."""
    raw = client(url).images.with_raw_response.generate(
        model="gpt-image-1",
        prompt="a fox",
        n=2,
        size="1536x1024",
        quality="high",
        background="auto",
        moderation="low",
        output_format="webp",
        output_compression=80,
        user="someone",
    )
    return {**report(raw.parse()), "ignored": raw.headers.get("x-ignored-parameters")}


def generate_ten(url: str, picture: Path) -> Report:
    return report(
        client(url).images.generate(model="dall-e-2", prompt="a fox", n=10, size="256x256", response_format="b64_json")
    )


def generate_as_urls(url: str, picture: Path) -> Report:
    answer = client(url).images.generate(
        model="dall-e-3", prompt="a fox", size="1792x1024", quality="hd", style="vivid", response_format="url"
    )
    return {**report(answer), "pictures": [downloaded(image.url) for image in answer.data]}


def generate_with_the_models_default_format(url: str, picture: Path) -> Report:
    """dall-e-2 and dall-e-3 answer with URLs where the request does not name a format."""
    answer = client(url).images.generate(model="dall-e-3", prompt="a fox", size="1024x1024")
    return {**report(answer), "pictures": [downloaded(image.url) for image in answer.data]}


def stream(url: str, picture: Path) -> Report:
    events = list(
        client(url).images.generate(model="gpt-image-1", prompt="a fox", size="512x512", stream=True, partial_images=2)
    )
    return {"events": [event.type for event in events], "pictures": [event.b64_json for event in events]}


def edit(url: str, picture: Path) -> Report:
    with picture.open("rb") as file:
        return report(
            client(url).images.edit(
                model="gpt-image-1",
                image=file,
                prompt="a fox",
                size="1024x1536",
                quality="low",
                input_fidelity="high",
                output_format="jpeg",
            )
        )


def edit_with_mask(url: str, picture: Path) -> Report:
    try:
        client(url).images.edit(model="gpt-image-1", image=picture, mask=picture, prompt="a fox")
    except openai.UnprocessableEntityError as error:
        return {"error": error.message, "param": error.param}
    return {}


def edit_two_pictures(url: str, picture: Path) -> Report:
    try:
        client(url).images.edit(model="gpt-image-1", image=[picture, picture], prompt="a fox")
    except openai.UnprocessableEntityError as error:
        return {"error": error.message, "param": error.param}
    return {}


def transparent(url: str, picture: Path) -> Report:
    try:
        client(url).images.generate(model="gpt-image-1", prompt="a fox", background="transparent")
    except openai.UnprocessableEntityError as error:
        return {"error": error.message, "param": error.param}
    return {}


main(
    generate,
    generate_ten,
    generate_as_urls,
    generate_with_the_models_default_format,
    stream,
    edit,
    edit_with_mask,
    edit_two_pictures,
    transparent,
)
