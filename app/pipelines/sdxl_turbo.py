"""SDXL-Turbo's loader: one set of weights for all modes, on one device."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from app.errors import DeviceOutOfMemoryError, DeviceUnavailableError, MemoryTooSmallError, WeightsError
from app.pipelines.base import LoadedPipelines, Lora, Mode, buckets
from app.pipelines.batch_sizes import BatchSizes
from app.pipelines.checkpoint import (
    MODELS,
    Checkpoint,
    ModelFolder,
    open_checkpoint,
    weights_errors,
)
from app.pipelines.device import LARGE_UNET, TorchDevice, choose_dtype, choose_vae_dtype, open_device
from app.pipelines.device_errors import device_errors
from app.pipelines.diffusion import SdxlTurboPipeline
from app.pipelines.host_memory import keep_freed_memory, memory_bytes
from app.pipelines.loading import Loader, Source
from app.pipelines.lora import LORA_MODELS, LoraDeltas
from app.pipelines.networks.choice import channels_last, choose_networks, fit_networks
from app.pipelines.npu import setup as npu
from app.pipelines.prompts import PromptEncoder
from app.pipelines.work import StageTimes
from app.settings import Settings
from app.weights.digests import Digests
from app.weights.layout import MODEL, SINGLE_FILE_CONFIGS, VAE, Layout, files_to_read, files_to_serve, weight_files
from app.weights.lora import LoraFile
from app.weights.reading import ReadAhead
from app.weights.source import SUFFIX

_log = logging.getLogger(__name__)

_PIPELINES = {
    Mode.IMG2IMG: diffusers.StableDiffusionXLImg2ImgPipeline,
    Mode.INPAINT: diffusers.StableDiffusionXLInpaintPipeline,
}
"""diffusers' pipelines of the modes. Other modes have the parts of text to image. diffusers' AutoPipelines would import
hundreds of modules of other models."""

SPARE = 1 / 3
"""Memory that a start takes beside the weights, as a share of these. With SDXL-Turbo's 6.9 GB in bf16, starts took up
to 9.1 GB (python -m benchmarks.startup)."""

SPARE_INT8 = 3 / 5
"""The same in int8: a picture takes no less memory than in other formats. Starts took up to 5.5 GB for 3.8 GB."""

NOT_IN_INT8 = 1 / 12
"""The share of SDXL-Turbo's parameters that stay in another format in int8."""

_COMPILE_LIMITS = 20
"""Hang limits that a warm-up call may take if it compiles."""


def load_sdxl_turbo(
    place: Path,
    settings: Settings,
    *,
    model: str,
    vae_folder: Path | None = None,
    loras: Sequence[LoraFile] = (),
    configs: Path = SINGLE_FILE_CONFIGS,
    reading: ReadAhead | None = None,
) -> LoadedPipelines:
    """Open the device and load every mode from one set of weights; the contract is `PipelineLoader`.

    `place` is a diffusers folder or a single file. `vae_folder` has the VAE that replaces the model's own, and `loras`
    are fused into the weights. `app.weights` has checked them. `model` is the name to report. `configs` has the configs
    and tokenizers for a single file: SDXL-Turbo's, or in tests those of a smaller model. `reading` may have begun to
    read `files_to_read`; its digests tell which files must have which.

    Raises:
        DeviceUnavailableError: The device does not exist, or does not support an option.
        DeviceLostError: The device failed.
        MemoryTooSmallError: The weights do not fit into its memory, or a CPU has less memory free than a start takes.
        WeightsError: The weights are incomplete, or diffusers cannot load them.
    """
    # The response reports long and cut prompts, so the libraries need not log them.
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()

    if reading is None:
        with ReadAhead(files_to_read(place, vae_folder), Digests()) as begun:
            return load_sdxl_turbo(
                place, settings, model=model, vae_folder=vae_folder, loras=loras, configs=configs, reading=begun
            )
    device = open_device(settings.device, allow_tf32=settings.allow_tf32)
    kind = device.torch_device.type
    own_models = [name for name in MODELS if name != "vae" or vae_folder is None]
    with weights_errors(f"The weights in {place}"):
        checkpoint = open_checkpoint(place, own_models, configs=configs)
        parameters = checkpoint.parameters("unet")
        deltas = LoraDeltas()
        blanks = {name: checkpoint.blank(name) for name in LORA_MODELS} if loras else {}
        for lora in loras:
            with weights_errors(f"The LoRA's weights in {lora.path}"):
                deltas.read(lora.path, lora.weight, blanks)
    dtype, dtype_reason = choose_dtype(settings.dtype, device.torch_device, parameters=parameters)
    npu.check_options(settings, device.torch_device)
    if settings.compile == "on" and kind != "cuda":
        hint = " For an NPU, set TURBO_NPU_GRAPHS instead." if kind == "npu" else ""
        raise DeviceUnavailableError(f"TURBO_COMPILE=on needs CUDA, and the device is {device.torch_device}.{hint}")
    int8 = settings.dtype == "int8"
    dtype_name = "int8" if int8 else str(dtype).removeprefix("torch.")
    if kind == "cpu" and settings.threads:
        torch.set_num_threads(settings.threads)
    if kind == "cpu" and sys.platform == "linux":
        bytes_each = 1 + NOT_IN_INT8 * (dtype.itemsize - 1) if int8 else dtype.itemsize
        spare = SPARE_INT8 if int8 else SPARE
        _check_memory(place, sum(map(checkpoint.parameters, own_models)), dtype_name, bytes_each, spare)
    models = {name: checkpoint.blank(name) for name in own_models}
    sources = [Source(f"The weights in {place}", checkpoint)]
    if vae_folder is not None:
        vae = _open_vae(vae_folder)
        models["vae"] = vae.blank
        sources.append(Source(f"The VAE in {vae_folder}", vae))
    in_int8 = [name for name in models if int8 and (name != "vae" or settings.vae_dtype == "auto")]
    loader = Loader(
        sources,
        deltas=deltas,
        device=device.torch_device,
        dtype=dtype,
        in_int8=in_int8,
        channels_last=channels_last(models["unet"], settings.channels_last, kind),
    )
    with weights_errors(f"The weights in {place}"):
        loader.fill(models, reading)
    txt2img = _make_pipeline(checkpoint, models, settings)
    with _enough_memory(f"The weights in {place} do not fit into the memory of {device.torch_device}.", device):
        loaded = assemble(txt2img, device, settings, model=model)
    return replace(
        loaded,
        dtype=dtype_name,
        dtype_reason=dtype_reason,
        loras=[Lora(lora.name, lora.weight) for lora in loras],
        weights_sha256=_digest(place, vae_folder, loras, reading.digests),
        # On a CPU a first call takes a moment longer, for its memory. Next to a large model's seconds that is nothing.
        first_call_is_slow=kind != "cpu" or parameters < LARGE_UNET,
    )


def assemble(txt2img: Any, device: TorchDevice, settings: Settings, *, model: str) -> LoadedPipelines:
    """Move a diffusers pipeline to the device, fit its networks to it, and return every mode, made from its parts."""
    kind, dtype = device.torch_device.type, txt2img.unet.dtype
    # The VAE has one dtype for good. The pipelines convert its inputs and outputs.
    force_upcast = txt2img.vae.config.get("force_upcast", False)
    txt2img.vae.to(choose_vae_dtype(settings.vae_dtype, dtype, force_upcast=force_upcast))
    txt2img.vae.register_to_config(force_upcast=False)
    txt2img.to(device.torch_device)
    fused = fit_networks(txt2img, settings)
    if kind == "cpu":
        keep_freed_memory()

    # The scheduler holds the step index, so each mode has its own (huggingface/diffusers#7851). They share all else.
    def of_mode(mode: Mode) -> Any:
        if mode not in _PIPELINES:
            return txt2img
        scheduler = type(txt2img.scheduler).from_config(txt2img.scheduler.config)
        return _PIPELINES[mode](**txt2img.components | {"scheduler": scheduler}, add_watermarker=False)

    networks = choose_networks(txt2img, settings, fused, model=model, check=device.check)
    tokenizers = (txt2img.tokenizer, txt2img.tokenizer_2)
    cache_bytes = settings.prompt_cache_bytes
    prompts = PromptEncoder(tokenizers, networks.encode_text, device.receive, cache_bytes=cache_bytes)
    sizes = _choose_batch_sizes(settings, kind)
    stage_times = StageTimes()
    pipelines = {mode: SdxlTurboPipeline(of_mode(mode), networks, prompts, device, sizes, stage_times) for mode in Mode}

    def on_warm() -> None:
        networks.stop_compiling()
        sizes.warming = False
        stage_times.settle()
        prompts.clear()

    return LoadedPipelines(
        by_mode=pipelines,
        device=device,
        model=model,
        device_name=str(device.torch_device),
        dtype=str(dtype).removeprefix("torch."),
        warm_up_batches=(1,) if settings.batching == "off" or kind == "cpu" else buckets(settings.max_batch),
        warm_up_limits=_COMPILE_LIMITS if _has_graphs(settings) else 2,
        first_call_is_slow=True,
        on_warm=on_warm,
        work=stage_times.work,
        computed_by=device.computed_by,
        fused_operators=fused.used,
        unused_operators=fused.not_used,
        prompt_cache=lambda: prompts.statistics,
    )


def _check_memory(place: Path, parameters: int, dtype: str, bytes_each: float, spare: float) -> None:
    """Check that a start has the memory it takes. Otherwise the kernel would end the process without a message.

    `bytes_each` is the mean size of a parameter in `dtype`, `spare` the memory beside the weights as a share of these.
    """
    weights_gb = bytes_each * parameters / 1e9
    free_gb, total_gb = (size_bytes / 1e9 for size_bytes in memory_bytes())
    if free_gb < weights_gb * (1 + spare):
        raise MemoryTooSmallError(
            f"The weights in {place} take {weights_gb:.1f} GB of memory in {dtype}, and a start takes {spare:.0%} "
            f"more. This process has {free_gb:.1f} of {total_gb:.1f} GB free."
        )


def _make_pipeline(checkpoint: Checkpoint, models: Mapping[str, Any], settings: Settings) -> Any:
    with weights_errors(f"The weights in {checkpoint.place}"):
        pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(
            str(checkpoint.configs),
            **models,
            **checkpoint.surroundings(turbo_scheduler=settings.scheduler == "turbo"),
            local_files_only=True,
            add_watermarker=False,
        )
    if not isinstance(pipe.scheduler, diffusers.EulerAncestralDiscreteScheduler):
        # Other schedulers carry state between steps that copying does not reset.
        raise WeightsError(
            f"The scheduler in {checkpoint.place} is not an EulerAncestralDiscreteScheduler, as SDXL-Turbo's is."
        )
    if (prediction := pipe.scheduler.config.prediction_type) not in ("epsilon", "v_prediction"):
        raise WeightsError(
            f"The scheduler in {checkpoint.place} expects a UNet that predicts {prediction!r}; SDXL's does not."
        )
    return pipe


@contextmanager
def _enough_memory(otherwise: str, device: TorchDevice) -> Iterator[None]:
    try:
        with device_errors(device.torch_device):
            yield
    except DeviceOutOfMemoryError as error:
        raise MemoryTooSmallError(otherwise) from error


def _open_vae(folder: Path) -> ModelFolder:
    """Open the VAE in the folder, of the class that its config names: AutoencoderKL or AutoencoderTiny."""
    with weights_errors(f"The VAE in {folder}"):
        config = diffusers.AutoencoderKL.load_config(str(folder), local_files_only=True)
        return ModelFolder("vae", getattr(diffusers, config["_class_name"]), folder)


def _digest(place: Path, vae_folder: Path | None, loras: Sequence[LoraFile], digests: Digests) -> str:
    """Return the digest of all files that pictures depend on. The files of weights have been read and hashed."""
    files = _served(place, MODEL, files_to_read(place))
    if vae_folder is not None:
        own = {name: path for name, path in files.items() if not name.startswith("vae/")}
        served = _served(vae_folder, VAE, weight_files(vae_folder))
        files = own | {f"vae/{name}": path for name, path in served.items()}
    files |= {f"lora/{number}": lora.path for number, lora in enumerate(loras)}
    return digests.total(files)


def _served(place: Path, layout: Layout, weights: Sequence[Path]) -> dict[str, Path]:
    """Return the weights in a folder and the other files that serving needs, by their paths in it.

    A folder may have weights that the libraries do not load, and the index of shards may give them any names.
    """
    others = {name: path for name, path in files_to_serve(place, layout).items() if path.suffix != SUFFIX}
    return others | {path.relative_to(place).as_posix(): path for path in weights}


def _has_graphs(settings: Settings) -> bool:
    return settings.compile == "on" or settings.npu_graphs


def _choose_batch_sizes(settings: Settings, kind: str) -> BatchSizes:
    if settings.batching == "off":
        return BatchSizes([1])
    if settings.batching == "exact" and kind != "cpu":
        return BatchSizes(buckets(settings.max_batch), must_be_exact=True)
    return BatchSizes(buckets(settings.max_batch) if _has_graphs(settings) else range(1, settings.max_batch + 1))
