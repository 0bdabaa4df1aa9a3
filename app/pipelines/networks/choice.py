"""The form of the networks that a device runs fastest, chosen in one place."""

from collections.abc import Callable
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
) -> tuple[Networks, Callable[[], None]]:
    """Return the networks in the form that is fastest on the device, and what to call when they are warm."""
    plain = plain_networks(pipe)
    if compile_mode == "on":
        return compiled_networks(plain, device.torch_device)
    if npu_graphs:
        return with_npu_graphs(plain, npu.graphs)
    if is_fp32_on_cpu(pipe, device):
        return traced_networks(pipe, plain, exact=batching != "fast"), _nothing
    return plain, _nothing


def is_fp32_on_cpu(pipe: Any, device: TorchDevice) -> bool:
    """Return whether the networks are recorded: on the CPU, all of them in fp32."""
    return device.torch_device.type == "cpu" and pipe.unet.dtype == pipe.vae.dtype == torch.float32


def _nothing() -> None:
    """Do nothing."""
