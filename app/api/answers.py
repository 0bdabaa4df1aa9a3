"""Answers with pictures, as `Accept` asks: a bare picture, or a JSON envelope with all pictures."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import mimeparse
from fastapi import Request, Response
from pydantic import BaseModel, Field

from app.api.errors import Problem
from app.api.fields import NOTHING_TOLD, Told
from app.api.generation import MakePictures, generation_headers, make_while_connected
from app.api.openapi import GENERATION_HEADERS, JSON, TAG_HEADERS, TOLD_HEADERS, Responses, problems
from app.api.picture_json import Encoded, PictureResponse, as_json
from app.errors import NotAcceptableError, TurboError
from app.images.encoding import MediaType
from app.inference.generation import Encoding, Generated, Timings, UsedParameters


class EncodedImage(BaseModel):
    """One picture in a JSON answer."""

    b64: Annotated[str, Field(description="The file, base64.", json_schema_extra={"contentEncoding": "base64"})]
    seed: int
    media_type: str


class Envelope(BaseModel):
    """A JSON answer with pictures."""

    images: list[EncodedImage]
    parameters: UsedParameters
    timings: Timings
    warnings: Annotated[
        list[str] | None, Field(description="Parameters that were ignored or changed, with the reason.")
    ] = None


def picture_responses(
    kinds: Sequence[type[TurboError]],
    *,
    told: bool = False,
    tagged: bool = False,
    problem: type[BaseModel] = Problem,
) -> Responses:
    """Describe a route's answers: pictures, or one of these kinds of errors, whose body is `problem`.

    `told`: the answer names parameters that were ignored or changed. `tagged`: it may have an entity tag.
    """
    pictures = {
        "model": Envelope,
        "description": "The picture, or with `Accept: application/json` all pictures in an envelope.",
        "content": {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in MediaType},
        "headers": {**GENERATION_HEADERS, **(TOLD_HEADERS if told else {}), **(TAG_HEADERS if tagged else {})},
    }
    return {200: pictures, **problems(*kinds, NotAcceptableError, model=problem)}


async def answer(
    make: MakePictures,
    request: Request,
    *,
    num_images: int,
    told: Told = NOTHING_TOLD,
    tag: Callable[[str], str] | None = None,
) -> Response:
    """Make pictures, and answer as `Accept` asks. JSON has PNGs. `told` is what became of other parameters.

    `tag`, if the answer has one, returns the entity tag of this media type; it is called when the pictures are made.

    Raises:
        TurboError: As `choose_media_type` and `make_while_connected`.
    """
    media_type = accepted_type(request, num_images=num_images)
    encoding = Encoding() if media_type == JSON else Encoding(media_type=MediaType(media_type))
    result = await make_while_connected(make, encoding, request)
    headers = {**generation_headers(result), **told.headers, "Vary": "Accept"}
    if tag is not None:
        headers["ETag"] = tag(media_type)
    if media_type != JSON:
        return Response(result.files[0], media_type=media_type, headers=headers)
    return PictureResponse(partial(_envelope, result, told), result.files, headers=headers)


def _envelope(result: Generated, told: Told, encoded: Encoded) -> str:
    images = [
        EncodedImage(b64=encoded(number), seed=seed, media_type=result.media_type)
        for number, seed in enumerate(result.seeds)
    ]
    envelope = Envelope(images=images, parameters=result.used, timings=result.timings, warnings=told.warnings or None)
    return as_json(envelope.model_dump(mode="json", exclude_none=True))


def accepted_type(request: Request, *, num_images: int) -> str:
    """Return the media type to answer a request with; see `choose_media_type`."""
    return choose_media_type(", ".join(request.headers.getlist("accept")), num_images=num_images)


def choose_media_type(accept: str | None, *, num_images: int) -> str:
    """Choose the answer's media type: a picture's, or JSON.

    A single picture is a bare PNG unless `Accept` prefers another type. Several pictures need JSON.

    Raises:
        NotAcceptableError: `Accept` allows none of the types, or cannot be parsed.
    """
    offered = [JSON] if num_images > 1 else [JSON, *reversed(MediaType)]  # mimeparse prefers the last
    try:
        chosen: str = mimeparse.best_match(offered, accept.lower()) if accept else offered[-1]
    except (mimeparse.MimeTypeParseException, ValueError):
        chosen = ""
    if not chosen:
        several = " Several pictures need application/json." if num_images > 1 else ""
        raise NotAcceptableError(f"Accept must allow one of: {', '.join(map(str, reversed(offered)))}.{several}")
    return chosen
