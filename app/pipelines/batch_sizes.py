"""How many pictures go through the networks at once: sizes that change no picture, and of these the faster ones."""

import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from app.pipelines.base import BatchKey, GenerationParams, Mode, buckets, effective_img2img_steps

_WORTHWHILE = 0.95
"""A larger batch must take at most this share of the smaller one's time for each picture. Otherwise the first requests
of a batch would only wait for its last."""

_RETRY_S = 600
"""Seconds after which a size that did not pay is tried again: the machine may have been busy."""

_MAX_KINDS = 256

_Kind = tuple[Mode, int, int, int]
"""The seconds of a picture depend on these: mode, width and height in pixels, effective steps."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """The least seconds for each picture of batches of one size, and the monotonic time of the newest measurement."""

    least_s: float
    at: float


_UNKNOWN = _Measured(math.inf, -math.inf)


class BatchSizes:
    """How many pictures go through the networks at once. For the device thread; `limit` is for any thread.

    Without `sizes`, a batch has one of the sizes that are found to change no picture while warming up. Which of the
    sizes pay for a kind of picture is learned from the calls: a size of 2, 4, 8, ... is used if the next smaller one
    takes longer for each picture, and is tried if it has not been measured. The first call of a size is no
    measurement, because it may compile.
    """

    def __init__(self, sizes: Collection[int] | None) -> None:
        self._sizes = sizes
        self._learned: dict[BatchKey, set[int]] = {}
        self._measured: dict[_Kind, dict[int, _Measured]] = {}
        self.learning = sizes is None

    def learn(self, key: BatchKey, pictures: int) -> None:
        """Record that a batch of this size gives the pictures that each has alone."""
        self._learned.setdefault(_shape(key), set()).add(pictures)

    def measure(self, key: BatchKey, pictures: int, seconds: float) -> None:
        """Record the seconds of a call that made this many pictures of a kind."""
        kind = _kind(key)
        if kind not in self._measured and len(self._measured) >= _MAX_KINDS:
            del self._measured[next(iter(self._measured))]
        of_kind = self._measured.setdefault(kind, {})
        size = 1 << pictures.bit_length() - 1  # 3 pictures tell what 2 take, rather than what 4 take
        least_s = min(of_kind[size].least_s, seconds / pictures) if size in of_kind else math.inf
        of_kind[size] = _Measured(least_s, time.monotonic())

    def limit(self, key: BatchKey) -> int:
        """Return how many pictures of a kind are worth making at once. Never blocks."""
        allowed = self._allowed(key)
        of_kind = self._measured.get(_kind(key), {})
        worth = 1
        for size in buckets(max(allowed))[1:]:
            if size not in allowed:
                continue
            smaller, larger = of_kind.get(worth, _UNKNOWN), of_kind.get(size, _UNKNOWN)
            is_known = larger.least_s < math.inf and time.monotonic() - larger.at < _RETRY_S
            if is_known and larger.least_s > _WORTHWHILE * smaller.least_s:
                break
            worth = size
            if not is_known:  # to be tried before any larger one
                break
        return worth

    def split(self, batch: Sequence[GenerationParams]) -> Iterator[Sequence[GenerationParams]]:
        """Split a batch into parts of allowed sizes that are worth making at once, the largest first."""
        key = batch[0].batch_key
        allowed, limit = self._allowed(key), self.limit(key)
        while batch:
            size = max(size for size in allowed if size <= min(len(batch), limit))
            yield batch[:size]
            batch = batch[size:]

    def _allowed(self, key: BatchKey) -> set[int]:
        return {1, *(self._learned.get(_shape(key), ()) if self._sizes is None else self._sizes)}


def _kind(key: BatchKey) -> _Kind:
    steps = key.num_inference_steps
    if key.strength is not None:
        steps = effective_img2img_steps(steps, key.strength)
    return key.mode, key.width, key.height, steps


def _shape(key: BatchKey) -> BatchKey:
    """Leave out what changes no tensor's shape."""
    return BatchKey(key.mode, key.width, key.height, num_inference_steps=1)
