"""Content negotiation: what a request brings, and what `Accept` lets the answer be."""

import mimeparse
from fastapi import Request

from app.errors import NotAcceptableError
from app.inference.image_codec import MediaType

JSON = "application/json"
PROBLEM = "application/problem+json"

_IMAGES = (MediaType.JPEG, MediaType.WEBP, MediaType.PNG)  # rising preference, as mimeparse wants it


def accepted(request: Request) -> str:
    """Return what the request says that it takes: all of its `Accept` headers."""
    return ", ".join(request.headers.getlist("accept"))


def choose_media_type(accept: str | None, *, num_images: int) -> str:
    """Choose what to answer with: a picture's media type, or JSON.

    A single picture is answered as a bare PNG unless `Accept` prefers something else. Several fit into JSON only.

    Raises:
        NotAcceptableError: `Accept` allows nothing that there is, or cannot be parsed.
    """
    offered = [JSON] if num_images > 1 else [JSON, *_IMAGES]
    try:
        chosen: str = mimeparse.best_match(offered, accept.lower()) if accept else offered[-1]
    except (mimeparse.MimeTypeParseException, ValueError):
        chosen = ""
    if not chosen:
        several = " Several pictures at once come as application/json only." if num_images > 1 else ""
        raise NotAcceptableError(f"Accept must allow one of: {', '.join(map(str, reversed(offered)))}.{several}")
    return chosen
