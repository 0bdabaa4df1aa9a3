"""Sequences of operations for which a device may have one fused kernel, and torch's own form of each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit


def keep_address(tensor: Tensor) -> None:
    """Tell torch.compile that a tensor stays where it is. Else a graph copies it before each call, as an input."""
    torch._dynamo.mark_static_address(tensor)  # noqa: SLF001 - documented


def group_norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Return SiLU of the group norm of x, of shape (batch, channels, height, width)."""
    return F.silu(norm(x), inplace=True)


def geglu(x: Tensor) -> Tensor:
    """Return the first half of x's last dimension times the exact GELU of the second."""
    values, gate = x.chunk(2, dim=-1)
    return values * F.gelu(gate)


def gelu(x: Tensor) -> Tensor:
    """Return the exact GELU."""
    return F.gelu(x)


def quick_gelu(x: Tensor) -> Tensor:
    """Return x times the sigmoid of 1.702 x, as OpenAI's CLIP was trained."""
    return x * (1.702 * x).sigmoid()


def add_layer_norm(norm: nn.LayerNorm, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of two tensors, and its layer norm."""
    total = x + added
    return total, norm(total)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, *, is_causal: bool = False) -> Tensor:
    """Return the attention of several heads. All tensors have the shape (batch, tokens, heads x size of a head)."""
    query, key, value = (part.view(*part.shape[:-1], heads, -1).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal).transpose(1, 2).flatten(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operators:
    """One function for each sequence; by default torch's own."""

    group_norm_silu: Callable[[nn.GroupNorm, Tensor], Tensor] = group_norm_silu
    geglu: Callable[[Tensor], Tensor] = geglu
    gelu: Callable[[Tensor], Tensor] = gelu
    quick_gelu: Callable[[Tensor], Tensor] = quick_gelu
    add_layer_norm: Callable[[nn.LayerNorm, Tensor, Tensor], tuple[Tensor, Tensor]] = add_layer_norm
    attention: Callable[..., Tensor] = attention
