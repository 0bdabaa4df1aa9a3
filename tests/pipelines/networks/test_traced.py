"""Recorded networks compute what they were recorded of, to the last bit."""

import pytest
import torch

from app.pipelines.networks.traced import trace


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_recorded_network_rounds_as_the_network_does_in_every_layout_down_to_a_single_pixel(
    *, exact: bool, layout: torch.memory_format, side: int
) -> None:
    """A single pixel is in both layouts; torch chooses a convolution's kernel by its strides."""
    chance = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(torch.nn.GroupNorm(4, 32), torch.nn.SiLU(), torch.nn.Conv2d(32, 32, 3, padding=1))
    for parameter in network.requires_grad_(requires_grad=False).parameters():
        parameter.normal_(generator=chance)
    recorded = trace(network, [torch.zeros(2, 32, 9, 11)], exact=exact)
    sample = torch.empty(1, 32, side, side, memory_format=layout).normal_(generator=chance)
    with torch.inference_mode():
        assert torch.equal(recorded(sample), network(sample))
