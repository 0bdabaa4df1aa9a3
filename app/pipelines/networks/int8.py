"""Linears and convolutions in int8 on a CPU: 0.6 of bf16's memory, in 0.7 of its time.

Weights have one scale for each output channel, chosen when they are loaded. Activations are rounded in every call: in a
Linear with one scale for each row, in a convolution with one for each band of rows of a picture. So no picture depends
on others in its batch. Sums are in int32, which is exact. Layers that are small or sensitive stay as they are: the
first and last convolutions, those that change the size, shortcuts, the VAE's attention, and the embeddings of time and
size.

The operations are oneDNN's int8 kernels, which torch's own quantization for x86 uses (X86InductorQuantizer).
"""

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

_ZERO_POINT = 128
"""The kernels take unsigned activations: -127..127 are shifted to 1..255."""

_LEVELS = 127
_HEADROOM = 126.0
"""The largest activation. A quotient in bf16 may be half a level too large."""

_LEAST_SCALE = 1e-8
_CONVOLUTION = ([1, 1], [0, 1], [1, 1], 1)
"""Stride, padding (none above and below a band), dilation and groups."""

_LEAST_CHANNELS = 128
"""Input channels from which a convolution is in int8. Smaller ones take too little time."""

_BAND_ELEMENTS = 1 << 21
"""Elements of a band of rows that a convolution takes at once, so that its roundings stay in the processor's cache."""

_NOT_IN_INT8 = ("time_emb", "add_embedding", "text_projection", "attentions.0.to_")


def quantize(network: nn.Module, dtype: torch.dtype) -> None:
    """Replace the large Linears and convolutions of a network in place, as far as their weights are loaded.

    `dtype` is for what remains; the caller converts it.
    """
    for name, module in list(network.named_modules()):
        for child, layer in list(module.named_children()):
            if any(parameter.is_meta for parameter in layer.parameters()):
                continue
            if isinstance(layer, nn.Linear) and not any(part in f"{name}.{child}" for part in _NOT_IN_INT8):
                setattr(module, child, Int8Linear(layer, dtype))
            elif isinstance(module, ResnetBlock2D) and child in ("conv1", "conv2") and _is_large(layer):
                setattr(module, child, Int8Conv2d(layer, dtype))


def is_quantized(network: nn.Module) -> bool:
    """Return whether `quantize` has replaced layers of a network."""
    return any(isinstance(module, _Int8Layer) for module in network.modules())


def _is_large(conv: nn.Module) -> bool:
    return isinstance(conv, nn.Conv2d) and conv.in_channels >= _LEAST_CHANNELS


class _Int8Layer(nn.Module):
    """A layer whose weights are in int8, with one scale for each output channel, and its bias in fp32.

    `weight` is empty: libraries read the number format of some layers' weights.
    """

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        super().__init__()
        weight = layer.weight.detach().float().flatten(1)
        self.scales = weight.abs().amax(1).div_(_LEVELS).clamp_min_(_LEAST_SCALE)
        self.levels = weight.div(self.scales[:, None]).round_().to(torch.int8).view(layer.weight.shape)
        self.zeros = torch.zeros(len(self.scales), dtype=torch.int32)
        self.bias = None if layer.bias is None else layer.bias.detach().float()
        self.weight = torch.empty(0, dtype=dtype)


class Int8Linear(_Int8Layer):
    """A Linear in int8. Each row of its input has its own scale."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear, dtype)
        self.packed = torch.ops.onednn.qlinear_prepack(self.levels, None)
        del self.levels

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scales = rows.abs().amax(-1, keepdim=True).div_(_HEADROOM).clamp_min_(_LEAST_SCALE)
        product = torch.ops.onednn.qlinear_pointwise(
            _to_levels(rows / scales),
            *(1.0, _ZERO_POINT, self.packed, self.scales, self.zeros, None),
            *(1.0, 0, x.dtype, "none", [], ""),
        )
        result = product.mul_(scales) if self.bias is None else torch.addcmul(self.bias.to(x.dtype), product, scales)
        return result.view(*x.shape[:-1], -1)


class Int8Conv2d(_Int8Layer):
    """A 3x3 convolution in int8, with a stride and a padding of 1. Each band of rows has its own scale."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__(conv, dtype)
        levels = self.levels.contiguous(memory_format=torch.channels_last)
        self.packed = torch.ops.onednn.qconv_prepack(levels, self.scales, 1.0, _ZERO_POINT, *_CONVOLUTION, None)
        del self.levels

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        rows = max(1, min(height, _BAND_ELEMENTS // (channels * width)))
        return torch.cat(
            [
                torch.cat([self._band(picture, top, min(top + rows, height)) for top in range(0, height, rows)], dim=2)
                for picture in torch.split(x, 1)
            ]
        )

    def _band(self, picture: Tensor, top: int, end: int) -> Tensor:
        """Return the rows from `top` to `end` of the result for one picture."""
        first, last = max(top - 1, 0), min(end + 1, picture.shape[2])
        band = picture[:, :, first:last]
        scale = max(float(band.abs().amax()) / _HEADROOM, _LEAST_SCALE)
        levels = F.pad(_to_levels(band / scale), (0, 0, first - top + 1, end + 1 - last), value=_ZERO_POINT)
        result: Tensor = torch.ops.onednn.qconv_pointwise(
            levels.contiguous(memory_format=torch.channels_last),
            *(scale, _ZERO_POINT, self.packed, self.scales, self.zeros, self.bias, *_CONVOLUTION),
            *(1.0, 0, picture.dtype, "none", [], ""),
        )
        return result


def _to_levels(rounded: Tensor) -> Tensor:
    """Round numbers from -127 to 127, and shift them to unsigned ones."""
    return rounded.round_().to(torch.int8).view(torch.uint8).bitwise_xor_(_ZERO_POINT)
