"""Networks on the CPU: recorded once, so that Python is not in the way, and with the same bits alone and in a batch.

A network of many small layers spends half of its time in Python (diffusers' UNet of 12.6 million parameters at 128x128,
one thread: 39 ms, and 17 ms recorded). So the operations are recorded by `torch.jit.trace`, which takes a second or so,
where compiling takes minutes. The recording holds for every batch and every size.

Rounding on the CPU depends on the batch's shape wherever a library chooses another kernel, another order of sums, or
another place to leave vectors for single numbers. Those operations are recorded so that they take one sample at a time:

- convolutions, whose kernel torch chooses by the batch's size too (`ConvParams::use_mkldnn` in its Convolution.cpp);
- Linears: MKL chooses the kernel of a matrix product, and cuts its sums up among threads, by the number of all rows
  (seen with AVX-512 for few rows and long sums, with AVX2 for many shapes);
- group norms in the channels-last layout, which may add up by thread;
- functions such as SiLU, whose last elements are computed without vectors.

Attention, layer norms, sums and products take the whole batch: what they make of a sample has been seen to be the same,
and is looked at again at each start.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own habit
from torch.overrides import TorchFunctionMode

from app.pipelines.base import MAX_PROMPT_TOKENS
from app.pipelines.networks.plain import Networks


def trace(function: Callable[..., Any], example: Sequence[torch.Tensor], *, exact: bool) -> Callable[..., Any]:
    """Record a function of tensors on the CPU; the recording takes tensors of any batch and size.

    Args:
        function: Calls networks whose weights want no gradients; they become part of the recording, uncopied.
        example: What to call it with. Sizes that are 1, or equal to each other by chance, can be taken for constants.
        exact: Whether a sample's result may not depend on the rest of the batch, to the last bit.
    """
    with warnings.catch_warnings(), torch.inference_mode():
        # The tracer names every number that Python reads of a tensor: checks of channels, which are constant indeed.
        warnings.simplefilter("ignore")
        with _Recorded(exact=exact):
            recording = torch.jit.trace(  # type: ignore[no-untyped-call] # torch types it so
                function, tuple(example), check_trace=False, _store_inputs=False
            )

    def call(*tensors: torch.Tensor) -> Any:
        # What TorchScript would optimize takes seconds at the first calls, and saves less than a tenth.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined] # a public name that it forgets to export
            return recording(*tensors)

    return call


class _Recorded(TorchFunctionMode):
    """Replaces what is recorded: what does nothing by nothing, and what would round by the batch by loops over it."""

    def __init__(self, *, exact: bool) -> None:
        super().__init__()
        self._replaced = _one_by_one() if exact else {F.silu: torch.jit.script(_silu_together)}
        self._normed: Any = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DIVISIONS and not isinstance(args[1], torch.Tensor) and args[1] == 1:
            return args[0]  # diffusers scales by 1 after every block
        if func is F.dropout:
            return args[0]
        if func is F.silu and args[0] is self._normed:
            kwargs["inplace"] = True  # after a group norm nobody else reads what it made
        result = self._replaced.get(func, func)(*args, **kwargs)
        self._normed = result if func is F.group_norm else None
        return result


_DIVISIONS = (torch.Tensor.div, torch.Tensor.__truediv__, torch.div)


def _one_by_one() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what operations are replaced by, as TorchScript, which keeps the loops over the batch in the recording."""
    conv2d = torch.jit.script(_conv2d)

    def conv2d_by_pairs(  # noqa: PLR0917 - torch's order
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        return conv2d(x, weight, bias, _pair(stride), _pair(padding), _pair(dilation), groups)

    return {
        F.linear: torch.jit.script(_linear),
        F.conv2d: conv2d_by_pairs,
        F.group_norm: torch.jit.script(_group_norm),
        F.silu: torch.jit.script(_silu),
        F.gelu: torch.jit.script(_gelu),
        torch.sin: torch.jit.script(_sin),
        torch.cos: torch.jit.script(_cos),
    }


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


# TorchScript: loops, torch's own names of arguments, and `Optional` where Python would write `| None`.
# ruff: noqa: A002


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    if input.size(0) == 1:
        return F.linear(input, weight, bias)
    return torch.cat([F.linear(input[i : i + 1], weight, bias) for i in range(input.size(0))])


def _conv2d(  # noqa: PLR0917 - torch's order
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    if input.size(0) == 1:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return torch.cat(
        [torch.conv2d(input[i : i + 1], weight, bias, stride, padding, dilation, groups) for i in range(input.size(0))]
    )


def _group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    if input.size(0) == 1 or input.is_contiguous():
        return F.group_norm(input, num_groups, weight, bias, eps)
    return torch.cat([F.group_norm(input[i : i + 1], num_groups, weight, bias, eps) for i in range(input.size(0))])


def _many_pixels(input: torch.Tensor) -> bool:
    """Tell whether samples have more than one pixel, so that they can be written in place without a change of layout.

    A single pixel lies channels first and channels last at once, and a convolution takes it for what its strides say.
    SiLU out of place makes them channels first; in place it leaves them as they are, and the next convolution rounds
    otherwise than in diffusers (image to image with the demo model, whose UNet halves 128x128 down to one pixel).
    """
    return input.numel() > input.size(0) * input.size(1)


def _silu_together(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return F.silu(input, inplace=inplace and _many_pixels(input))


def _silu(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    inplace = inplace and _many_pixels(input)
    if input.size(0) == 1:
        return F.silu(input, inplace=inplace)
    if inplace:
        for i in range(input.size(0)):
            F.silu(input[i : i + 1], inplace=True)
        return input
    return torch.cat([F.silu(input[i : i + 1]) for i in range(input.size(0))])


def _gelu(input: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    if input.size(0) == 1:
        return F.gelu(input, approximate=approximate)
    return torch.cat([F.gelu(input[i : i + 1], approximate=approximate) for i in range(input.size(0))])


def _sin(input: torch.Tensor) -> torch.Tensor:
    if input.size(0) == 1:
        return torch.sin(input)
    return torch.cat([torch.sin(input[i : i + 1]) for i in range(input.size(0))])


def _cos(input: torch.Tensor) -> torch.Tensor:
    if input.size(0) == 1:
        return torch.cos(input)
    return torch.cat([torch.cos(input[i : i + 1]) for i in range(input.size(0))])


_EXAMPLE_SIDES = (9, 11)
"""Latents to record with: odd sides take the way that holds for all; even ones would fix where sides are doubled."""

_SELF_TEST_SIDES = (8, 12)

_SELF_TEST_BATCH = 3


def traced_networks(pipe: Any, plain: Networks, *, exact: bool) -> Networks:
    """Return the networks of a pipeline in fp32 on the CPU, recorded; the UNet as exactly as is asked for."""
    for network in (pipe.text_encoder, pipe.text_encoder_2, pipe.unet, pipe.vae):
        network.requires_grad_(requires_grad=False)
    example = _noise_inputs(pipe, batch=2, sides=_EXAMPLE_SIDES)
    latents = example[0]
    scale = pipe.vae_scale_factor
    pixels = torch.zeros(1, 3, _EXAMPLE_SIDES[0] * scale, _EXAMPLE_SIDES[1] * scale)
    ids = torch.zeros(1, MAX_PROMPT_TOKENS, dtype=torch.long)
    return Networks(
        encode_text=tuple(trace(encode, [ids], exact=False) for encode in plain.encode_text),
        predict_noise=trace(plain.predict_noise, example, exact=exact),
        encode=trace(plain.encode, [pixels], exact=False),
        decode=trace(plain.decode, [latents[:1]], exact=False),
    )


def predicts_alike_in_a_batch(pipe: Any, networks: Networks) -> bool:
    """Tell whether the UNet, on the CPU, makes the same bits of a sample alone and in a batch. Takes moments."""
    latents, timestep, *conditions = _noise_inputs(pipe, batch=_SELF_TEST_BATCH, sides=_SELF_TEST_SIDES)
    with torch.inference_mode():
        together = networks.predict_noise(latents, timestep, *conditions)
        return all(
            torch.equal(
                networks.predict_noise(
                    latents[i : i + 1], timestep, *(condition[i : i + 1] for condition in conditions)
                ),
                together[i : i + 1],
            )
            for i in range(_SELF_TEST_BATCH)
        )


def _noise_inputs(pipe: Any, *, batch: int, sides: tuple[int, int]) -> list[torch.Tensor]:
    """Return inputs of the UNet, all samples different."""
    chance = torch.Generator("cpu").manual_seed(0)
    config, projection = pipe.unet.config, pipe.text_encoder_2.config.projection_dim
    return [
        torch.randn(batch, config.in_channels, *sides, generator=chance),
        torch.tensor(999.0),
        torch.randn(batch, MAX_PROMPT_TOKENS, config.cross_attention_dim, generator=chance),
        torch.randn(batch, projection, generator=chance),
        torch.tensor([[512.0, 512.0, 0.0, 0.0, 512.0, 512.0]]).repeat(batch, 1),
    ]
