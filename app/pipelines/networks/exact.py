"""Batches on the CPU in which every sample has the bits that it has alone.

Rounding depends on the batch's shape if a library chooses another kernel, another order of sums, or another end of its
vectors. Which operations do so differs between processors, number formats and shapes. So it is measured:

- Linears and convolutions, where a batch can save time, are computed both ways at the first batch of a shape in each
  layer. If the results are equal to the last bit, later batches of the shape are computed at once, else by sample.
- Attention, functions that compute the end of a vector in another way, and group norms, which may add up by thread, are
  computed by sample. Where they round differently, they do so at a few values only, so one comparison would prove
  nothing; and a batch saves nothing.

Layer norms, sums and elementwise products take the whole batch. Their results per sample were equal in all
measurements, and each start checks the whole network again (`predicts_alike_in_a_batch`).
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit
from torch.overrides import TorchFunctionMode

from app.pipelines.base import MAX_PROMPT_TOKENS

Operation = Callable[..., Any]

COMPARED: frozenset[Operation] = frozenset({F.linear, F.conv2d, F.conv_transpose2d})
"""Operations that are compared for each layer and shape; their first argument has the samples."""

BY_SAMPLE: dict[Operation, int] = {
    F.scaled_dot_product_attention: 3,
    **dict.fromkeys((F.group_norm, F.silu, F.gelu, torch.sin, torch.cos), 1),
}
"""Operations that are computed by sample, and how many of their arguments, the first ones, have samples."""


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
            self._equal[key] = torch.equal(at_once, alone)
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
    """Return the UNet's function with `ExactBatches` around calls of more than one sample."""
    exact = ExactBatches()

    def predict(latents: Tensor, *others: Tensor) -> Tensor:
        if len(latents) == 1:
            return predict_noise(latents, *others)
        with exact:
            return predict_noise(latents, *others)

    return predict


def predicts_alike_in_a_batch(pipe: Any, predict_noise: Callable[..., Tensor]) -> bool:
    """Compare the UNet's results on the CPU, to the last bit, for samples alone and in a batch.

    Takes moments: the first batch of a shape is compared operation by operation, the second is the one that counts.
    """
    latents, timestep, *conditions = _noise_inputs(pipe, batch=3, sides=(8, 12))
    with torch.inference_mode():
        predict_noise(latents, timestep, *conditions)
        together = predict_noise(latents, timestep, *conditions)
        alone = [
            predict_noise(latents[i : i + 1], timestep, *(condition[i : i + 1] for condition in conditions))
            for i in range(len(latents))
        ]
        return torch.equal(torch.cat(alone), together)


def _noise_inputs(pipe: Any, *, batch: int, sides: tuple[int, int]) -> list[Tensor]:
    """Return inputs of the UNet, all samples different."""
    generator = torch.Generator("cpu").manual_seed(0)
    config, projection, dtype = pipe.unet.config, pipe.text_encoder_2.config.projection_dim, pipe.unet.dtype
    return [
        torch.randn(batch, config.in_channels, *sides, generator=generator).to(dtype),
        torch.tensor(999.0),
        torch.randn(batch, MAX_PROMPT_TOKENS, config.cross_attention_dim, generator=generator).to(dtype),
        torch.randn(batch, projection, generator=generator).to(dtype),
        torch.tensor([[512.0, 512.0, 0.0, 0.0, 512.0, 512.0]], dtype=dtype).repeat(batch, 1),
    ]
