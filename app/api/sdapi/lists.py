"""The lists that Stable Diffusion WebUI's clients show or look something up in. There is one of most things."""

from typing import Any

from fastapi import APIRouter, Depends, Request

from app.api.context import Context
from app.api.openapi import problems
from app.api.sdapi import schemas
from app.api.sdapi.routes import PREFIX
from app.errors import UnauthorizedError
from app.pipelines.host_memory import memory_bytes


async def _identify(request: Request, context: Context) -> None:
    context.access.identify(request)


router = APIRouter(
    prefix=PREFIX,
    tags=["Stable Diffusion WebUI"],
    dependencies=[Depends(_identify)],
    responses=problems(UnauthorizedError),
)


@router.get("/options", operation_id="sdapi_options", response_description="The options that clients read.")
async def options(context: Context) -> schemas.Options:
    """Return the served model and the format of the pictures."""
    return schemas.options_of(context.models, context.registry.loaded.vae)


@router.get("/sd-models", operation_id="sdapi_models", response_description="The served model.")
async def models(context: Context) -> list[schemas.Checkpoint]:
    """List the served model."""
    names = context.models
    return [schemas.Checkpoint(title=names.served, model_name=names.short, filename=names.served)]


@router.get("/samplers", operation_id="sdapi_samplers", response_description="The sampler.")
async def samplers() -> list[schemas.Sampler]:
    """List the sampler."""
    return [schemas.Sampler(name=schemas.SAMPLER, aliases=["k_euler_a", "k_euler_ancestral"])]


@router.get("/schedulers", operation_id="sdapi_schedulers", response_description="The scheduler.")
async def schedulers() -> list[schemas.Scheduler]:
    """List the scheduler."""
    return [schemas.Scheduler(name=schemas.SCHEDULER.lower(), label=schemas.SCHEDULER)]


@router.get("/upscalers", operation_id="sdapi_upscalers", response_description="One that does nothing.")
async def upscalers() -> list[schemas.Upscaler]:
    """List the upscalers."""
    return [schemas.Upscaler(name="None")]


@router.get("/sd-vae", operation_id="sdapi_vaes", response_description="The VAE that replaces the model's own, if any.")
async def vaes(context: Context) -> list[dict[str, str]]:
    """List the VAE of `TURBO_VAE`."""
    vae = context.registry.loaded.vae
    return [{"model_name": vae, "filename": vae}] if vae else []


@router.get("/loras", operation_id="sdapi_loras", response_description="The LoRAs in the model's weights.")
async def loras(context: Context) -> list[schemas.FusedLora]:
    """List the LoRAs of `TURBO_LORA`. They are in the model's weights: a prompt cannot change them."""
    fused = context.registry.loaded.loras
    return [schemas.FusedLora(name=one.name, alias=one.name, path=one.name, weight=one.weight) for one in fused]


@router.get("/embeddings", operation_id="sdapi_embeddings", response_description="None.")
async def embeddings() -> schemas.Embeddings:
    """List the textual inversions."""
    return schemas.Embeddings()


@router.get("/scripts", operation_id="sdapi_scripts", response_description="None.")
async def scripts() -> schemas.Scripts:
    """List the scripts."""
    return schemas.Scripts()


@router.get("/cmd-flags", operation_id="sdapi_flags", response_description="None.")
async def flags() -> dict[str, Any]:
    """Return that server's command-line flags: none."""
    return {}


@router.get("/memory", operation_id="sdapi_memory", response_description="The host's memory.")
def memory() -> schemas.Memory:
    """Return the memory of the host. A plain function, because FastAPI runs it in a thread and it reads files."""
    free, total = memory_bytes()
    return schemas.Memory(
        ram=schemas.Ram(free=free, used=total - free, total=total),
        cuda=schemas.Unavailable(error="The device's memory is not reported here."),
    )


_EMPTY = {
    "sd-modules": "VAEs and text encoders",
    "latent-upscale-modes": "upscalers of latents",
    "hypernetworks": "hypernetworks",
    "face-restorers": "models that restore faces",
    "realesrgan-models": "upscaling models",
    "prompt-styles": "styles",
    "script-info": "scripts",
    "extensions": "extensions",
}


async def _nothing() -> list[dict[str, Any]]:
    return []


for _path, _things in _EMPTY.items():
    router.add_api_route(
        f"/{_path}",
        _nothing,
        operation_id=f"sdapi_{_path.replace('-', '_')}",
        summary=f"List {_things}",
        description=f"List {_things}: there are none.",
        response_description="None.",
        response_model=list[dict[str, Any]],
    )
