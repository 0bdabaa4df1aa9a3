"""The package that openapi-python-client generates from the service's OpenAPI document; PYTHONPATH has its folder.

The service answers with a picture's file unless the client asks for JSON, and the package reads JSON only.
"""

from pathlib import Path
from typing import Any

from generated.api.generation import img2img as img2img_route
from generated.api.generation import inpaint as inpaint_route
from generated.api.generation import txt2img as txt2img_route
from generated.client import AuthenticatedClient
from generated.errors import UnexpectedStatus
from generated.models import Envelope, Img2ImgBody, InpaintBody, Problem, Txt2ImgBody
from generated.types import File
from report import Report, Service, main


def client(service: Service) -> AuthenticatedClient:
    headers = {"Accept": "application/json"}
    return AuthenticatedClient(
        base_url=service.url, token=service.key, headers=headers, raise_on_unexpected_status=True
    )


def report(answer: Envelope | Problem | None) -> Report:
    if isinstance(answer, Envelope):
        return {"pictures": [image.b64 for image in answer.images], "seeds": [image.seed for image in answer.images]}
    if isinstance(answer, Problem):
        return {"error": answer.detail, "status": answer.status}
    return {}


def made(service: Service, body: Txt2ImgBody) -> Report:
    return report(txt2img_route.sync(client=client(service), body=body))


def edited(service: Service, picture: Path, **fields: Any) -> Report:
    with picture.open("rb") as file:
        image = File(payload=file, file_name=picture.name, mime_type="image/png")
        body = Img2ImgBody(prompt="a fox", image=image, **fields)
        return report(img2img_route.sync(client=client(service), body=body))


def txt2img(service: Service, picture: Path) -> Report:
    return made(service, Txt2ImgBody(prompt="a fox", width=256, height=384, num_inference_steps=3, seed=7))


def txt2img_by_default(service: Service, picture: Path) -> Report:
    return made(service, Txt2ImgBody(prompt="a fox"))


def img2img(service: Service, picture: Path) -> Report:
    return edited(service, picture, width=256, height=384, strength=0.75, num_inference_steps=3, seed=7)


def img2img_by_default(service: Service, picture: Path) -> Report:
    return edited(service, picture)


def inpaint(service: Service, picture: Path) -> Report:
    with picture.open("rb") as file, picture.with_name("white.png").open("rb") as mask:
        body = InpaintBody(
            prompt="a fox",
            image=File(payload=file, file_name="picture.png", mime_type="image/png"),
            mask=File(payload=mask, file_name="mask.png", mime_type="image/png"),
            padding=16,
            feather=8,
            extend="8,0,16,0",
            num_inference_steps=3,
            seed=7,
        )
        return report(inpaint_route.sync(client=client(service), body=body))


def wrong_size(service: Service, picture: Path) -> Report:
    return made(service, Txt2ImgBody(prompt="a fox", width=100000))


main(txt2img, txt2img_by_default, img2img, img2img_by_default, inpaint, wrong_size, refusal=UnexpectedStatus)
