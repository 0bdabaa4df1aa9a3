"""Pages and documents: the API's documentation from assets of our own, the metrics, and the way to the first page."""

import base64
import hashlib
import re
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse

from app.api.assets import Assets

_ASSETS = "docs/assets"

first_page_router = APIRouter(tags=["pages"])
docs_router = APIRouter(include_in_schema=False)


@first_page_router.get("/", status_code=307, response_class=RedirectResponse, operation_id="first_page")
async def first_page() -> RedirectResponse:
    """Send people to the documentation; the path is relative, so that a proxy may put the service anywhere."""
    return RedirectResponse("docs")


@docs_router.get("/docs")
async def docs() -> HTMLResponse:
    """Show the API's documentation. Nothing comes from another host: it works where there is no internet."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="SDXL-Turbo server",
        swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{_ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{_ASSETS}/favicon.png",
    )
    page.headers["Content-Security-Policy"] = _policy(bytes(page.body).decode())
    return page


def _policy(page: str) -> str:
    """Allow what is served here and the page's own scripts, by their hashes. Swagger UI writes its styles inline."""
    scripts = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    )
    return (
        f"default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def add_docs_assets(app: FastAPI) -> None:
    """Serve Swagger UI's files out of the package that ships them."""
    folder = Path(fastapi_offline.__file__).parent / "static"
    app.mount(f"/{_ASSETS}", Assets(directory=folder), name="docs-assets")
