"""GET /metrics, for Prometheus."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.api.context import Context

router = APIRouter(include_in_schema=False)


@router.get("/metrics")
async def metrics(request: Request, context: Context) -> Response:
    """Show the Prometheus metrics."""
    if context.settings.metrics == "key":
        context.access.identify(request)
    return Response(generate_latest(context.observability.metrics.registry), media_type=CONTENT_TYPE_LATEST)
