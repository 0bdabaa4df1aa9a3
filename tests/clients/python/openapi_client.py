"""The package that openapi-python-client generates from the service's OpenAPI document; PYTHONPATH has its folder.

The service answers with a picture's file unless the client asks for JSON, and the package reads JSON only.
"""

from pathlib import Path

from generated.api.generation import img2img as img2img_route
from generated.api.generation import txt2img as txt2img_route
from generated.client import Client
from generated.models import Envelope, Img2ImgBody, Problem, Txt2ImgBody
from generated.types import File
from report import Report, main


def client(url: str) -> Client:
    return Client(base_url=url, headers={"Accept": "application/json"}, raise_on_unexpected_status=True)


def report(answer: Envelope | Problem | None) -> Report:
    if isinstance(answer, Envelope):
        return {"pictures": [image.b64 for image in answer.images]}
    if isinstance(answer, Problem):
        return {"error": answer.detail, "status": answer.status}
    return {}


def txt2img(url: str, picture: Path) -> Report:
    body = Txt2ImgBody(prompt="a fox", width=256, height=384)
    return report(txt2img_route.sync(client=client(url), body=body))


def txt2img_by_default(url: str, picture: Path) -> Report:
    return report(txt2img_route.sync(client=client(url), body=Txt2ImgBody(prompt="a fox")))


def img2img(url: str, picture: Path) -> Report:
    with picture.open("rb") as file:
        image = File(payload=file, file_name=picture.name, mime_type="image/png")
        body = Img2ImgBody(prompt="a fox", image=image, width=256, height=384, strength=0.5)
        return report(img2img_route.sync(client=client(url), body=body))


def wrong_size(url: str, picture: Path) -> Report:
    return report(txt2img_route.sync(client=client(url), body=Txt2ImgBody(prompt="a fox", width=100000)))


main(txt2img, txt2img_by_default, img2img, wrong_size)
