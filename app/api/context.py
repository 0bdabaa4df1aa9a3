"""The parts of the service that routes use: made once in `app.main`, kept in `app.state`, injected into handlers."""

import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from app.api.entity_tags import EntityTags
from app.api.gate.access import Access
from app.api.model_names import ModelNames
from app.inference.engine import Engine
from app.inference.generation import Generation
from app.inference.registry import PipelineRegistry
from app.observability.request_observer import Observability
from app.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """The parts of the service."""

    settings: Settings
    registry: PipelineRegistry
    engine: Engine
    generation: Generation
    observability: Observability
    access: Access
    tags: EntityTags
    started: int = field(default_factory=lambda: int(time.time()))
    """Unix time in seconds."""

    @property
    def models(self) -> ModelNames:
        """The names of the loaded model."""
        return ModelNames.of(self.registry.loaded.model, self.settings.model_aliases)


async def _get_context(request: Request) -> ApiContext:
    # A coroutine, because FastAPI runs a plain function in a thread.
    context: ApiContext = request.app.state.context
    return context


Context = Annotated[ApiContext, Depends(_get_context)]
