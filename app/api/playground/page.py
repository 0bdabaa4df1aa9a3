"""GET /: the playground, a page that shows pictures while the user types. Its files are in `static/`."""

import hashlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from app.api.assets import Assets
from app.api.context import Context
from app.modes.fields import MAX_PROMPT_CHARACTERS
from app.pipelines.base import MAX_PROMPT_TOKENS
from app.settings import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE

_STATIC = Path(__file__).parent / "static"
_REVALIDATE = "no-cache"
"""Browsers check the ETag at each load, so a new version of the service shows at once."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""Nothing inline and nothing from other hosts; pictures are `blob:` addresses, and a camera needs no source."""

_PERMISSIONS = "camera=(self), display-capture=(self), microphone=(), geolocation=(), payment=(), usb=()"
"""The page may ask for a camera or a screen, and frames in it may not. It never asks for anything else."""

_HTML_LANG = {"en": "en", "zh": "zh-CN"}
"""The page's languages, and their names in HTML. The texts are in `static/en.json` and `static/zh.json`."""

_THEMES = ("light", "dark")
"""Themes that can be chosen; otherwise it is the system's."""

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
        "least_side": MIN_SIDE,
        "most_side": MAX_SIDE,
        "side_multiple": SIDE_MULTIPLE,
        "max_pixels": settings.max_pixels,
        "max_upload_pixels": settings.max_upload_pixels,
        "max_body_bytes": settings.max_body_bytes,
        "with_keys": settings.api_keys_file is not None,
        "docs": settings.docs,
    }
    language = _language_of(request)
    strings = json.loads((_STATIC / f"{language}.json").read_text(encoding="utf-8"))
    text = (_STATIC / "index.html").read_text(encoding="utf-8")
    theme = request.cookies.get("turbo-theme")
    text = text.replace("{lang}", _HTML_LANG[language]).replace("{theme}", theme if theme in _THEMES else "")
    text = _filled(text, strings)
    text = text.replace("{facts}", _attribute(facts)).replace("{strings}", _attribute(strings))
    etag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    headers = {
        "Cache-Control": _REVALIDATE,
        "ETag": etag,
        "Vary": "Accept-Language, Cookie",
        "Content-Security-Policy": _POLICY,
        "Permissions-Policy": _PERMISSIONS,
    }
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return HTMLResponse(text, headers=headers)


def _language_of(request: Request) -> str:
    """Return the language that was chosen on the page, else the browser's first."""
    chosen = request.cookies.get("turbo-language")
    if chosen in _HTML_LANG:
        return chosen
    return "zh" if re.match(r"\s*zh\b", request.headers.get("accept-language", ""), re.IGNORECASE) else "en"


def _filled(text: str, strings: Mapping[str, str]) -> str:
    """Return a page whose empty elements with `data-text`, and whose placeholders, have their texts.

    So the first paint has them, and need not wait for the scripts, which write them again.
    """
    texts = {key: html.escape(string) for key, string in strings.items()}
    text = re.sub(r'<[^>]* data-text="(\w+)"[^>]*>(?=</)', lambda tag: tag[0] + texts[tag[1]], text)
    return re.sub(r'data-placeholder="(\w+)"', lambda said: f'{said[0]} placeholder="{texts[said[1]]}"', text)


def _attribute(value: object) -> str:
    return html.escape(json.dumps(value, ensure_ascii=False))


def add_playground_assets(app: FastAPI) -> None:
    """Serve the page's style and scripts."""
    assets = Assets(_STATIC, headers={"Cache-Control": _REVALIDATE})
    app.mount("/playground", assets, name="playground-assets")
