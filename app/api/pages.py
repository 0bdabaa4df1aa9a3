"""Pages and documents: the API's documentation from assets of our own, the metrics, and the way to the first page."""

from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.api.context import Context

_ASSETS = "docs/assets"

router = APIRouter(include_in_schema=False)


@router.get("/")
async def first_page() -> RedirectResponse:
    """Send people to the documentation; the path is relative, so that a proxy may put the service anywhere."""
    return RedirectResponse("docs")


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Show the API's documentation. Nothing comes from another host: it works where there is no internet."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="SDXL-Turbo server",
        swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{_ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{_ASSETS}/favicon.png",
    )


@router.get("/metrics")
async def metrics(context: Context) -> Response:
    """Show the Prometheus metrics."""
    return Response(generate_latest(context.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def add_docs_assets(app: FastAPI) -> None:
    """Serve Swagger UI's files out of the package that ships them."""
    folder = Path(fastapi_offline.__file__).parent / "static"
    app.mount(f"/{_ASSETS}", StaticFiles(directory=folder), name="docs-assets")
