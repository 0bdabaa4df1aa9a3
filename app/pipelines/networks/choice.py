"""The form of the networks that a device runs fastest."""

from dataclasses import replace
from typing import Any

from app.pipelines.networks.exact import exact_in_batches
from app.pipelines.networks.graphs import compiled_networks, with_npu_graphs
from app.pipelines.networks.plain import Networks, plain_networks
from app.pipelines.npu import setup as npu
from app.settings import Settings


def choose_networks(pipe: Any, settings: Settings) -> Networks:
    """Return the networks in the form that is fastest on the device, and that keeps `TURBO_BATCHING`'s promise."""
    plain = plain_networks(pipe)
    if settings.compile == "on":
        return compiled_networks(plain, pipe.unet.device)
    if settings.npu_graphs:
        return with_npu_graphs(plain, npu.graphs)
    if settings.batching == "exact" and pipe.unet.device.type == "cpu":
        return replace(plain, predict_noise=exact_in_batches(plain.predict_noise))
    return plain
