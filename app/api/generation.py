"""POST /txt2img and POST /img2img."""

import base64
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from app.api.context import Context
from app.api.generation_route import read_form, route_taking
from app.api.negotiation import JSON, accepted, choose_media_type
from app.api.openapi import FORM, IMG2IMG_BODY, IMG2IMG_RESPONSES, TXT2IMG_RESPONSES
from app.api.pictures import Encoding, Pictures, make_from_picture, make_from_text, read_upload
from app.api.schemas import EncodedImage, Envelope, Img2ImgForm, Txt2ImgRequest
from app.inference.image_codec import MediaType

router = APIRouter(tags=["generation"])
_from_text = APIRouter(route_class=route_taking(JSON))
_from_picture = APIRouter(route_class=route_taking(FORM))


@_from_text.post("/txt2img", response_class=Response, responses=TXT2IMG_RESPONSES, operation_id="txt2img")
async def txt2img(body: Txt2ImgRequest, request: Request, context: Context) -> Response:
    """Make pictures from a prompt."""
    media_type = choose_media_type(accepted(request), num_images=body.num_images)
    return answer(await make_from_text(body, encoding_of(media_type), request, context), media_type)


async def _read_img2img_form(request: Request) -> AsyncIterator[Img2ImgForm]:
    async with read_form(request, Img2ImgForm) as form:
        yield form


@_from_picture.post(
    "/img2img",
    response_class=Response,
    responses=IMG2IMG_RESPONSES,
    operation_id="img2img",
    openapi_extra=IMG2IMG_BODY,
)
async def img2img(
    form: Annotated[Img2ImgForm, Depends(_read_img2img_form)], request: Request, context: Context
) -> Response:
    """Make pictures from a prompt and a picture."""
    media_type = choose_media_type(accepted(request), num_images=form.num_images)
    pictures = await make_from_picture(form, lambda: read_upload(form.image), encoding_of(media_type), request, context)
    return answer(pictures, media_type)


def encoding_of(media_type: str) -> Encoding:
    """Return how pictures are written for an answer of this type: in JSON they are PNGs."""
    return Encoding() if media_type == JSON else Encoding(media_type=MediaType(media_type))


def answer(pictures: Pictures, media_type: str) -> Response:
    """Send the one picture bare, or all of them in JSON."""
    headers = {**pictures.headers, "Vary": "Accept"}
    if media_type != JSON:
        return Response(pictures.files[0], media_type=media_type, headers=headers)
    images = [
        EncodedImage(b64=base64.b64encode(file).decode("ascii"), seed=seed, media_type=pictures.media_type)
        for file, seed in zip(pictures.files, pictures.seeds, strict=True)
    ]
    envelope = Envelope(images=images, parameters=pictures.used, timings=pictures.timings)
    return JSONResponse(envelope.model_dump(mode="json", exclude_none=True), headers=headers)


router.include_router(_from_text)
router.include_router(_from_picture)
