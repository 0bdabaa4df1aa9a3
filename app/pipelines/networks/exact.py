"""Batches on the CPU in which every sample has the bits that it has alone.

Rounding depends on the batch's shape if a library chooses another kernel, another order of sums, or another end of its
vectors. Which operations do so differs between processors, number formats and shapes. So it is measured:

- Linears and convolutions, where a batch can save time, are computed both ways at the first batch of a shape in each
  layer. If the results are equal to the last bit, later batches of the shape are computed at once, else by sample. In
  16 bits, only a large result tells: see `_TELLING`.
- Attention, functions that compute the end of a vector in another way, and group norms, which may add up by thread, are
  computed by sample. Where they round differently, they do so at a few values only, so one comparison would prove
  nothing; and a batch saves nothing.

Layer norms, sums and elementwise products take the whole batch. Their results per sample were equal in all
measurements, and the first batch of each shape checks this again.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit
from torch.overrides import TorchFunctionMode

_log = logging.getLogger(__name__)

Operation = Callable[..., Any]

COMPARED: frozenset[Operation] = frozenset({F.linear, F.conv2d, F.conv_transpose2d})
"""Operations that are compared for each layer and shape; their first argument has the samples."""

BY_SAMPLE: dict[Operation, int] = {
    F.scaled_dot_product_attention: 3,
    **dict.fromkeys((F.group_norm, F.silu, F.gelu, torch.sin, torch.cos), 1),
}
"""Operations that are computed by sample, and how many of their arguments, the first ones, have samples."""

_TELLING = 1 << 17
"""Values of a 16-bit result for which one comparison is enough. Rounding to 16 bits often hides another order of sums:
in bf16 with AVX512-BF16, one value of 7,000 differed. So 131,072 values are all equal by chance once in 100 million
times, and a shape has about 650 such results."""

_MAX_COMPARED = 1 << 16
"""Comparisons that are kept; SDXL has about 650 for each shape. Then all are made anew: clients choose the shapes."""


class ExactBatches(TorchFunctionMode):
    """Computes batches so that no sample's bits depend on the others. In its context, on one thread.

    The first dimension of every tensor with samples is the batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._equal: dict[Hashable, bool] = {}
        """Whether an operation gives equal bits at once and by sample, by all that a library can choose a kernel by."""

    def __torch_function__(
        self, func: Operation, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = partial(func, **(kwargs or {}))
        if (func not in COMPARED and func not in BY_SAMPLE) or len(args[0]) == 1:
            return call(*args)
        if samples := BY_SAMPLE.get(func):
            return by_sample(call, args, samples)
        key = (func, torch.get_num_threads(), _shape(args[0]), *map(_identity, args[1:]))
        if key not in self._equal:
            at_once, alone = call(*args), by_sample(call, args)
            if len(self._equal) >= _MAX_COMPARED:
                self._equal.clear()
            if torch.isfinite(alone).all():  # a picture that fails tells nothing about later ones
                tells = alone.dtype == torch.float32 or alone.numel() >= _TELLING
                self._equal[key] = tells and torch.equal(at_once, alone)
            return alone
        return call(*args) if self._equal[key] else by_sample(call, args)


def by_sample(call: Operation, args: Sequence[Any], samples: int = 1) -> Tensor:
    """Call an operation for each sample of its first arguments, as many as `samples`, and join the results."""
    batch, others = args[:samples], args[samples:]
    return torch.cat([call(*(tensor[i : i + 1] for tensor in batch), *others) for i in range(len(batch[0]))])


def _shape(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.stride(), tensor.dtype


def _identity(value: Any) -> Hashable:
    """Return something that stands for a weight or another argument of a layer."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    return tuple(value) if isinstance(value, list) else value


def exact_in_batches(predict_noise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the UNet's function with the same bits for every sample, alone and in a batch.

    The first batch of a shape computes the Linears and convolutions twice, and its last sample once more alone. If that
    differs, samples of this shape are always computed one by one.
    """
    exact = ExactBatches()
    alike: dict[tuple[torch.Size, ...], bool] = {}

    def predict(latents: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        def alone(i: int) -> Tensor:
            return predict_noise(latents[i : i + 1], timestep, *(condition[i : i + 1] for condition in conditions))

        last = len(latents) - 1
        shape = tuple(tensor.shape for tensor in (latents, *conditions))  # prompts differ in length
        if last == 0:
            return predict_noise(latents, timestep, *conditions)
        if alike.get(shape, True):
            with exact:
                together = predict_noise(latents, timestep, *conditions)
            if shape not in alike:
                single = alone(last)
                if not torch.isfinite(single).all():
                    return torch.cat([*(alone(i) for i in range(last)), single])
                if len(alike) >= _MAX_COMPARED:
                    alike.clear()
                alike[shape] = torch.equal(together[last:], single)
            if alike[shape]:
                return together
            _log.warning("on this CPU, %d pictures at once change each other: they are made one by one", len(latents))
        return torch.cat([alone(i) for i in range(len(latents))])

    return predict
