"""On a CPU the networks compute the same in less time."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from app.pipelines.networks.cpu import fit_to_cpu
from app.pipelines.networks.lean import LeanResnet

CHANCE = torch.Generator().manual_seed(0)


def fitted(network: nn.Module, *, channels: int = 256) -> nn.Module:
    unet: Any = nn.ModuleList([network])
    unet.config = SimpleNamespace(block_out_channels=(channels,))
    fit_to_cpu(SimpleNamespace(unet=unet, vae=nn.Identity()))
    return network


def with_random_weights(network: nn.Module) -> nn.Module:
    for parameter in network.requires_grad_(requires_grad=False).parameters():
        parameter.uniform_(-0.05, 0.05, generator=CHANCE)
    return network.eval()


@pytest.mark.parametrize("out_channels", [256, 128])
@pytest.mark.parametrize("output_size", [None, (7, 9)])
def test_a_folded_upsampling_computes_what_upsampling_and_a_convolution_do(
    out_channels: int, output_size: tuple[int, int] | None
) -> None:
    upsample = with_random_weights(Upsample2D(256, use_conv=True, out_channels=out_channels))
    x = torch.randn(2, 256, 4, 5, generator=CHANCE)
    plain = upsample(x, output_size)
    torch.testing.assert_close(fitted(upsample)(x, output_size), plain)


def test_a_large_upsampling_convolution_multiplies_less_than_half_as_often() -> None:
    upsample = with_random_weights(Upsample2D(256, use_conv=True))
    x = torch.randn(1, 256, 8, 8, generator=CHANCE)
    plain = _flops(upsample, x)
    assert _flops(fitted(upsample), x) <= plain * 4 / 9


def _flops(network: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(x)
    return int(counter.get_total_flops())


def test_small_convolutions_stay_as_they_are_to_the_last_bit() -> None:
    """So the demo model's pictures keep their bytes."""
    upsample = with_random_weights(Upsample2D(64, use_conv=True))
    x = torch.randn(1, 64, 8, 8, generator=CHANCE)
    plain = upsample(x)
    assert torch.equal(fitted(upsample, channels=64)(x), plain)


@pytest.mark.parametrize("out_channels", [32, 64])
@pytest.mark.parametrize(("temb_channels", "norm"), [(16, "default"), (None, "default"), (None, "group")])
def test_a_block_without_divisions_by_1_rounds_as_it_did(
    out_channels: int, temb_channels: int | None, norm: str
) -> None:
    """The VAE's decoder has blocks without a time embedding, but with a norm for one."""
    block = with_random_weights(
        ResnetBlock2D(in_channels=32, out_channels=out_channels, temb_channels=temb_channels, time_embedding_norm=norm)
    )
    x = torch.randn(2, 32, 5, 6, generator=CHANCE)
    before = x.clone()
    temb = torch.randn(2, 16, generator=CHANCE) if temb_channels else None
    plain = block(x, temb)
    assert torch.equal(fitted(block, channels=32)(x, temb), plain)
    assert isinstance(block.forward, LeanResnet)
    assert torch.equal(x, before), "nothing is overwritten that others use"


def test_a_block_that_is_not_sdxl_s_stays_as_it_is() -> None:
    block = with_random_weights(ResnetBlock2D(in_channels=32, temb_channels=16, output_scale_factor=2.0))
    x, temb = torch.randn(1, 32, 4, 4, generator=CHANCE), torch.randn(1, 16, generator=CHANCE)
    plain = block(x, temb)
    assert torch.equal(fitted(block, channels=32)(x, temb), plain)
