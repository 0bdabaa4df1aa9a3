"""Networks on the CPU, recorded once: without Python's overhead, and with the same bits alone and in a batch.

Python takes half of the time of a network of small layers (a UNet of 12.6 million parameters at 128x128: 39 ms, and 17
ms recorded). Recording takes about a second, compiling would take minutes.

On the CPU, rounding depends on the batch's shape if a library chooses another kernel, another order of sums, or another
end of its vectors. These operations are therefore recorded as loops over the samples:

- convolutions: torch chooses the kernel by the batch's size too (`ConvParams::use_mkldnn` in its Convolution.cpp);
- Linears: MKL chooses the kernel of a matrix product, and splits its sums among threads, by the number of all rows;
- group norms in the channels-last layout, which may add up by thread;
- functions such as SiLU, which compute their last elements without vectors.

Attention, layer norms, sums and products take the whole batch. Their results per sample were equal in all measurements,
and each start checks them again (`predicts_alike_in_a_batch`).
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit
from torch.overrides import TorchFunctionMode

from app.pipelines.base import MAX_PROMPT_TOKENS
from app.pipelines.networks.plain import Networks


def trace(function: Callable[..., Any], example: Sequence[Tensor], *, exact: bool) -> Callable[..., Any]:
    """Record a function of tensors on the CPU; the recording takes tensors of any batch and size.

    The weights of the function's networks need no gradients, and the recording shares them. The tracer may take a size
    of the `example` for a constant if it is 1 or equals another size. With `exact`, a sample's result does not depend
    on the rest of the batch, to the last bit.
    """
    with warnings.catch_warnings(), torch.inference_mode():
        # The tracer warns of every number that Python reads from a tensor. diffusers reads channels only: constants.
        warnings.simplefilter("ignore")
        with _Recorded(exact=exact):
            recording = torch.jit.trace(  # type: ignore[no-untyped-call] # torch types it so
                function, tuple(example), check_trace=False, _store_inputs=False
            )

    def call(*tensors: Tensor) -> Any:
        # TorchScript's optimization takes seconds at the first calls, and saves less than a tenth.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined] # public, but not exported
            return recording(*tensors)

    return call


class _Recorded(TorchFunctionMode):
    """Removes operations that do nothing, and replaces those whose rounding depends on the batch by loops over it."""

    def __init__(self, *, exact: bool) -> None:
        super().__init__()
        self._replaced = _by_sample() if exact else {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        is_division = func in {Tensor.div, Tensor.__truediv__, torch.div}
        if is_division and not isinstance(args[1], Tensor) and args[1] == 1:
            return args[0]  # diffusers scales by 1 after every block
        if func is F.dropout:
            return args[0]
        if func is F.silu:
            kwargs = {}  # `inplace`, which the loop does not have; diffusers leaves it False
        return self._replaced.get(func, func)(*args, **kwargs)


def _by_sample() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return operations with their loops over the batch. Only TorchScript keeps a loop in a recording."""
    loops: dict[Callable[..., Any], Callable[..., Any]] = {
        F.linear: _linear,
        F.conv2d: _conv2d,
        F.group_norm: _group_norm,
        **{function: _function_by_sample(function) for function in (F.silu, F.gelu, torch.sin, torch.cos)},
    }
    return {operation: torch.jit.script(loop) for operation, loop in loops.items()}


def _function_by_sample(function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def by_sample(x: Tensor) -> Tensor:
        if x.size(0) == 1:
            return function(x)
        return torch.cat([function(x[i : i + 1]) for i in range(x.size(0))])

    return by_sample


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.size(0) == 1:
        return F.linear(x, weight, bias)
    return torch.cat([F.linear(x[i : i + 1], weight, bias) for i in range(x.size(0))])


def _conv2d(  # noqa: PLR0917 - torch's order
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    if x.size(0) == 1:
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return torch.cat(
        [torch.conv2d(x[i : i + 1], weight, bias, stride, padding, dilation, groups) for i in range(x.size(0))]
    )


def _group_norm(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if x.size(0) == 1 or x.is_contiguous():
        return F.group_norm(x, num_groups, weight, bias, eps)
    return torch.cat([F.group_norm(x[i : i + 1], num_groups, weight, bias, eps) for i in range(x.size(0))])


def traced_networks(pipe: Any, plain: Networks, *, exact: bool) -> Networks:
    """Return the networks of a pipeline in fp32 on the CPU, recorded; `exact` is for the UNet, as in `trace`."""
    for network in (pipe.text_encoder, pipe.text_encoder_2, pipe.unet, pipe.vae):
        network.requires_grad_(requires_grad=False)
    # Operations for odd sides are valid for all; even sides would be recorded as constants where the UNet doubles them.
    sides = (9, 11)
    example = _noise_inputs(pipe, batch=2, sides=sides)
    pixels = torch.zeros(1, 3, *(side * pipe.vae_scale_factor for side in sides))
    ids = torch.zeros(1, MAX_PROMPT_TOKENS, dtype=torch.long)
    return Networks(
        encode_text=tuple(trace(encode, [ids], exact=False) for encode in plain.encode_text),
        predict_noise=trace(plain.predict_noise, example, exact=exact),
        encode=trace(plain.encode, [pixels], exact=False),
        decode=trace(plain.decode, [example[0][:1]], exact=False),
    )


def predicts_alike_in_a_batch(pipe: Any, networks: Networks) -> bool:
    """Compare the UNet's results on the CPU, to the last bit, for samples alone and in a batch. Takes moments."""
    latents, timestep, *conditions = _noise_inputs(pipe, batch=3, sides=(8, 12))
    with torch.inference_mode():
        together = networks.predict_noise(latents, timestep, *conditions)
        alone = [
            networks.predict_noise(latents[i : i + 1], timestep, *(condition[i : i + 1] for condition in conditions))
            for i in range(len(latents))
        ]
        return torch.equal(torch.cat(alone), together)


def _noise_inputs(pipe: Any, *, batch: int, sides: tuple[int, int]) -> list[Tensor]:
    """Return inputs of the UNet, all samples different."""
    generator = torch.Generator("cpu").manual_seed(0)
    config, projection = pipe.unet.config, pipe.text_encoder_2.config.projection_dim
    return [
        torch.randn(batch, config.in_channels, *sides, generator=generator),
        torch.tensor(999.0),
        torch.randn(batch, MAX_PROMPT_TOKENS, config.cross_attention_dim, generator=generator),
        torch.randn(batch, projection, generator=generator),
        torch.tensor([[512.0, 512.0, 0.0, 0.0, 512.0, 512.0]]).repeat(batch, 1),
    ]
