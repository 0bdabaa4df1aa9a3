"""Prompts: to tokens, and to what the UNet is conditioned on. Nothing is encoded twice while the cache has it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cachetools import LRUCache

from app.pipelines.base import MAX_PROMPT_TOKENS, CacheStatistics

EncodeText = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""A text encoder: token ids of shape (1, 77) to its last but one hidden state (1, 77, width) and its pooled output."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedPrompt:
    """What the UNet is conditioned on.

    `embeds` has the shape (1, 77, width of both encoders), `pooled` (1, width of the second one's projection). `tokens`
    counts the prompt's CLIP tokens before the cut.
    """

    embeds: torch.Tensor
    pooled: torch.Tensor
    tokens: int

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensors take."""
        return self.embeds.nbytes + self.pooled.nbytes


class PromptEncoder:
    """Encodes prompts with SDXL's two text encoders, and keeps what was encoded last, up to `cache_bytes`.

    On the device thread alone; the statistics may be read from any.
    """

    def __init__(
        self, tokenizers: Sequence[Any], encoders: Sequence[EncodeText], device: torch.device, *, cache_bytes: int
    ) -> None:
        self._tokenizers = tokenizers
        self._encoders = encoders
        self._device = device
        self._cache: LRUCache[str, EncodedPrompt] = LRUCache(cache_bytes, getsizeof=_size_bytes)
        self._hits = self._misses = 0

    @property
    def statistics(self) -> CacheStatistics:
        """How the cache does."""
        return CacheStatistics(hits=self._hits, misses=self._misses, size_bytes=int(self._cache.currsize))

    def __call__(self, prompt: str) -> EncodedPrompt:
        """Return the prompt's embeddings. Prompts are encoded one at a time, so that none depends on its neighbours."""
        known = self._cache.get(prompt)
        if known is not None:
            self._hits += 1
            return known
        self._misses += 1
        encoded = self._encode(prompt)
        if encoded.size_bytes <= self._cache.maxsize:
            self._cache[prompt] = encoded
        return encoded

    def clear(self) -> None:
        """Forget every prompt, and what was counted."""
        self._cache.clear()
        self._hits = self._misses = 0

    def _encode(self, prompt: str) -> EncodedPrompt:
        ids = [tokenizer(prompt).input_ids for tokenizer in self._tokenizers]
        states, pooled = zip(
            *(
                encode(_fitted(prompt_ids, tokenizer.pad_token_id).to(self._device))
                for prompt_ids, tokenizer, encode in zip(ids, self._tokenizers, self._encoders, strict=True)
            ),
            strict=True,
        )
        # The pooled output that SDXL is conditioned on is the second encoder's.
        return EncodedPrompt(embeds=torch.cat(states, dim=-1), pooled=pooled[-1], tokens=max(map(len, ids)))


def _size_bytes(encoded: EncodedPrompt) -> int:
    return encoded.size_bytes


def _fitted(ids: list[int], pad_id: int) -> torch.Tensor:
    """Cut or pad token ids with their start and end marks to CLIP's length; of a cut prompt the end mark stays."""
    cut = ids if len(ids) <= MAX_PROMPT_TOKENS else [*ids[: MAX_PROMPT_TOKENS - 1], ids[-1]]
    return torch.tensor([cut + [pad_id] * (MAX_PROMPT_TOKENS - len(cut))])
