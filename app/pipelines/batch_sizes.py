"""How many pictures go through the networks at once."""

from collections.abc import Iterator, Sequence

from app.pipelines.base import (
    BatchKey,
    GenerationParams,
)


class BatchSizes:
    """How many pictures go through the networks at once. On the device thread, but for `limit`."""

    def __init__(self, sizes: Sequence[int], *, max_pixels: int | None = None, learn: bool = False) -> None:
        """Allow some sizes of a batch, 1 among them.

        Args:
            sizes: Pictures at once.
            max_pixels: Pixels (width x height) that all of them together may have, where that is bounded.
            learn: Whether it is found out while warming up which of the sizes change no picture; others are not used.
        """
        self._sizes = sizes
        self._max_pixels = max_pixels
        self._learning = learn
        self._alike: dict[BatchKey, set[int]] | None = {} if learn else None

    @property
    def learning(self) -> bool:
        """Whether it is still to be learned."""
        return self._learning

    def learn(self, key: BatchKey, pictures: int) -> None:
        """Take note that so many pictures at once come out as they do alone."""
        if self._alike is not None:
            self._alike.setdefault(_shape(key), set()).add(pictures)

    def stop_learning(self) -> None:
        """Know all there is to know."""
        self._learning = False

    def limit(self, key: BatchKey) -> int:
        """Return how many pictures of a kind are worth making at once. Never blocks."""
        return max(self._allowed(key))

    def split(self, batch: Sequence[GenerationParams]) -> Iterator[Sequence[GenerationParams]]:
        """Cut a batch into parts of allowed sizes, the largest first."""
        allowed = self._allowed(batch[0].batch_key)
        begin = 0
        while begin < len(batch):
            size = max(size for size in allowed if size <= len(batch) - begin)
            yield batch[begin : begin + size]
            begin += size

    def _allowed(self, key: BatchKey) -> set[int]:
        sizes = set(self._sizes) if self._alike is None else self._alike.get(_shape(key), set())
        if self._max_pixels is not None:
            sizes = {size for size in sizes if size * key.width * key.height <= self._max_pixels}
        return {1, *sizes}


def _shape(key: BatchKey) -> BatchKey:
    """Leave out what changes no tensor's shape."""
    return BatchKey(key.mode, key.width, key.height, num_inference_steps=1)
