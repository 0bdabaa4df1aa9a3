"""Prompts: to tokens, and to the embeddings that the UNet is conditioned on. A cache keeps the latest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cachetools import LRUCache, cached
from torch import Tensor

from app.pipelines.base import MAX_PROMPT_TOKENS, CacheStatistics
from app.pipelines.prompt_options import DEFAULT_PROMPT_OPTIONS, PromptOptions
from app.pipelines.prompt_syntax import Section, sections_of
from app.pipelines.prompt_windows import Token, Window, Windows, windows_of

EncodeText = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""A text encoder: token ids of shape (1, 77) to its last but one hidden state (1, 77, width) and its pooled output."""

_COMMA = ",</w>"
"""The comma in the vocabulary of CLIP's tokenizers."""

_MAX_FACTOR = 10.0
"""Bound of the factor that restores a mean. Negative weights can make the mean almost 0; the states would overflow."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedPrompt:
    """What the UNet is conditioned on.

    `embeds` has the shape (1, 77 for each window, width of both encoders), `pooled` (1, width of the second encoder's
    projection). `tokens` counts the CLIP tokens of the whole prompt, `prompt_tokens` those that are used, both with the
    start and end marks of the used windows.
    """

    embeds: torch.Tensor
    pooled: torch.Tensor
    tokens: int
    prompt_tokens: int


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
        self._commas = [tokenizer.get_vocab().get(_COMMA) for tokenizer in tokenizers]
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

    def __call__(self, prompt: str, options: PromptOptions = DEFAULT_PROMPT_OPTIONS) -> EncodedPrompt:
        """Return the prompt's embeddings. Prompts are encoded one at a time, so that none depends on its neighbours.

        Raises:
            EmphasisError: A weight is too large. The wire models have checked that.
        """
        return self._cached(prompt, options)

    def clear(self) -> None:
        """Forget all prompts and the statistics."""
        self._cached.cache_clear()

    def _encode(self, prompt: str, options: PromptOptions) -> EncodedPrompt:
        read = self._read(prompt, options)
        number = max(len(windows.used) for windows in read)
        states, pooled = [], torch.empty(0)
        for encode, ids, windows in zip(self._encoders, self._ids(read, number), read, strict=True):
            encoded = [encode(one) for one in ids]
            weighted = self._emphasize([state for state, _ in encoded], windows.used)
            states.append(weighted[0] if number == 1 else torch.cat(weighted, dim=1))
            _, pooled = encoded[0]  # SDXL is conditioned on the second encoder's; several windows have the first one's
        tokens = max(windows.tokens for windows in read)
        return EncodedPrompt(
            embeds=torch.cat(states, dim=-1),
            pooled=pooled,
            tokens=tokens + max(windows.dropped_tokens for windows in read),
            prompt_tokens=tokens,
        )

    def _read(self, prompt: str, options: PromptOptions) -> list[Windows[int]]:
        """Return the prompt's windows for each encoder."""
        sections = sections_of(prompt, options.syntax)
        read = []
        for tokenizer, comma in zip(self._tokenizers, self._commas, strict=True):
            read.append(windows_of(_tokens(sections, tokenizer), options.mode, comma=comma))
        return read

    def _ids(self, read: Sequence[Windows[int]], number: int) -> Sequence[Sequence[Tensor]]:
        """Return for each encoder the ids of that many windows on the device, each of shape (1, 77).

        For SDXL's second tokenizer alone, each "!" is a token of its own. So one encoder may have fewer windows than
        the other: empty ones follow.
        """
        rows = []
        for windows, tokenizer in zip(read, self._tokenizers, strict=True):
            empty: list[Window[int]] = [()] * (number - len(windows.used))
            rows += [_row(window, tokenizer) for window in (*windows.used, *empty)]
        received = torch.split(self._receive(torch.tensor(rows)), 1)  # in one copy
        return [received[place : place + number] for place in range(0, len(received), number)]

    def _emphasize(self, states: Sequence[Tensor], windows: Sequence[Window[int]]) -> list[Tensor]:
        """Multiply each token's state by its weight, and then the window's states so that their mean is as before.

        This is Stable Diffusion WebUI's default, `Original`, also for SDXL: for each encoder and window, with the
        padding, and without effect on the pooled output. Source: modules/sd_emphasis.py and sd_hijack_clip.py of
        AUTOMATIC1111/stable-diffusion-webui.
        """
        emphasized = list(states)
        for place, window in enumerate(windows):
            if all(token.weight == 1 for token in window):
                continue
            weights = torch.ones(MAX_PROMPT_TOKENS)
            weights[1 : len(window) + 1] = torch.tensor([token.weight for token in window])
            state = states[place].float()
            weighted = state * self._receive(weights)[None, :, None]
            factor = (state.mean() / weighted.mean()).clamp(-_MAX_FACTOR, _MAX_FACTOR)
            emphasized[place] = (weighted * factor).to(states[place].dtype)
        return emphasized


def _tokens(sections: Sequence[Section], tokenizer: Any) -> list[list[Token[int]]]:
    """Return each section's tokens without marks."""
    return [
        [Token(number, part.weight) for part in section for number in tokenizer(part.text).input_ids[1:-1]]
        for section in sections
    ]


def _row(window: Window[int], tokenizer: Any) -> list[int]:
    """Return a window's ids with their marks, padded to CLIP's length."""
    ids = [tokenizer.bos_token_id, *(token.id for token in window), tokenizer.eos_token_id]
    return ids + [tokenizer.pad_token_id] * (MAX_PROMPT_TOKENS - len(ids))
