"""GET /docs: the API's documentation, which loads nothing from other hosts; and `/` without the playground."""

import base64
import hashlib
import re
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from app.api.assets import Assets

_ASSETS = "docs/assets"

first_page_router = APIRouter(tags=["pages"])
docs_router = APIRouter(include_in_schema=False)


@first_page_router.get("/", status_code=307, response_class=RedirectResponse, operation_id="first_page")
async def first_page() -> RedirectResponse:
    """Redirect to the documentation. The path is relative, because a proxy may serve it under any prefix."""
    return RedirectResponse("docs")


@docs_router.get("/openapi.json")
def openapi(request: Request) -> JSONResponse:
    """Return the OpenAPI document. Making it takes a tenth of a second, so FastAPI runs this in a thread.

    Under a prefix, such as Ray Serve's, the document names it, as FastAPI's own route does.
    """
    document = request.app.openapi()
    if prefix := request.scope["root_path"]:
        document = {**document, "servers": [{"url": prefix}]}
    return JSONResponse(document)


@docs_router.get("/docs")
async def docs() -> HTMLResponse:
    """Show the API's documentation."""
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
    """Allow files of the service and, by their hashes, the page's own scripts. Swagger UI needs inline styles."""
    scripts = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    )
    return (
        f"default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def add_docs_assets(app: FastAPI) -> None:
    """Serve Swagger UI's files from the package that contains them."""
    folder = Path(fastapi_offline.__file__).parent / "static"
    app.mount(f"/{_ASSETS}", Assets(folder), name="docs-assets")
