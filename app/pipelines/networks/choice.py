"""The form of the networks that a device runs fastest."""

from typing import Any, Literal

import torch

from app.pipelines.device import TorchDevice
from app.pipelines.networks.graphs import compiled_networks, with_npu_graphs
from app.pipelines.networks.plain import Networks, plain_networks
from app.pipelines.networks.traced import traced_networks
from app.pipelines.npu import setup as npu

Batching = Literal["off", "exact", "fast"]


def choose_networks(
    pipe: Any, device: TorchDevice, *, batching: Batching, compile_mode: str, npu_graphs: bool
) -> Networks:
    """Return the networks in the form that is fastest on the device."""
    plain = plain_networks(pipe)
    if compile_mode == "on":
        return compiled_networks(plain, device.torch_device)
    if npu_graphs:
        return with_npu_graphs(plain, npu.graphs)
    if is_fp32_on_cpu(pipe, device):
        return traced_networks(pipe, plain, exact=batching != "fast")
    return plain


def is_fp32_on_cpu(pipe: Any, device: TorchDevice) -> bool:
    """Return whether the UNet and the VAE run in fp32 on the CPU, which is when the networks are recorded."""
    return device.torch_device.type == "cpu" and pipe.unet.dtype == pipe.vae.dtype == torch.float32
