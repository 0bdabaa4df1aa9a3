"""SDXL-Turbo's loader: one set of weights for both modes, settled on a device once and for all."""

import json
import logging
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    AutoPipelineForImage2Image,
    AutoPipelineForText2Image,
    EulerAncestralDiscreteScheduler,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from app.errors import DeviceUnavailableError, WeightsError, first_line
from app.pipelines.base import LoadedPipelines, Mode, buckets
from app.pipelines.batch_sizes import BatchSizes
from app.pipelines.device import TorchDevice, choose_dtype, choose_vae_dtype, open_device
from app.pipelines.device_errors import device_errors
from app.pipelines.diffusion import SdxlTurboPipeline
from app.pipelines.networks.choice import Batching, choose_networks, is_fp32_on_cpu
from app.pipelines.networks.plain import Networks
from app.pipelines.networks.traced import predicts_alike_in_a_batch
from app.pipelines.npu import setup as npu
from app.pipelines.prompts import PromptEncoder
from app.pipelines.work import StageTimes

_log = logging.getLogger(__name__)

_MODELS = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}
"""The models of SDXL-Turbo's model_index.json."""

_LATENT_CHANNELS = 4

_COMPILE_LIMITS = 20
"""How many times the hang limit a warm-up call may take that compiles."""

_CPU_BATCH_PIXELS = 384 * 1024
"""Pixels from which a batch gains nothing on a CPU: up to 256x256 it saves a third of the UNet's time, at 512x512 none
(measured with small UNets on one thread), and those served first would wait for those served last."""

_VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
"""The VAEs that SDXL's can be replaced by."""


def load_sdxl_turbo(
    folder: Path,
    *,
    model: str,
    device_name: str = "auto",
    dtype_name: str = "auto",
    vae_dtype_name: str = "auto",
    allow_tf32: bool = False,
    vae_folder: Path | None = None,
    attention: npu.Attention = "sdpa",
    npu_graphs: bool = False,
    compile_mode: Literal["off", "on"] = "off",
    batching: Batching = "exact",
    max_batch: int = 8,
    prompt_cache_bytes: int = 64 << 20,
) -> LoadedPipelines:
    """Open the device and load both modes from one set of weights; the contract is `PipelineLoader`.

    Args:
        folder: A diffusers folder with fp16 safetensors, already checked by `app.weights`.
        model: The name to report.
        device_name: As `open_device` takes it.
        dtype_name: As `choose_dtype` takes it.
        vae_dtype_name: As `choose_vae_dtype` takes it.
        allow_tf32: As `open_device` takes it.
        vae_folder: A diffusers folder of a VAE to take instead of the model's own.
        attention: `sdpa`, or diffusers' own processor for NPUs.
        npu_graphs: Whether to compile the UNet into NPU graphs, at the sizes that it is called at until it is warm.
        compile_mode: Whether to compile all networks into CUDA graphs, likewise.
        batching: Whether pictures are made together `off`, only where that changes none of their bits (`exact`), or
            always (`fast`).
        max_batch: Pictures at once that it is compiled for, and that `exact` looks at, up to this.
        prompt_cache_bytes: Bytes of prompt embeddings that are kept.

    Raises:
        DeviceUnavailableError: The device is not there, or cannot do what is asked for.
        DeviceLostError: The device failed.
        DeviceOutOfMemoryError: The weights do not fit into its memory.
        WeightsError: diffusers cannot load the folder.
    """
    # diffusers would log the part of a prompt that it cuts, transformers that it is long. The response says both.
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()

    device = open_device(device_name, allow_tf32=allow_tf32)
    kind = device.torch_device.type
    dtype = choose_dtype(dtype_name, device.torch_device)
    npu.check_options(device.torch_device, dtype, attention=attention, graphs=npu_graphs)
    if compile_mode == "on" and kind != "cuda":
        raise DeviceUnavailableError(
            f"TURBO_COMPILE=on makes CUDA graphs, and the device is {device.torch_device}."
            + (" For an NPU there is TURBO_NPU_GRAPHS." if kind == "npu" else "")
        )
    txt2img = _load_pipeline(folder, vae_folder, dtype)
    _settle_vae_dtype(txt2img.vae, vae_dtype_name, dtype)
    with device_errors(device.torch_device):
        txt2img.to(device.torch_device)
    _settle_memory_format(txt2img, kind)
    npu.fit(txt2img.unet, attention=attention)
    # The scheduler holds the step index, so each mode has its own (huggingface/diffusers#7851); all else is shared.
    scheduler = type(txt2img.scheduler).from_config(txt2img.scheduler.config)
    img2img = AutoPipelineForImage2Image.from_pipe(txt2img, scheduler=scheduler)

    by_graphs = compile_mode == "on" or npu_graphs
    networks, stop_compiling = choose_networks(
        txt2img, device, batching=batching, compile_mode=compile_mode, npu_graphs=npu_graphs
    )
    prompts = PromptEncoder(
        (txt2img.tokenizer, txt2img.tokenizer_2),
        networks.encode_text,
        device.torch_device,
        cache_bytes=prompt_cache_bytes,
    )
    sizes = _batch_sizes(txt2img, networks, device, batching=batching, max_batch=max_batch, by_graphs=by_graphs)
    stage_times = StageTimes()
    pipelines = {
        mode: SdxlTurboPipeline(pipe, networks, prompts, device, batch_sizes=sizes, stage_times=stage_times)
        for mode, pipe in ((Mode.TXT2IMG, txt2img), (Mode.IMG2IMG, img2img))
    }

    def on_warm() -> None:
        stop_compiling()
        sizes.stop_learning()
        stage_times.settle()
        prompts.clear()
        if kind == "cpu":
            device.free_memory()  # loading took a copy of the weights in their files' format

    return LoadedPipelines(
        by_mode=pipelines,
        device=device,
        model=model,
        device_name=str(device.torch_device),
        dtype=str(dtype).removeprefix("torch."),
        warm_up_batches=(1,) if batching == "off" or kind == "cpu" else buckets(max_batch),
        warm_up_limits=_COMPILE_LIMITS if by_graphs else 2,
        first_call_is_slow=True,
        on_warm=on_warm,
        work=stage_times.work,
        prompt_cache=lambda: prompts.statistics,
    )


def _load_pipeline(folder: Path, vae_folder: Path | None, dtype: torch.dtype) -> Any:
    try:
        # The operator's own VAE first: what is wrong with it shows before gigabytes are read.
        models = {} if vae_folder is None else {"vae": _load_vae(vae_folder, dtype)}
        for name, kind in _MODELS.items():
            if name not in models:
                models[name] = _load_model(kind, folder / name, dtype, variant="fp16")
        pipe = AutoPipelineForText2Image.from_pretrained(
            str(folder), **models, local_files_only=True, add_watermarker=False
        )
    except WeightsError:
        raise
    except Exception as error:  # foreign code on files of any content: the operator needs the folder and the reason
        raise WeightsError(f"The weights in {folder} cannot be loaded: {first_line(error)}.") from error
    if not isinstance(pipe.scheduler, EulerAncestralDiscreteScheduler):
        # Others keep more between steps than can be had anew for each call.
        raise WeightsError(f"The scheduler in {folder} is no EulerAncestralDiscreteScheduler, as SDXL-Turbo's is.")
    return pipe


def _load_model(kind: Any, folder: Path, dtype: torch.dtype, *, variant: str | None) -> Any:
    """Load one model, and refuse one with holes: transformers fills a missing tensor with random numbers.

    Which names belong where is the libraries' business, as they rename tensors of older files; so they are asked.
    """
    model, info = kind.from_pretrained(
        str(folder),
        dtype=dtype,
        variant=variant,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    if missing := sorted(info["missing_keys"]):
        raise WeightsError(
            f"{folder} lacks {len(missing)} of the model's tensors, {missing[0]} among them. Pull the weights again."
        )
    return model


def _load_vae(folder: Path, dtype: torch.dtype) -> Any:
    """Load the VAE that takes the place of the model's own."""
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
        kind = _VAES[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"TURBO_VAE={folder} is no folder of a VAE: its config.json has to name one of {', '.join(_VAES)}."
        ) from error
    variant = "fp16" if any(folder.glob("*.fp16.safetensors")) else None
    try:
        vae = _load_model(kind, folder, dtype, variant=variant)
    except WeightsError:
        raise
    except Exception as error:  # as in _load_pipeline
        raise WeightsError(f"The VAE in {folder} cannot be loaded: {first_line(error)}.") from error
    if vae.config.latent_channels != _LATENT_CHANNELS:
        raise WeightsError(f"The VAE in {folder} has {vae.config.latent_channels} latent channels, and SDXL's have 4.")
    return vae


def _settle_vae_dtype(vae: Any, name: str, dtype: torch.dtype) -> None:
    """Give the VAE its dtype for good; what goes in and out is cast at its border."""
    vae.to(choose_vae_dtype(name, dtype, force_upcast=vae.config.get("force_upcast", False)))
    vae.register_to_config(force_upcast=False)


def _settle_memory_format(pipe: Any, kind: str) -> None:
    """Lay convolutions' weights out channels last where that is faster.

    On the CPU that is the VAE (in fp32 a quarter faster at 512x512; the UNet's convolutions are too small to gain), on
    CUDA all of it, as tensor cores want it. Ascend has layouts of its own.
    """
    if kind in ("cpu", "cuda"):
        pipe.vae.to(memory_format=torch.channels_last)
    if kind == "cuda":
        pipe.unet.to(memory_format=torch.channels_last)


def _batch_sizes(
    pipe: Any,
    networks: Networks,
    device: TorchDevice,
    *,
    batching: Batching,
    max_batch: int,
    by_graphs: bool,
) -> BatchSizes:
    """Settle how many pictures may go through the networks at once."""
    if batching == "off":
        return BatchSizes([1])
    any_size = range(1, max_batch + 1)
    if device.torch_device.type != "cpu":
        if batching == "exact":
            return BatchSizes(buckets(max_batch), learn=True)
        return BatchSizes(buckets(max_batch) if by_graphs else any_size)
    if batching == "fast" or (is_fp32_on_cpu(pipe, device) and predicts_alike_in_a_batch(pipe, networks)):
        return BatchSizes(any_size, max_pixels=_CPU_BATCH_PIXELS)
    _log.warning("Pictures come out differently in a batch here, so that TURBO_BATCHING=exact makes them one by one.")
    return BatchSizes([1])
