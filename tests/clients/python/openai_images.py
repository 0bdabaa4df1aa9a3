"""OpenAI's SDK for Python. It also calls LiteLLM's proxy, which has the same API."""

from pathlib import Path

import openai
from report import Report, Service, downloaded, main


def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0)


def report(answer: openai.types.ImagesResponse) -> Report:
    return {
        "pictures": [image.b64_json for image in answer.data],
        "seeds": [(image.model_extra or {}).get("seed") for image in answer.data],
        "size": answer.size,
        "warnings": (answer.model_extra or {}).get("warnings"),
    }


def generate(service: Service, picture: Path) -> Report:
    """Send each parameter that OpenAI documents for gpt-image-1, except the compression."""
    raw = client(service).images.with_raw_response.generate(
        model="gpt-image-1",
        prompt="a fox",
        n=2,
        size="1536x1024",
        quality="high",
        background="auto",
        moderation="low",
        output_format="webp",
        user="someone",
        extra_body={"seed": 7, "num_inference_steps": 3},
    )
    return {**report(raw.parse()), "ignored": raw.headers.get("x-ignored-parameters")}


def generate_compressed(service: Service, picture: Path) -> Report:
    """Ask for the same picture with two qualities."""
    images = client(service).images
    answers = [
        images.generate(prompt="a fox", output_format="jpeg", output_compression=quality, extra_body={"seed": 7})
        for quality in (90, 10)
    ]
    return {"pictures": [answer.data[0].b64_json for answer in answers]}


def generate_ten(service: Service, picture: Path) -> Report:
    return report(
        client(service).images.generate(
            model="dall-e-2", prompt="a fox", n=10, size="256x256", response_format="b64_json", extra_body={"seed": 7}
        )
    )


def generate_as_urls(service: Service, picture: Path) -> Report:
    answer = client(service).images.generate(
        model="dall-e-3",
        prompt="a fox",
        size="1792x1024",
        quality="hd",
        style="vivid",
        response_format="url",
        extra_body={"seed": 7},
    )
    return {**report(answer), "pictures": [downloaded(image.url) for image in answer.data]}


def generate_with_the_models_default_format(service: Service, picture: Path) -> Report:
    """dall-e-2 and dall-e-3 answer with URLs where the request does not name a format."""
    answer = client(service).images.generate(model="dall-e-3", prompt="a fox", size="1024x1024")
    return {**report(answer), "pictures": [downloaded(image.url) for image in answer.data]}


def stream(service: Service, picture: Path) -> Report:
    answer = client(service).images.generate(
        model="gpt-image-1",
        prompt="a fox",
        size="512x512",
        stream=True,
        partial_images=2,
        extra_body={"seed": 7, "num_inference_steps": 3},
    )
    events = list(answer)
    return {"events": [event.type for event in events], "pictures": [event.b64_json for event in events]}


def edit(service: Service, picture: Path) -> Report:
    with picture.open("rb") as file:
        return report(
            client(service).images.edit(
                model="gpt-image-1",
                image=file,
                prompt="a fox",
                n=2,
                size="1024x1536",
                quality="low",
                input_fidelity="high",
                output_format="jpeg",
                extra_body={"seed": 7, "num_inference_steps": 3, "strength": 0.75},
            )
        )


def edit_by_default(service: Service, picture: Path) -> Report:
    return report(client(service).images.edit(image=picture, prompt="a fox"))


def edit_with_mask(service: Service, picture: Path) -> Report:
    mask = picture.with_name("clear.png")
    return report(client(service).images.edit(model="gpt-image-1", image=picture, mask=mask, prompt="a fox"))


def edit_with_mask_and_parameters(service: Service, picture: Path) -> Report:
    with picture.open("rb") as file, picture.with_name("clear.png").open("rb") as mask:
        answer = client(service).images.edit(
            model="gpt-image-1",
            image=file,
            mask=mask,
            prompt="a fox",
            n=2,
            size="1024x1024",
            output_format="webp",
            extra_body={"seed": 7, "num_inference_steps": 3, "strength": 0.75},
        )
        return report(answer)


def edit_two_pictures(service: Service, picture: Path) -> Report:
    return report(client(service).images.edit(model="gpt-image-1", image=[picture, picture], prompt="a fox"))


def transparent(service: Service, picture: Path) -> Report:
    return report(client(service).images.generate(model="gpt-image-1", prompt="a fox", background="transparent"))


def told(error: openai.APIStatusError) -> Report:
    return {"error": error.message, "status": error.status_code, "code": error.code, "param": error.param}


main(
    generate,
    generate_compressed,
    generate_ten,
    generate_as_urls,
    generate_with_the_models_default_format,
    stream,
    edit,
    edit_by_default,
    edit_with_mask,
    edit_with_mask_and_parameters,
    edit_two_pictures,
    transparent,
    refusal=openai.APIStatusError,
    told=told,
)
