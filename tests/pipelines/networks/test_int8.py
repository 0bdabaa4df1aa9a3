"""Layers in int8 compute nearly what they did, each sample for itself."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.pipelines.networks import int8
from app.pipelines.networks.int8 import Int8Conv2d, Int8Linear, quantize
from tests.support.processor import needs_int8

CHANCE = torch.Generator().manual_seed(0)

pytestmark = needs_int8


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=CHANCE)


def linear(*, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(96, 64, bias=bias).requires_grad_(requires_grad=False)
    layer.weight.copy_(random(64, 96))
    return layer


def convolution() -> nn.Conv2d:
    layer = nn.Conv2d(32, 48, 3, padding=1).requires_grad_(requires_grad=False)
    layer.weight.copy_(random(48, 32, 3, 3))
    layer.weight.data = layer.weight.contiguous(memory_format=torch.channels_last)
    return layer


def deviation(result: Tensor, expected: Tensor) -> float:
    return float((result.float() - expected).std() / expected.std())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_in_int8_is_within_two_hundredths(dtype: torch.dtype, *, bias: bool) -> None:
    plain, x = linear(bias=bias), random(2, 7, 96)
    before = plain.weight.clone()
    result = Int8Linear(plain, dtype)(x.to(dtype))
    assert (result.dtype, result.shape) == (dtype, (2, 7, 64))
    assert deviation(result, plain(x)) < 0.02
    assert torch.equal(plain.weight, before)


def test_each_row_has_a_scale_so_a_large_one_does_not_blur_the_others() -> None:
    plain, x = linear(), random(1, 2, 96)
    layer = Int8Linear(plain, torch.float32)
    alone = layer(x[:, :1])
    x[:, 1] *= 1000
    assert torch.equal(layer(x)[:, :1], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("band", [1, 4 * 32 * 9, 1 << 20])
def test_a_convolution_in_int8_is_within_two_hundredths_in_bands_of_any_size(
    dtype: torch.dtype, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the edges, which are padded."""
    monkeypatch.setattr(int8, "_BAND_ELEMENTS", band)
    plain, x = convolution(), random(1, 32, 11, 9).to(memory_format=torch.channels_last)
    result, expected = Int8Conv2d(plain, dtype)(x.to(dtype)), plain(x)
    assert (result.dtype, result.shape) == (dtype, expected.shape)
    for part in (..., (..., 0, slice(None)), (..., -1, slice(None)), (..., 0), (..., -1)):
        assert deviation(result[part], expected[part]) < 0.02


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_sample_has_the_same_bits_alone_and_in_any_batch(kind: str) -> None:
    layer: Any = Int8Linear(linear(), torch.bfloat16) if kind == "linear" else Int8Conv2d(convolution(), torch.bfloat16)
    shape = (5, 13, 96) if kind == "linear" else (5, 32, 10, 6)
    x = (random(*shape) * torch.tensor([1.0, 100.0, 0.01, 5.0, 1.0]).view(-1, *[1] * (len(shape) - 1))).bfloat16()
    together = layer(x)
    assert all(torch.equal(together[i : i + 1], layer(x[i : i + 1])) for i in range(5))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_of_nothing_but_zeros_the_bias_remains(kind: str) -> None:
    if kind == "linear":
        plain: Any = linear()
        result = Int8Linear(plain, torch.float32)(torch.zeros(3, 96))
    else:
        plain = convolution()
        result = Int8Conv2d(plain, torch.float32)(torch.zeros(1, 32, 4, 4)).movedim(1, -1)
    torch.testing.assert_close(result, plain.bias.expand_as(result))


def test_the_large_layers_are_quantized_and_the_sensitive_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoencoderKL  # noqa: PLC0415 - slow to import

    monkeypatch.setattr(int8, "_LEAST_CHANNELS", 32)
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    quantize(vae, torch.bfloat16)
    vae.to(torch.bfloat16)
    kinds = {name: type(module) for name, module in vae.named_modules()}
    assert kinds["decoder.up_blocks.0.resnets.0.conv1"] is Int8Conv2d
    assert kinds["decoder.conv_in"] is kinds["decoder.up_blocks.0.upsamplers.0.conv"] is nn.Conv2d
    assert kinds["decoder.mid_block.attentions.0.to_q"] is nn.Linear
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.bfloat16}
