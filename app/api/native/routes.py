"""POST /txt2img and POST /img2img."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.api.answers import answer, picture_responses
from app.api.context import Context
from app.api.forms import Upload, form_reader, read_upload
from app.api.gate.generation_route import GenerationRoute
from app.api.openapi import PICTURE_PROBLEMS, TEXT_PROBLEMS, form_body
from app.inference.request_validation import Img2ImgRequest, Txt2ImgRequest

router = APIRouter(route_class=GenerationRoute, tags=["generation"])


@router.post("/txt2img", response_class=Response, responses=picture_responses(TEXT_PROBLEMS), operation_id="txt2img")
async def txt2img(body: Txt2ImgRequest, request: Request, context: Context) -> Response:
    """Make pictures from a prompt."""
    return await answer(partial(context.generation.from_text, body), request, num_images=body.num_images)


class Img2ImgForm(Img2ImgRequest):
    """The multipart form of `POST /img2img`."""

    image: Upload


@router.post(
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
    make = partial(context.generation.from_picture, form, partial(read_upload, form.image))
    return await answer(make, request, num_images=form.num_images)
