"""The composition root: settings in, FastAPI app out. Nothing is loaded before the lifespan starts."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI

from app import __version__
from app.api.context import ApiContext
from app.api.entity_tags import EntityTags
from app.api.errors import add_error_handlers
from app.api.gate.access import Access
from app.api.gate.api_keys import ApiKeys
from app.api.gate.body_limits import BodyMiddleware
from app.api.gate.cors import METHODS, CorsMiddleware
from app.api.gate.edge import EdgeMiddleware
from app.api.gate.head import HeadMiddleware
from app.api.hugging_face import routes as hugging_face
from app.api.native import picture_urls
from app.api.native import routes as native
from app.api.openai import routes as openai
from app.api.openapi import GENERATION_HEADERS, TOLD_HEADERS, add_openapi
from app.api.operations import documentation as pages
from app.api.operations import health, metrics
from app.api.playground import page as playground
from app.api.sdapi import lists as sdapi_lists
from app.api.sdapi import routes as sdapi
from app.errors import DeviceLostError, DeviceUnavailableError, TurboError, first_line, program, root_cause
from app.inference.admission import Admission
from app.inference.batching_lock import BatchingLock
from app.inference.device_watch import DeviceWatch
from app.inference.engine import Engine
from app.inference.generation import Generation
from app.inference.registry import PipelineRegistry
from app.inference.start_progress import StartProgress
from app.observability.metrics import Metrics
from app.observability.request_observer import Observability
from app.observability.traces import Tracing
from app.pipelines.base import LoadedPipelines, PipelineLoader
from app.pipelines.fake import load_fake
from app.pipelines.host_memory import share_heap
from app.pipelines.watermark import load_watermark
from app.settings import Settings, parse_sizes
from app.weights.digests import Digests
from app.weights.layout import VAE, files_to_read, model_layout
from app.weights.lora import LoraFile, locate_loras
from app.weights.reading import ReadAhead
from app.weights.source import FakeSource, parse_source, parse_vae
from app.weights.store import locate

_log = logging.getLogger(__name__)

_DESCRIPTION = """Text to image, image to image and inpainting with SDXL-Turbo: few steps, no guidance, 512x512 at best.

The model is for research use unless you hold a licence for more. It does not draw true pictures of people or events.
"""

_CODEC_THREADS = 4
"""Pictures decoded or encoded at once; each needs up to 12 bytes per pixel of TURBO_MAX_UPLOAD_PIXELS: 200 MB."""


def create_app(
    settings: Settings | None = None,
    *,
    load_pipelines: PipelineLoader | None = None,
    on_device_lost: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Put the service together, by default with the environment's settings and the model that they name.

    `on_device_lost` is called once, on the event loop, after the device failed. The callback should end the process, by
    `os._exit` because a normal exit waits for a call that hangs. By default only the health checks fail.
    """
    settings = settings or Settings()

    def end_service(error: DeviceLostError) -> None:
        _log.critical("the device is lost: %s %s", error, error.remedy, exc_info=error)
        on_device_lost()

    registry = make_registry(settings, load=load_pipelines)
    admission = Admission(registry, max_queue=settings.max_queue, deadline_s=settings.deadline_s)
    engine = Engine(registry, admission, on_device_lost=end_service)
    codec_threads = ThreadPoolExecutor(_CODEC_THREADS, thread_name_prefix="codec")
    tracing = Tracing()
    context = ApiContext(
        settings=settings,
        registry=registry,
        engine=engine,
        generation=Generation(engine, settings, codec_threads=codec_threads),
        observability=Observability(metrics=Metrics(engine), tracing=tracing, log_prompts=settings.log_prompts),
        access=Access(settings),
        tags=EntityTags(registry, settings),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(codec_threads.shutdown, wait=False, cancel_futures=True)
            watch = DeviceWatch(engine, idle_check_s=settings.idle_check_s)
            stack.callback(asyncio.create_task(watch.run()).cancel)
            try:
                await stack.enter_async_context(tracing)
                if settings.api_keys_file is not None:
                    context.access.keys = ApiKeys(settings.api_keys_file)
                    stack.callback(asyncio.create_task(context.access.keys.keep_fresh()).cancel)
                await stack.enter_async_context(registry)
                engine.admission.check_deadline()
            except DeviceLostError as error:
                engine.lose_device(error)
                raise
            except TurboError as error:
                _log.critical("cannot start: %s", error)
                raise
            except Exception:
                _log.critical("cannot start", exc_info=True)
                raise
            yield

    app = FastAPI(
        title="SDXL-Turbo server",
        version=__version__,
        description=_DESCRIPTION,
        openapi_url=None,  # a route of app.api.operations.documentation has it
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # app.observability.traces says why
    )
    app.state.context = context
    _add_routes(app, settings)
    add_error_handlers(app)
    add_openapi(app, with_keys=settings.api_keys_file is not None, max_steps=settings.max_steps)
    _add_middleware(app, context)
    return app


def _add_routes(app: FastAPI, settings: Settings) -> None:
    for router in (native.router, picture_urls.router, openai.router, hugging_face.router, health.router):
        app.include_router(router)
    if settings.sdapi:
        for router in (sdapi.pictures, sdapi.about, sdapi_lists.router):
            app.include_router(router)
    if settings.mcp:
        _add_mcp(app, settings)
    if settings.metrics != "off":
        app.include_router(metrics.router)
    if settings.playground:
        app.include_router(playground.router)
        playground.add_playground_assets(app)
    elif settings.docs:
        app.include_router(pages.first_page_router)
    if settings.docs:
        app.include_router(pages.docs_router)
        pages.add_docs_assets(app)


def _add_mcp(app: FastAPI, settings: Settings) -> None:
    """Serve /mcp if the extra is installed; say why not if somebody asked for it, or if another version is."""
    try:
        from app.api.mcp.endpoint import add_mcp  # noqa: PLC0415 - an extra, whose import takes half a second
    except ImportError as error:
        if "mcp" in settings.model_fields_set or find_spec("mcp") is not None:
            _log.warning("/mcp is not served: %s. Install 'sdxl-turbo-server[mcp]'.", first_line(error))
        return
    add_mcp(app, app.state.context)


def _add_middleware(app: FastAPI, context: ApiContext) -> None:
    """Add the innermost layer first."""
    origins = context.access.origins
    app.add_middleware(BodyMiddleware, settings=context.settings)
    if origins:
        app.add_middleware(
            CorsMiddleware,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=["*"],  # OpenAI's SDK sends a dozen of its own
            expose_headers=[
                *("Retry-After", "X-Should-Retry", "traceparent", "ETag"),
                *GENERATION_HEADERS,
                *TOLD_HEADERS,
            ],
        )
    app.add_middleware(HeadMiddleware)
    app.add_middleware(EdgeMiddleware)


def make_registry(settings: Settings, *, load: PipelineLoader | None = None, warm_up: bool = True) -> PipelineRegistry:
    """Return a registry with a device lock of its own. By default it loads the model that the settings name."""
    share_heap()
    progress = StartProgress()
    return PipelineRegistry(
        load or partial(load_model, settings, progress),
        BatchingLock(hang_limit_s=settings.hang_limit_s),
        warm_up_sizes=parse_sizes(settings.warm_up_sizes),
        warm_up=warm_up,
        progress=progress,
    )


def load_model(settings: Settings, progress: StartProgress) -> LoadedPipelines:
    """Load the model that the settings name, and the watermark; the contract is `PipelineLoader`."""
    watermark = load_watermark() if settings.watermark else None  # first, because it fails fast
    source = parse_source(settings.model)
    if isinstance(source, FakeSource):
        max_batch = 1 if settings.batching == "off" else settings.max_batch
        return replace(load_fake(inference_s=source.inference_s, max_batch=max_batch), watermark=watermark)
    vae = parse_vae(settings.vae)
    digests = Digests()
    vae_folder = locate(vae, settings.weights_dir, VAE, digests=digests) if vae else None
    loras = locate_loras(settings.lora, settings.weights_dir, digests=digests)
    place = locate(source, settings.weights_dir, model_layout(settings.scheduler), digests=digests)
    # Read from now on, because torch and diffusers take seconds to import.
    with digests.explaining_errors(), ReadAhead(files_to_read(place, vae_folder), digests) as reading:
        progress.begin_reading(lambda: (reading.read_bytes, reading.total_bytes))
        loaded = load_weights(place, settings, model=source.name, vae_folder=vae_folder, loras=loras, reading=reading)
    return replace(loaded, vae=vae.name if vae else None, watermark=watermark)


def load_weights(
    place: Path,
    settings: Settings,
    *,
    model: str,
    vae_folder: Path | None = None,
    loras: Sequence[LoraFile] = (),
    reading: ReadAhead | None = None,
) -> LoadedPipelines:
    """Load the weights of a folder or file onto the device, as the settings require; `model` is the name to report.

    `vae_folder` has the VAE that replaces the model's own, and `loras` are fused into the weights. `reading` may have
    begun to read the files.

    Raises:
        TurboError: The weights or the device failed, or torch and diffusers cannot be imported.
    """
    try:  # imported here, because torch and diffusers take seconds, and torch must first run on the device thread
        from app.pipelines.sdxl_turbo import load_sdxl_turbo  # noqa: PLC0415
    except Exception as error:  # torch imports torch_npu, which can raise anything without CANN
        raise DeviceUnavailableError(
            f"torch and diffusers cannot be imported ({first_line(root_cause(error))}). If torch_npu is installed, "
            f"source CANN's set_env.sh first; `{program()} doctor` shows details."
        ) from error
    return load_sdxl_turbo(place, settings, model=model, vae_folder=vae_folder, loras=loras, reading=reading)


def key_names(path: Path) -> Sequence[str]:
    """Return the names of the API keys in a file.

    Raises:
        KeysFileError: The file is not usable.
    """
    return ApiKeys(path).names
