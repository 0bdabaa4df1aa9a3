"""The simulated NPU's fused operators: torch_npu's schemas, the arguments that its documentation allows, and results.

Source: docs/zh/custom_APIs/torch_npu of Ascend/op-plugin, and CANN's aclnn operators, as of August 2026. An argument
that they do not allow is an AssertionError here: real hardware may refuse it, or compute something else.
"""

# ruff: noqa: PLR0917 - the operators' own arguments

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

_A2, _A3, _310P = "Ascend910B", "Ascend910_93", "Ascend310P"
_HALVES = (torch.float16, torch.bfloat16)
_ALL_TOKENS = 2147483647


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """An operator: `compute` works on any device's tensors; `check` raises AssertionError for a chip and arguments."""

    schema: str
    check: Callable[..., None]
    compute: Callable[..., Any]
    chips: tuple[str, ...] = (_A2, _A3, _310P)


def _has_dtype(chip: str, *tensors: Tensor) -> None:
    allowed = (torch.float16, torch.float32) if chip.startswith(_310P) else (*_HALVES, torch.float32)
    for tensor in tensors:
        assert tensor.dtype in allowed, f"{tensor.dtype} on {chip}"


def _check_group_norm_silu(
    chip: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, group: int, eps: float = 1e-5
) -> None:
    _has_dtype(chip, x)
    assert 2 <= x.dim() <= 8
    assert x.numel() > 0
    assert group > 0
    assert x.shape[1] % group == 0
    assert eps > 0
    for parameter in (weight, bias):
        if parameter is not None:
            assert parameter.shape == (x.shape[1],)
            assert parameter.dtype in (x.dtype, torch.float32)


def _group_norm_silu(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, group: int, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    kept = x.new_empty(len(x), group)
    return F.silu(F.group_norm(x, group, weight, bias, eps)), kept, kept.clone()


def _check_geglu(chip: str, x: Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False) -> None:
    _has_dtype(chip, x)
    assert 1 <= x.dim() <= 8
    assert x.shape[dim] % 2 == 0
    assert approximate in (0, 1)
    assert not activate_left


def _geglu(x: Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False) -> tuple[Tensor, Tensor]:
    del activate_left
    left, gate = x.chunk(2, dim=dim)
    activated = F.gelu(gate, approximate="tanh" if approximate else "none")
    return left * activated, activated


def _check_gelu(chip: str, x: Tensor, approximate: str = "none") -> None:
    _has_dtype(chip, x)
    assert x.dim() <= 8
    assert approximate in ("none", "tanh")


def _check_fast_gelu(chip: str, x: Tensor) -> None:
    _has_dtype(chip, x)
    assert x.dim() <= 8


def _check_add_layer_norm(
    chip: str,
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    beta: Tensor,
    epsilon: float = 1e-5,
    additional_output: bool = False,
) -> None:
    _has_dtype(chip, x1, x2, gamma, beta)
    assert x1.shape == x2.shape
    assert gamma.shape == beta.shape == x1.shape[x1.dim() - gamma.dim() :]
    assert epsilon > 0
    assert additional_output, "the sum is computed only on demand"
    if chip.startswith(_310P):
        assert x1.dtype == x2.dtype == gamma.dtype == beta.dtype
        assert x1.shape[-1] * x1.itemsize >= 32
    else:
        assert gamma.dtype == beta.dtype
        assert gamma.dtype in (x1.dtype, torch.float32)


def _add_layer_norm(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    beta: Tensor,
    epsilon: float = 1e-5,
    additional_output: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    del additional_output
    total = x1 + x2
    kept = total.new_empty((*total.shape[:-1], 1), dtype=torch.float32)
    return F.layer_norm(total, gamma.shape, gamma, beta, epsilon), kept, kept.clone(), total


def _check_attention(query: Tensor, key: Tensor, value: Tensor, heads: int, layout: str, mask: Tensor | None) -> None:
    assert layout == "BSH"
    assert query.dim() == key.dim() == value.dim() == 3
    assert query.dtype == key.dtype == value.dtype
    assert key.shape == value.shape
    assert all(tensor.is_contiguous() for tensor in (query, key, value)), "it takes no tensors with gaps"
    width = query.shape[-1]
    assert width == key.shape[-1]
    assert width % heads == 0
    assert width // heads <= 512
    assert width // heads % 16 == 0
    assert heads <= 256
    assert width < 65535
    if mask is not None:
        assert mask.dtype in (torch.bool, torch.int8, torch.uint8)
        assert mask.shape == (query.shape[1], key.shape[1])
        assert not mask.all(dim=-1).any(), "a row with all values left out"


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float, mask: Tensor | None) -> Tensor:
    query, key, value = (part.view(*part.shape[:-1], heads, -1).transpose(1, 2) for part in (query, key, value))
    keep = None if mask is None else ~mask.bool()
    made = F.scaled_dot_product_attention(query, key, value, attn_mask=keep, scale=scale)
    return made.transpose(1, 2).flatten(2)


def _check_fused_infer_attention(
    chip: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    pre_tokens: int = _ALL_TOKENS,
    next_tokens: int = _ALL_TOKENS,
    input_layout: str = "BSH",
    sparse_mode: int = 0,
    inner_precise: int = 0,
) -> None:
    del chip
    assert query.dtype in _HALVES
    assert len(query) <= 65536
    assert (pre_tokens, next_tokens, sparse_mode, inner_precise) == (_ALL_TOKENS, _ALL_TOKENS, 0, 0)
    assert scale < 1, "the default of 1 is no head's"
    _check_attention(query, key, value, num_heads, input_layout, atten_mask)


def _fused_infer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    return _attention(query, key, value, num_heads, scale, atten_mask), query.new_zeros(1, dtype=torch.float32)


def _check_prompt_attention(
    chip: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    num_heads: int = 1,
    scale_value: float = 1.0,
    pre_tokens: int = _ALL_TOKENS,
    next_tokens: int = 0,
    input_layout: str = "BSH",
    sparse_mode: int = 0,
) -> None:
    assert query.dtype == torch.float16 or (not chip.startswith(_310P) and query.dtype in _HALVES)
    if chip.startswith(_310P):
        assert len(query) <= 128
        assert max(query.shape[1], key.shape[1]) <= 65535
    assert (pre_tokens, next_tokens, sparse_mode) == (_ALL_TOKENS, _ALL_TOKENS, 0), "by default it is causal"
    assert scale_value < 1, "the default of 1 is no head's"
    _check_attention(query, key, value, num_heads, input_layout, atten_mask)


def _prompt_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    num_heads: int = 1,
    scale_value: float = 1.0,
    **_: Any,
) -> Tensor:
    return _attention(query, key, value, num_heads, scale_value, atten_mask)


KERNELS: Mapping[str, Kernel] = {
    "npu_group_norm_silu": Kernel(
        schema="(Tensor input, Tensor? weight, Tensor? bias, int group, float eps=0.00001) -> (Tensor, Tensor, Tensor)",
        check=_check_group_norm_silu,
        compute=_group_norm_silu,
    ),
    "npu_geglu": Kernel(
        schema="(Tensor self, int dim=-1, int approximate=1, bool activate_left=False) -> (Tensor, Tensor)",
        check=_check_geglu,
        compute=_geglu,
    ),
    "npu_gelu": Kernel(
        schema='(Tensor self, *, str approximate="none") -> Tensor',
        check=_check_gelu,
        compute=F.gelu,
    ),
    "npu_fast_gelu": Kernel(
        schema="(Tensor self) -> Tensor",
        check=_check_fast_gelu,
        compute=lambda x: x * (1.702 * x).sigmoid(),
        chips=(_A2, _A3),
    ),
    "npu_add_layer_norm": Kernel(
        schema=(
            "(Tensor x1, Tensor x2, Tensor gamma, Tensor beta, float epsilon=1e-05, bool additional_output=False)"
            " -> (Tensor, Tensor, Tensor, Tensor)"
        ),
        check=_check_add_layer_norm,
        compute=_add_layer_norm,
    ),
    "npu_fused_infer_attention_score": Kernel(
        schema=(
            "(Tensor query, Tensor key, Tensor value, *, Tensor? atten_mask=None, int num_heads=1, float scale=1.0,"
            ' int pre_tokens=2147483647, int next_tokens=2147483647, str input_layout="BSH", int sparse_mode=0,'
            " int inner_precise=0) -> (Tensor, Tensor)"
        ),
        check=_check_fused_infer_attention,
        compute=_fused_infer_attention,
        chips=(_A2, _A3),
    ),
    "npu_prompt_flash_attention": Kernel(
        schema=(
            "(Tensor query, Tensor key, Tensor value, *, Tensor? atten_mask=None, int num_heads=1,"
            " float scale_value=1.0, int pre_tokens=2147483647, int next_tokens=0,"
            ' str input_layout="BSH", int sparse_mode=0) -> Tensor'
        ),
        check=_check_prompt_attention,
        compute=_prompt_attention,
    ),
}
"""The operators by name, as far as inference with SDXL needs their arguments."""
