"""POST /txt2img and POST /img2img."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.api.answers import JSON, answer_from_picture, answer_from_text, picture_responses
from app.api.context import Context
from app.api.forms import Upload, form_reader
from app.api.gate.admission import route_taking
from app.api.generation import read_upload
from app.api.openapi import FORM, PICTURE_PROBLEMS, TEXT_PROBLEMS, form_body
from app.inference.requests import Img2ImgRequest, Txt2ImgRequest

router = APIRouter(tags=["generation"])
_from_text = APIRouter(route_class=route_taking(JSON))
_from_picture = APIRouter(route_class=route_taking(FORM))


@_from_text.post(
    "/txt2img", response_class=Response, responses=picture_responses(TEXT_PROBLEMS), operation_id="txt2img"
)
async def txt2img(body: Txt2ImgRequest, request: Request, context: Context) -> Response:
    """Make pictures from a prompt."""
    return await answer_from_text(body, request, context)


class Img2ImgForm(Img2ImgRequest):
    """The multipart form of `POST /img2img`."""

    image: Upload


@_from_picture.post(
    "/img2img",
    response_class=Response,
    responses=picture_responses(PICTURE_PROBLEMS),
    operation_id="img2img",
    openapi_extra=form_body(Img2ImgForm),
)
async def img2img(
    form: Annotated[Img2ImgForm, Depends(form_reader(Img2ImgForm))], request: Request, context: Context
) -> Response:
    """Make pictures from a prompt and a picture."""
    return await answer_from_picture(form, lambda: read_upload(form.image), request, context)


router.include_router(_from_text)
router.include_router(_from_picture)
