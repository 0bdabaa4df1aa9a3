"""GET /healthz/live and /healthz/ready, for orchestrators. Both read plain state and never wait for the device."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app import __version__
from app.api.context import ApiContext, Context
from app.api.errors import problem_response
from app.api.openapi import problems
from app.errors import NotReadyError
from app.inference.engine import Status
from app.pipelines.base import Mode

router = APIRouter(prefix="/healthz", tags=["health"])


class Live(BaseModel):
    """The process works."""

    status: Literal["live"] = "live"


class QueueState(BaseModel):
    """The queue now."""

    waiting: int
    limit: int
    running_s: Annotated[float, Field(description="Seconds since the running call began; 0 when idle.")]


class Readiness(BaseModel):
    """The model, the device and the queue, and whether the service accepts requests."""

    status: Status
    warm: bool
    model: str | None
    vae: Annotated[str | None, Field(description="The VAE that replaces the model's own, if any.")]
    loras: Annotated[list[str], Field(description="The LoRAs in the model's weights, as NAME:WEIGHT.")]
    modes: list[Mode]
    device: str | None
    dtype: str | None
    queue: QueueState
    version: str


@router.get(
    "/live",
    response_model=Live,
    responses=problems(NotReadyError),
    operation_id="live",
    response_description="The process works.",
)
async def live(request: Request, context: Context) -> Live | JSONResponse:
    """Tell whether the process works. Fails if the device is lost or a call hangs; then restart the process."""
    return Live() if context.engine.live else _unhealthy(request, context)


@router.get(
    "/ready",
    response_model=Readiness,
    responses=problems(NotReadyError),
    operation_id="ready",
    response_description="Send requests here.",
)
async def ready(request: Request, context: Context) -> Readiness | JSONResponse:
    """Tell whether to send requests here. Fails also while the service drains."""
    return _readiness(context) if context.engine.status == "ready" else _unhealthy(request, context)


def _unhealthy(request: Request, context: ApiContext) -> JSONResponse:
    health = _readiness(context)
    error = NotReadyError(f"The service is not ready: {health.status}.")
    return problem_response(error, request, health=health.model_dump(mode="json", exclude={"version"}))


def _readiness(context: ApiContext) -> Readiness:
    engine, warm = context.engine, context.registry.warm
    loaded = context.registry.loaded if warm else None
    return Readiness(
        status=engine.status,
        warm=warm,
        model=loaded and loaded.model,
        vae=loaded and loaded.vae,
        loras=[str(lora) for lora in loaded.loras] if loaded else [],
        modes=list(loaded.by_mode) if loaded else [],
        device=loaded and loaded.device_name,
        dtype=loaded and loaded.dtype,
        queue=QueueState(
            waiting=engine.admission.waiting,
            limit=engine.admission.max_queue,
            running_s=round(engine.registry.lock.running_s, 3),
        ),
        version=__version__,
    )
