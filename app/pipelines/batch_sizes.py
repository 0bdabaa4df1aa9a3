"""How many pictures go through the networks at once."""

import math
from collections.abc import Collection, Iterator, Sequence

from app.pipelines.base import BatchKey, GenerationParams


class BatchSizes:
    """How many pictures go through the networks at once. For the device thread; `limit` is for any thread.

    Without `sizes`, a batch has one of the sizes that are found to change no picture while warming up. All pictures of
    a batch together have at most `max_pixels`.
    """

    def __init__(self, sizes: Collection[int] | None, *, max_pixels: float = math.inf) -> None:
        self._sizes = sizes
        self._max_pixels = max_pixels
        self._learned: dict[BatchKey, set[int]] = {}
        self.learning = sizes is None

    def learn(self, key: BatchKey, pictures: int) -> None:
        """Record that a batch of this size gives the pictures that each has alone."""
        self._learned.setdefault(_shape(key), set()).add(pictures)

    def limit(self, key: BatchKey) -> int:
        """Return how many pictures of a kind are worth making at once. Never blocks."""
        return max(self._allowed(key))

    def split(self, batch: Sequence[GenerationParams]) -> Iterator[Sequence[GenerationParams]]:
        """Split a batch into parts of allowed sizes, the largest first."""
        allowed = self._allowed(batch[0].batch_key)
        while batch:
            size = max(size for size in allowed if size <= len(batch))
            yield batch[:size]
            batch = batch[size:]

    def _allowed(self, key: BatchKey) -> set[int]:
        sizes = {1, *(self._learned.get(_shape(key), ()) if self._sizes is None else self._sizes)}
        return {size for size in sizes if size == 1 or size * key.width * key.height <= self._max_pixels}


def _shape(key: BatchKey) -> BatchKey:
    """Leave out what changes no tensor's shape."""
    return BatchKey(key.mode, key.width, key.height, num_inference_steps=1)
