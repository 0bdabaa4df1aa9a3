"""The form of the networks that a device runs fastest."""

from typing import Any

import torch

from app.pipelines.networks.graphs import compiled_networks, with_npu_graphs
from app.pipelines.networks.plain import Networks, plain_networks
from app.pipelines.networks.traced import traced_networks
from app.pipelines.npu import setup as npu
from app.settings import Settings


def choose_networks(pipe: Any, settings: Settings) -> Networks:
    """Return the networks in the form that is fastest on the device."""
    plain = plain_networks(pipe)
    if settings.compile == "on":
        return compiled_networks(plain, pipe.unet.device)
    if settings.npu_graphs:
        return with_npu_graphs(plain, npu.graphs)
    if is_fp32_on_cpu(pipe):
        return traced_networks(pipe, plain, exact=settings.batching != "fast")
    return plain


def is_fp32_on_cpu(pipe: Any) -> bool:
    """Return whether the UNet and the VAE run in fp32 on the CPU, which is when the networks are recorded."""
    device: torch.device = pipe.unet.device
    return device.type == "cpu" and {pipe.unet.dtype, pipe.vae.dtype} == {torch.float32}
