"""POST /txt2img, POST /img2img and POST /inpaint."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field

from app.api.answers import answer, picture_responses
from app.api.context import ApiContext, Context
from app.api.entity_tags import HashedUploads
from app.api.fields import checked
from app.api.forms import Form, Upload, fields_of, read_uploads
from app.api.gate.generation_route import GenerationRoute
from app.api.json_body import read_json
from app.api.openapi import PICTURE_PROBLEMS, TEXT_PROBLEMS, form_body, json_body
from app.modes.fields import Uploads
from app.modes.img2img import Img2ImgRequest
from app.modes.inpaint import InpaintRequest
from app.modes.txt2img import Txt2ImgRequest
from app.pipelines.base import Mode

router = APIRouter(route_class=GenerationRoute, tags=["generation"])


@router.post(
    "/txt2img",
    response_class=Response,
    responses=picture_responses(TEXT_PROBLEMS, tagged=True),
    operation_id="txt2img",
    openapi_extra=json_body(Txt2ImgRequest),
)
async def txt2img(request: Request, context: Context) -> Response:
    """Make pictures from a prompt."""
    wanted = checked(Txt2ImgRequest, await read_json(request, required="prompt"), max_steps=context.settings.max_steps)
    tag = None if wanted.seed is None else partial(context.tags.of, Mode.TXT2IMG, wanted)
    return await answer(partial(context.generation.from_text, wanted), request, num_images=wanted.num_images, tag=tag)


class Img2ImgForm(Img2ImgRequest):
    """The multipart form of `POST /img2img`."""

    image: Upload


@router.post(
    "/img2img",
    response_class=Response,
    responses=picture_responses(PICTURE_PROBLEMS, tagged=True),
    operation_id="img2img",
    openapi_extra=form_body(Img2ImgForm),
)
async def img2img(form: Form, request: Request, context: Context) -> Response:
    """Make pictures from a prompt and a picture."""
    wanted = checked(Img2ImgForm, fields_of(form), max_steps=context.settings.max_steps)
    return await _from_uploads(Mode.IMG2IMG, wanted, read_uploads(image=wanted.image), request, context)


class InpaintForm(InpaintRequest):
    """The multipart form of `POST /inpaint`."""

    image: Upload
    mask: Annotated[
        Upload | None,
        Field(
            description="Mask of the picture's aspect: white is drawn anew, black stays, grey blends. If omitted, the "
            "picture's transparent parts are drawn."
        ),
    ] = None


@router.post(
    "/inpaint",
    response_class=Response,
    responses=picture_responses(PICTURE_PROBLEMS, tagged=True),
    operation_id="inpaint",
    openapi_extra=form_body(InpaintForm),
)
async def inpaint(form: Form, request: Request, context: Context) -> Response:
    """Draw a part of a picture anew, or extend the picture. The rest keeps its pixels."""
    wanted = checked(InpaintForm, fields_of(form), max_steps=context.settings.max_steps)
    uploads = read_uploads(image=wanted.image, mask=wanted.mask)
    return await _from_uploads(Mode.INPAINT, wanted, uploads, request, context)


async def _from_uploads(
    mode: Mode, wanted: Img2ImgForm | InpaintForm, uploads: Uploads, request: Request, context: ApiContext
) -> Response:
    tag = None
    if wanted.seed is not None:
        hashed = HashedUploads(uploads)
        uploads, tag = hashed.reading, partial(context.tags.of, mode, wanted, uploads=hashed)
    make = partial(context.generation.from_uploads, wanted, uploads)
    return await answer(make, request, num_images=wanted.num_images, tag=tag)
