"""Prompts: to tokens, and to the embeddings that the UNet is conditioned on. A cache keeps the latest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cachetools import LRUCache, cached

from app.pipelines.base import MAX_PROMPT_TOKENS, CacheStatistics

EncodeText = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""A text encoder: token ids of shape (1, 77) to its last but one hidden state (1, 77, width) and its pooled output."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedPrompt:
    """What the UNet is conditioned on.

    `embeds` has the shape (1, 77, width of both encoders), `pooled` (1, width of the second encoder's projection).
    `tokens` counts the prompt's CLIP tokens before the cut.
    """

    embeds: torch.Tensor
    pooled: torch.Tensor
    tokens: int


class PromptEncoder:
    """Encodes prompts with SDXL's two text encoders, and keeps the latest, up to `cache_bytes`.

    `receive` copies the tokens to the device. For the device thread; any thread may read the statistics.
    """

    def __init__(
        self,
        tokenizers: Sequence[Any],
        encoders: Sequence[EncodeText],
        receive: Callable[[torch.Tensor], torch.Tensor],
        *,
        cache_bytes: int,
    ) -> None:
        self._tokenizers = tokenizers
        self._encoders = encoders
        self._receive = receive
        cache: LRUCache[Any, EncodedPrompt] = LRUCache(
            cache_bytes, getsizeof=lambda encoded: encoded.embeds.nbytes + encoded.pooled.nbytes
        )
        self._cached = cached(cache, info=True)(self._encode)

    @property
    def statistics(self) -> CacheStatistics:
        info = self._cached.cache_info()
        return CacheStatistics(hits=info.hits, misses=info.misses, size_bytes=int(info.currsize))

    def __call__(self, prompt: str) -> EncodedPrompt:
        """Return the prompt's embeddings. Prompts are encoded one at a time, so that none depends on its neighbours."""
        return self._cached(prompt)

    def clear(self) -> None:
        """Forget all prompts and the statistics."""
        self._cached.cache_clear()

    def _encode(self, prompt: str) -> EncodedPrompt:
        ids = [tokenizer(prompt).input_ids for tokenizer in self._tokenizers]
        fitted = [_fitted(own, tokenizer.pad_token_id) for own, tokenizer in zip(ids, self._tokenizers, strict=True)]
        received = torch.split(self._receive(torch.tensor(fitted)), 1)  # in one copy
        encoded = [encode(own) for own, encode in zip(received, self._encoders, strict=True)]
        embeds = torch.cat([state for state, _ in encoded], dim=-1)
        _, pooled = encoded[-1]  # SDXL is conditioned on the second encoder's pooled output
        return EncodedPrompt(embeds=embeds, pooled=pooled, tokens=max(map(len, ids)))


def _fitted(ids: list[int], pad_id: int) -> list[int]:
    """Cut or pad token ids with their start and end marks to CLIP's length; a cut prompt keeps its end mark."""
    cut = ids if len(ids) <= MAX_PROMPT_TOKENS else [*ids[: MAX_PROMPT_TOKENS - 1], ids[-1]]
    return cut + [pad_id] * (MAX_PROMPT_TOKENS - len(cut))
