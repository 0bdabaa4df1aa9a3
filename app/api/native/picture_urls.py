"""GET /txt2img: a picture as a URL, for `<img>`, browsers' caches and CDNs."""

from functools import partial
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from app.api.answers import accepted_type, answer, picture_responses
from app.api.context import ApiContext, Context
from app.api.entity_tags import matches
from app.api.fields import checked
from app.api.forms import MAX_FIELDS, fields_of
from app.api.gate.head import IS_HEAD
from app.api.openapi import TAG_HEADERS, URL_PROBLEMS, query_parameters
from app.errors import InvalidRequestError
from app.modes.fields import MAX_SEED, WHOLE
from app.modes.txt2img import Txt2ImgRequest
from app.pipelines.base import Mode

router = APIRouter(tags=["generation"])

_A_DAY = "public, max-age=86400"


class Txt2ImgQuery(Txt2ImgRequest):
    """The query of `GET /txt2img`: the fields of the POST, and a seed, because a URL names one picture."""

    model_config = ConfigDict(strict=False)  # a query has only text

    seed: Annotated[int, Field(ge=0, le=MAX_SEED, description="Seed of the first picture.", examples=[42]), WHOLE]


@router.get(
    "/txt2img",
    response_class=Response,
    responses={
        **picture_responses(URL_PROBLEMS, tagged=True),
        304: {
            "description": "The client's copy is the picture: `If-None-Match` names its ETag.",
            "headers": TAG_HEADERS,
        },
    },
    operation_id="txt2img_by_url",
    openapi_extra=query_parameters(Txt2ImgQuery),
)
async def txt2img_by_url(request: Request, context: Context) -> Response:
    """Make a picture that a URL names. Caches can keep it; the same URL gives the same picture."""
    access, settings = context.access, context.settings
    access.check_page(request)
    client = request.state.observer.facts["client"] = access.identify(request)
    wanted = checked(Txt2ImgQuery, _read_query(request), max_steps=settings.max_steps)
    context.generation.check_pixels(wanted)
    media_type = accepted_type(request, num_images=wanted.num_images)
    tag = context.tags.of(Mode.TXT2IMG, wanted, media_type)
    headers = _headers(context, tag)
    if matches(", ".join(request.headers.getlist("if-none-match")), tag):
        return Response(status_code=304, headers=headers)
    if request.scope.get(IS_HEAD):
        head = Response(media_type=media_type, headers=headers)
        del head.headers["Content-Length"]  # it is not known before the picture is drawn
        return head
    context.engine.admission.check()
    access.count(client, by_url=True)
    make = partial(context.generation.from_text, wanted)
    response = await answer(make, request, num_images=wanted.num_images)
    response.headers.update(headers)
    return response


def _read_query(request: Request) -> dict[str, Any]:
    """Return the fields of a query.

    Raises:
        InvalidRequestError: It is not percent-encoded UTF-8, has too many fields, or one twice.
    """
    try:
        query = request.scope["query_string"].decode("ascii")
        items = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError as error:  # UnicodeError is one
        raise InvalidRequestError(
            f"Send the query percent-encoded in UTF-8, with at most {MAX_FIELDS} fields."
        ) from error
    return fields_of(items)


def _headers(context: ApiContext, tag: str) -> dict[str, str]:
    settings = context.settings
    default = _A_DAY if settings.api_keys_file is None else "no-store"
    headers = {"ETag": tag, "Cache-Control": settings.url_cache_control or default, "Vary": "Accept"}
    if settings.url_embedding:
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    return headers
