"""POST /txt2img and POST /img2img."""

from functools import partial

from fastapi import APIRouter, Request, Response

from app.api.answers import answer, picture_responses
from app.api.context import Context
from app.api.fields import checked
from app.api.forms import Form, Upload, fields_of, read_upload
from app.api.gate.generation_route import GenerationRoute
from app.api.json_body import read_json
from app.api.openapi import PICTURE_PROBLEMS, TEXT_PROBLEMS, form_body, json_body
from app.inference.request_validation import Img2ImgRequest, Txt2ImgRequest

router = APIRouter(route_class=GenerationRoute, tags=["generation"])


@router.post(
    "/txt2img",
    response_class=Response,
    responses=picture_responses(TEXT_PROBLEMS),
    operation_id="txt2img",
    openapi_extra=json_body(Txt2ImgRequest),
)
async def txt2img(request: Request, context: Context) -> Response:
    """Make pictures from a prompt."""
    wanted = checked(Txt2ImgRequest, await read_json(request, required="prompt"))
    return await answer(partial(context.generation.from_text, wanted), request, num_images=wanted.num_images)


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
async def img2img(form: Form, request: Request, context: Context) -> Response:
    """Make pictures from a prompt and a picture."""
    wanted = checked(Img2ImgForm, fields_of(form))
    make = partial(context.generation.from_picture, wanted, partial(read_upload, wanted.image))
    return await answer(make, request, num_images=wanted.num_images)
