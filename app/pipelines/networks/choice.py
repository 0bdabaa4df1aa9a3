"""The form of the networks that a device runs fastest."""

import os
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from app.pipelines.networks.cpu import LEAST_CHANNELS, fit_to_cpu
from app.pipelines.networks.exact import exact_in_batches
from app.pipelines.networks.graphs import Compile, compiled_networks
from app.pipelines.networks.lean import lean_text_encoding, make_lean
from app.pipelines.networks.plain import Networks, plain_networks
from app.pipelines.npu import setup as npu
from app.pipelines.npu.fused import FusedOperators, fused_operators
from app.pipelines.npu.graphs import CAPTURE_LIMIT, cached_graphs, compile_graphs
from app.pipelines.npu.host import cann_version
from app.settings import FUSED_OPERATORS, Settings, split_list


def fit_networks(pipe: Any, settings: Settings) -> FusedOperators:
    """Change the UNet and the VAE of a pipeline in place so that they suit their device; return the fused operators.

    The functions stay the same, up to rounding.
    """
    device: torch.device = pipe.unet.device
    for name in channels_last(pipe.unet, settings.channels_last, device.type):
        getattr(pipe, name).to(memory_format=torch.channels_last)
    npu.fit(pipe.unet)
    if device.type == "cpu":
        fit_to_cpu(pipe)
        return FusedOperators()
    fused = FusedOperators()
    if device.type == "npu":
        dtypes = dict.fromkeys((pipe.unet.dtype, pipe.vae.dtype))
        fused = fused_operators(_wanted(settings), npu.chip(device), device, dtypes)
    make_lean(pipe.unet, pipe.vae, fused.operators)
    return fused


def _wanted(settings: Settings) -> Collection[str]:
    by_name = {"auto": FUSED_OPERATORS, "off": ()}
    return by_name.get(settings.fused_operators) or split_list(settings.fused_operators)


def channels_last(unet: Any, setting: str, kind: str) -> Collection[str]:
    """Return the names of the networks whose convolutions have their weights in channels_last, on a kind of device."""
    is_large = unet.config.block_out_channels[0] >= LEAST_CHANNELS
    by_default = {"cuda": ("unet", "vae"), "cpu": ("unet", "vae") if is_large else ("vae",)}
    return {"auto": by_default.get(kind, ()), "on": ("unet", "vae"), "off": ()}[setting]


def choose_networks(
    pipe: Any, settings: Settings, fused: FusedOperators, *, model: str, check: Callable[[], None]
) -> Networks:
    """Return the networks in the form that is fastest on the device, and that keeps `TURBO_BATCHING`'s promise.

    `model` is its name. `check` raises DeviceLostError if the device does not compute any more.
    """
    networks = plain_networks(pipe)
    if pipe.unet.device.type == "cpu":
        is_exact = settings.batching == "exact"
        return replace(networks, predict_noise=exact_in_batches(networks.predict_noise)) if is_exact else networks
    first, second = pipe.text_encoder, pipe.text_encoder_2
    networks = replace(
        networks,
        encode_text=(
            lean_text_encoding(first, fused.operators, pooled=False),
            lean_text_encoding(second, fused.operators, pooled=True),
        ),
    )
    if settings.compile == "on":
        return compiled_networks(networks, check)
    if settings.npu_graphs:
        compile_function: Compile = compile_graphs
        if settings.graph_cache_dir is not None:
            compile_function = cached_graphs(settings.graph_cache_dir, _facts(pipe, settings, fused, model))
        return compiled_networks(networks, check, compile_function=compile_function, limit=CAPTURE_LIMIT)
    return networks


def _facts(pipe: Any, settings: Settings, fused: FusedOperators, model: str) -> Mapping[str, object]:
    """Return what a compiled graph depends on, besides code and sizes."""
    return {
        "model": model,
        "configs": [str(part.config) for part in (pipe.text_encoder, pipe.text_encoder_2, pipe.unet, pipe.vae)],
        "dtypes": (pipe.unet.dtype, pipe.vae.dtype),
        "chip": npu.chip(pipe.unet.device),
        "operators": fused.used,
        "loras": settings.lora,
        "settings": (settings.channels_last, settings.allow_tf32),
        "CANN": cann_version(os.environ),
        "python": sys.version_info[:2],
    }
