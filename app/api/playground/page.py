"""GET /: the playground, a page that shows pictures while the user types. Its files are in `static/`."""

import hashlib
import html
import json
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from app.api.assets import Assets
from app.api.context import Context
from app.modes.fields import MAX_PROMPT_CHARACTERS
from app.pipelines.base import MAX_PROMPT_TOKENS

_STATIC = Path(__file__).parent / "static"
_REVALIDATE = "no-cache"
"""Browsers check the ETag at each load, so a new version of the service shows at once."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""Nothing inline and nothing from other hosts; pictures are `blob:` addresses."""

router = APIRouter(tags=["pages"])


@router.get(
    "/",
    response_class=HTMLResponse,
    responses={304: {"description": "The page has not changed."}},
    operation_id="playground",
)
def page(request: Request, context: Context) -> Response:
    """Show the playground: type, and the picture follows."""
    # A plain function, because FastAPI runs it in a thread and it reads a file. The page's addresses are relative,
    # because a proxy may serve it under any prefix.
    settings = context.settings
    facts = {
        "max_prompt_characters": MAX_PROMPT_CHARACTERS,
        "max_tokens": MAX_PROMPT_TOKENS,
        "max_pixels": settings.max_pixels,
        "max_upload_pixels": settings.max_upload_pixels,
        "max_body_bytes": settings.max_body_bytes,
        "with_keys": settings.api_keys_file is not None,
        "docs": settings.docs,
    }
    text = (_STATIC / "index.html").read_text(encoding="utf-8")
    text = text.replace("{facts}", html.escape(json.dumps(facts)))
    etag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    headers = {"Cache-Control": _REVALIDATE, "ETag": etag, "Content-Security-Policy": _POLICY}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return HTMLResponse(text, headers=headers)


def add_playground_assets(app: FastAPI) -> None:
    """Serve the page's style and scripts."""
    assets = Assets(_STATIC, headers={"Cache-Control": _REVALIDATE})
    app.mount("/playground", assets, name="playground-assets")
