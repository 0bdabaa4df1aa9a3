"""Fused operators of torch_npu for inference: which chip has them, for which arguments, and whether they compute right.

Source of every rule: the documentation of Ascend/op-plugin (docs/zh/custom_APIs/torch_npu) and of CANN's aclnn
operators, as of August 2026. Operators of the older kind (aclop) are left out, because graphs cannot have them.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from app.errors import DeviceLostError, DeviceOutOfMemoryError, first_line
from app.pipelines.base import MAX_PROMPT_TOKENS
from app.pipelines.device_errors import device_errors
from app.pipelines.networks import operators as plain
from app.pipelines.networks.operators import Operators, keep_address
from app.settings import FUSED_OPERATORS

_log = logging.getLogger(__name__)

Family = Literal["A2", "310P"]
"""Atlas A2 and A3 (chips 910B and 910_93) have the same operators."""

_FAMILIES: Mapping[str, Family] = {"Ascend910B": "A2", "Ascend910_93": "A2", "Ascend310P": "310P"}
"""Families by the beginning of the chip's name."""

_DTYPES: Mapping[Family, Collection[torch.dtype]] = {
    "A2": (torch.float16, torch.bfloat16, torch.float32),
    "310P": (torch.float16, torch.float32),
}
"""Number formats of all operators but attention."""

_ATTENTION_DTYPES: Mapping[Family, Collection[torch.dtype]] = {
    "A2": (torch.float16, torch.bfloat16),
    "310P": (torch.float16,),
}

_EPSILONS = 8
"""A sum of many values may deviate from the result in fp32 by this many roundings of the largest value."""

_ELEMENTWISE = ("geglu", "gelu", "quick_gelu")
_ELEMENTWISE_EPSILONS = 4
"""A value that depends on one or two others may deviate by this many roundings of itself, and a little more."""

_LITTLE: Mapping[torch.dtype, float] = {torch.float16: 2e-4, torch.bfloat16: 1e-3, torch.float32: 5e-5}
"""So that in fp16 GELU's approximation by tanh, which deviates by up to 4.7e-4, is found."""


@dataclass(frozen=True, slots=True)
class FusedOperators:
    """The operators to compute with; and of the fused ones, which are used, and why others are not."""

    operators: Operators = field(default_factory=Operators)
    used: Sequence[str] = ()
    not_used: Mapping[str, str] = field(default_factory=dict)


def family_of(chip: str) -> Family | None:
    """Return the family of a chip, such as `Ascend910B4`, or None if its fused operators are not known here."""
    return next((family for beginning, family in _FAMILIES.items() if chip.startswith(beginning)), None)


def fused_operators(
    wanted: Collection[str], chip: str, device: torch.device, dtypes: Collection[torch.dtype]
) -> FusedOperators:
    """Return the operators of these names that the chip has and that compute the right thing on this device.

    Each is called with small tensors in each of `dtypes`, and compared with torch's result in fp32 on the host. An
    operator that is missing, rejects its documented arguments or deviates is not used; that is logged.

    Raises:
        DeviceLostError: The device failed meanwhile.
    """
    family = family_of(chip)
    found: dict[str, Callable[..., Any]] = {}
    not_used: dict[str, str] = {}
    for name in filter(wanted.__contains__, FUSED_OPERATORS):
        if family is None or (family, name) in _MISSING:
            not_used[name] = f"{chip} has none that is documented"
            continue
        taken = [dtype for dtype in dtypes if dtype in _dtypes_of(name, family)]
        if not taken:
            not_used[name] = f"it does not take {' and '.join(map(_name, dtypes))}"
            continue
        try:
            with device_errors(device), torch.inference_mode():
                fused = _make(name, family, device)
                fault = _fault(name, fused, device, taken)
                found[name] = fused
        except (DeviceLostError, DeviceOutOfMemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever torch_npu raises for an operator that it does not have
            fault = first_line(error)
        if fault:
            found.pop(name, None)
            not_used[name] = fault
            _log.warning("the fused operator %s is not used: %s", name, fault)
    return FusedOperators(Operators(**found), tuple(found), not_used)


# The operators. Each computes plainly what its fused form does not take.

_MISSING = {("310P", "quick_gelu")}
"""An aclop on 310P (FastGeluNpuOpApi.cpp of op-plugin)."""


def _make(name: str, family: Family, device: torch.device) -> Callable[..., Any]:
    if name == "attention":
        tokens = MAX_PROMPT_TOKENS
        mask = torch.ones(tokens, tokens, dtype=torch.bool).triu(1).to(device)  # True is left out
        keep_address(mask)
        return partial(_attention_a2 if family == "A2" else _attention_310p, mask)
    return partial(_OPERATORS[name], _DTYPES[family])


_LARGEST_HEAD, _HEAD_MULTIPLE, _MOST_HEADS, _WIDEST = 512, 16, 256, 65534


def _attention_a2(
    causal_mask: Tensor, query: Tensor, key: Tensor, value: Tensor, heads: int, *, is_causal: bool = False
) -> Tensor:
    """The operator for inference, which graphs may have; npu_fusion_attention is for training. No tensor is copied."""
    size, mask = query.shape[-1] // heads, causal_mask if is_causal else None
    if not _fits("A2", query, heads, mask):
        return plain.attention(query, key, value, heads, is_causal=is_causal)
    result: Tensor = torch.ops.npu.npu_fused_infer_attention_score(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        num_heads=heads,
        scale=size**-0.5,
        input_layout="BSH",
        atten_mask=mask,
    )[0]
    return result


_ALL_TOKENS = 2147483647
_MOST_TOKENS_310P, _LARGEST_BATCH_310P = 65535, 128


def _attention_310p(
    causal_mask: Tensor, query: Tensor, key: Tensor, value: Tensor, heads: int, *, is_causal: bool = False
) -> Tensor:
    """The only fused attention that 310P has; torch's own becomes five operators there."""
    size, mask = query.shape[-1] // heads, causal_mask if is_causal else None
    is_large = len(query) > _LARGEST_BATCH_310P or max(query.shape[1], key.shape[1]) > _MOST_TOKENS_310P
    if is_large or not _fits("310P", query, heads, mask):
        return plain.attention(query, key, value, heads, is_causal=is_causal)
    result: Tensor = torch.ops.npu.npu_prompt_flash_attention(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        num_heads=heads,
        scale_value=size**-0.5,
        input_layout="BSH",
        atten_mask=mask,
        next_tokens=_ALL_TOKENS,  # by default 0, which would be causal
    )
    return result


def _fits(family: Family, query: Tensor, heads: int, mask: Tensor | None) -> bool:
    """Tell whether the documentation allows these arguments on every chip of the family."""
    width = query.shape[-1]
    size = width // heads
    is_allowed = size <= _LARGEST_HEAD and size % _HEAD_MULTIPLE == 0 and heads <= _MOST_HEADS and width <= _WIDEST
    return is_allowed and query.dtype in _ATTENTION_DTYPES[family] and (mask is None or query.shape[1] == len(mask))


def _group_norm_silu(dtypes: Collection[torch.dtype], norm: nn.GroupNorm, x: Tensor) -> Tensor:
    if x.dtype not in dtypes or not _weights_fit(norm, x):
        return plain.group_norm_silu(norm, x)
    result: Tensor = torch.ops.npu.npu_group_norm_silu(x, norm.weight, norm.bias, norm.num_groups, norm.eps)[0]
    return result


def _geglu(dtypes: Collection[torch.dtype], x: Tensor) -> Tensor:
    """The exact GELU: by default, and in diffusers, the operator approximates it by tanh."""
    if x.dtype not in dtypes:
        return plain.geglu(x)
    result: Tensor = torch.ops.npu.npu_geglu(x, dim=-1, approximate=0)[0]
    return result


def _gelu(dtypes: Collection[torch.dtype], x: Tensor) -> Tensor:
    """The exact GELU: torch's own becomes its approximation by tanh (GeluOutKernelNpuOpApi.cpp of op-plugin)."""
    if x.dtype not in dtypes:
        return plain.gelu(x)
    result: Tensor = torch.ops.npu.npu_gelu(x, approximate="none")
    return result


def _quick_gelu(dtypes: Collection[torch.dtype], x: Tensor) -> Tensor:
    if x.dtype not in dtypes:
        return plain.quick_gelu(x)
    result: Tensor = torch.ops.npu.npu_fast_gelu(x)
    return result


_LEAST_NORM_BYTES = 32
"""Of a row, on 310P."""


def _add_layer_norm(
    dtypes: Collection[torch.dtype], norm: nn.LayerNorm, x: Tensor, added: Tensor
) -> tuple[Tensor, Tensor]:
    is_short = x.shape[-1] * x.itemsize < _LEAST_NORM_BYTES
    if x.dtype not in dtypes or added.dtype != x.dtype or norm.weight.dtype != x.dtype or is_short:
        return plain.add_layer_norm(norm, x, added)
    normed, _, _, total = torch.ops.npu.npu_add_layer_norm(
        x, added, norm.weight, norm.bias, norm.eps, additional_output=True
    )
    return total, normed


def _weights_fit(norm: nn.GroupNorm, x: Tensor) -> bool:
    return norm.affine and norm.weight.dtype in (x.dtype, torch.float32)


_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "group_norm_silu": _group_norm_silu,
    "geglu": _geglu,
    "gelu": _gelu,
    "quick_gelu": _quick_gelu,
    "add_layer_norm": _add_layer_norm,
}


# The check.


def _fault(name: str, fused: Callable[..., Any], device: torch.device, dtypes: Collection[torch.dtype]) -> str:
    """Call an operator with small tensors; return what is wrong with its results, or an empty text."""
    for dtype in dtypes:
        for arguments, options in _samples(name, dtype):
            wanted = _parts(getattr(plain, name)(*_moved(arguments, torch.device("cpu"), torch.float32), **options))
            made = _parts(fused(*_moved(arguments, device, dtype), **options))
            for one, other in zip(wanted, made, strict=True):
                if one.shape != other.shape:
                    return f"its result has the shape {tuple(other.shape)} instead of {tuple(one.shape)}"
                deviation = (one - other.float().cpu()).abs()
                allowed = _allowed(name, one, dtype)
                if not (deviation <= allowed).all():  # NaN is not either
                    worst = int((deviation / allowed).nan_to_num(torch.inf).argmax())
                    return (
                        f"in {_name(dtype)} it deviates by {deviation.flatten()[worst]:.2g} from "
                        f"{one.flatten()[worst]:.2g}, {allowed.flatten()[worst]:.2g} is allowed"
                    )
    return ""


def _allowed(name: str, result: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how much each value may deviate."""
    eps = torch.finfo(dtype).eps
    if name in _ELEMENTWISE:
        return _LITTLE[dtype] + _ELEMENTWISE_EPSILONS * eps * result.abs()
    return torch.full_like(result, _EPSILONS * eps * float(result.abs().max()))


def _dtypes_of(name: str, family: Family) -> Collection[torch.dtype]:
    return (_ATTENTION_DTYPES if name == "attention" else _DTYPES)[family]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _samples(name: str, dtype: torch.dtype) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield arguments and options of the kinds that SDXL's networks have, on the host."""
    chance = torch.Generator("cpu").manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance).to(dtype).float()

    def with_weights(norm: Any) -> Any:
        norm.weight.data, norm.bias.data = 1 + 0.1 * noise(*norm.weight.shape), 0.1 * noise(*norm.bias.shape)
        return norm.requires_grad_(requires_grad=False)

    match name:
        case "attention":
            yield (noise(1, 64, 640), noise(1, 64, 640), noise(1, 64, 640), 10), {}
            yield (noise(2, 64, 640), noise(2, 77, 640), noise(2, 77, 640), 10), {}
            yield (noise(1, 77, 768), noise(1, 77, 768), noise(1, 77, 768), 12), {"is_causal": True}
            yield (noise(1, 256, 512), noise(1, 256, 512), noise(1, 256, 512), 1), {}  # the VAE's
        case "group_norm_silu":
            yield (with_weights(nn.GroupNorm(32, 320, eps=1e-5)), noise(1, 320, 16, 16)), {}
            yield (with_weights(nn.GroupNorm(32, 128, eps=1e-6)), noise(2, 128, 24, 16)), {}
        case "add_layer_norm":
            yield (with_weights(nn.LayerNorm(640)), noise(2, 64, 640), noise(2, 64, 640)), {}
        case _:
            steps = torch.linspace(-6, 6, 2 * 64 * 640).to(dtype).float().reshape(2, 64, 640)
            yield (torch.cat([noise(2, 64, 640), steps], dim=-1) if name == "geglu" else steps,), {}


def _moved(arguments: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Iterator[Any]:
    for argument in arguments:
        is_movable = isinstance(argument, Tensor | nn.Module)
        yield argument.to(device, dtype) if is_movable else argument


def _parts(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
