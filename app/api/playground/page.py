"""GET /: the playground, a page that shows pictures while one types. Its files are static and in `static/`."""

import hashlib
import html
import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from app.api.assets import Assets
from app.api.context import ApiContext, Context
from app.inference.requests import MAX_PROMPT_CHARACTERS
from app.pipelines.base import MAX_PROMPT_TOKENS

_STATIC = Path(__file__).parent / "static"
_FACTS = "{facts}"
_REVALIDATE = "no-cache"
"""Kept by browsers, and asked for again by its ETag: a new version of the service shows at once."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""Nothing inline and nothing from elsewhere; `blob:` is the pictures."""

router = APIRouter(tags=["pages"])


@router.get(
    "/",
    response_class=HTMLResponse,
    responses={304: {"description": "It has not changed."}},
    operation_id="playground",
)
def page(request: Request, context: Context) -> Response:
    """Show the playground: type, and the picture follows."""
    # A plain function, which FastAPI hands to a thread, as it reads a file. The page's addresses are relative, so that
    # a proxy may put the service anywhere.
    text = (_STATIC / "index.html").read_text(encoding="utf-8")
    text = text.replace(_FACTS, html.escape(json.dumps(_facts(context))))
    etag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    headers = {"Cache-Control": _REVALIDATE, "ETag": etag, "Content-Security-Policy": _POLICY}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return HTMLResponse(text, headers=headers)


def _facts(context: ApiContext) -> dict[str, Any]:
    """Return what the page has to know of the service before it asks for a picture."""
    settings = context.settings
    return {
        "max_prompt_characters": MAX_PROMPT_CHARACTERS,
        "max_tokens": MAX_PROMPT_TOKENS,
        "max_pixels": settings.max_pixels,
        "max_upload_pixels": settings.max_upload_pixels,
        "max_body_bytes": settings.max_body_bytes,
        "with_keys": settings.api_keys_file is not None,
        "docs": settings.docs,
    }


class _Assets(Assets):
    """Static files that browsers ask for again."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Answer with a file, or that it has not changed."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = _REVALIDATE
        return response


def add_playground_assets(app: FastAPI) -> None:
    """Serve the page's style and scripts."""
    app.mount("/playground", _Assets(directory=_STATIC), name="playground-assets")
