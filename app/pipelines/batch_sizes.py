"""How many pictures go through the networks at once: sizes that change no picture, and of these the faster ones."""

import math
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from app.pipelines.base import MAX_PROMPT_TOKENS, BatchKey, GenerationParams, Kind, buckets

_WORTHWHILE = 0.95
"""A larger batch must take at most this share of the smaller one's time for each picture. Otherwise the first requests
of a batch would only wait for its last."""

_RETRY_S = 600
"""Seconds after which a measurement is made again: the machine may have been busy."""

_RECENT_CALLS = 5
"""Calls of a size whose fastest counts. Other programs slow single calls down, and older ones tell less."""

_MAX_KINDS = 256


class _Calls:
    """The newest calls of one batch size: the least seconds for each picture, and when the last one was."""

    def __init__(self) -> None:
        self._each_s: Sequence[float] = ()
        self._made: set[int] = set()
        self._at = 0.0

    def add(self, pictures: int, seconds: float) -> None:
        """Record a call. The first of a number of pictures is no measurement: it may compile, or compute twice."""
        if pictures in self._made:
            self._each_s = (*self._each_s, seconds / pictures)[-_RECENT_CALLS:]
        self._made.add(pictures)
        self._at = time.monotonic()

    def fail(self) -> None:
        """Record that the device had no memory for a call."""
        self._each_s = (math.inf,)
        self._at = time.monotonic()

    @property
    def are_measured(self) -> bool:
        return bool(self._each_s)

    @property
    def least_s(self) -> float:
        return min(self._each_s)

    @property
    def are_old(self) -> bool:
        return time.monotonic() - self._at >= _RETRY_S


class BatchSizes:
    """How many pictures go through the networks at once. For the device thread; `limit` is for any thread.

    A batch has one of `sizes`; if it `must_be_exact`, one that is found to change no picture while warming up. Which of
    these pay for a kind of picture is learned from the calls: a size of 2, 4, 8, ... is tried, then compared with the
    next smaller one, and used if it takes clearly less time for each picture. While `warming`, every size is made.
    """

    def __init__(self, sizes: Collection[int], *, must_be_exact: bool = False) -> None:
        self._sizes = sizes
        self._must_be_exact = must_be_exact
        self._exact: dict[BatchKey, set[int]] = {}
        self._calls: OrderedDict[Kind, dict[int, _Calls]] = OrderedDict()
        self._splits = True
        self.warming = True

    @property
    def learning(self) -> bool:
        """Whether larger batches are to be compared with single pictures."""
        return self.warming and self._must_be_exact

    def learn(self, key: BatchKey, pictures: int) -> None:
        """Record that a batch of this size gives the pictures that each has alone."""
        self._exact.setdefault(_shape(key), set()).add(pictures)

    def measure(self, key: BatchKey, pictures: int, seconds: float) -> None:
        """Record the seconds of a call that made this many pictures of a kind."""
        self._calls_of(key, pictures).add(pictures, seconds)

    def fail(self, key: BatchKey, pictures: int) -> None:
        """Record that the device had no memory for this many pictures of a kind at once; for now fewer are made."""
        if pictures > 1:
            self._calls_of(key, pictures).fail()

    def allows(self, key: BatchKey, pictures: int) -> bool:
        """Tell whether a batch of this size may be made: it changes no picture, or that need not be so."""
        return pictures in self._allowed(key)

    def limit(self, key: BatchKey) -> int:
        """Return how many pictures of a kind are worth making at once. Never blocks."""
        if self.warming:
            return max(self._sizes)
        allowed = self._allowed(key)
        of_kind = self._calls.get(key.kind, {})
        worth = 1
        for size in buckets(max(allowed))[1:]:
            if size not in allowed:
                continue
            smaller, larger = of_kind.get(worth, _Calls()), of_kind.get(size, _Calls())
            if not larger.are_measured:  # to be tried before any larger one
                return size
            if not smaller.are_measured or smaller.are_old:
                return worth
            if larger.least_s > _WORTHWHILE * smaller.least_s:
                return size if larger.are_old else worth
            worth = size
        return worth

    @contextmanager
    def unsplit(self) -> Iterator[None]:
        """Split batches in this context only where that changes pictures, not where it is faster."""
        self._splits = False
        try:
            yield
        finally:
            self._splits = True

    def split(self, batch: Sequence[GenerationParams]) -> Iterator[Sequence[GenerationParams]]:
        """Split a batch into parts of allowed sizes that are worth making at once, the largest first."""
        key = batch[0].batch_key
        allowed = self._allowed(key)
        limit = self.limit(key) if self._splits else len(batch)
        while batch:
            size = max(size for size in allowed if size <= min(len(batch), limit))
            yield batch[:size]
            batch = batch[size:]

    def split_by_length(
        self, batch: Sequence[GenerationParams], lengths: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], bool]]:
        """Split a part of a batch by the lengths of its prompts, because the networks take prompts of one length.

        `lengths` has the tokens of each prompt's embeddings. Yields the places of the pictures to make at once, and
        whether their prompts have the length of the warm-up. Each part has an allowed size. If sizes must be exact,
        longer prompts are made one by one: the sizes were compared at the warm-up's length alone.
        """
        if set(lengths) == {MAX_PROMPT_TOKENS}:
            yield range(len(batch)), True
            return
        for length in sorted(set(lengths)):
            is_usual = length == MAX_PROMPT_TOKENS
            allowed = {1} if self._must_be_exact and not is_usual else self._allowed(batch[0].batch_key)
            places = [place for place, own in enumerate(lengths) if own == length]
            while places:
                size = max(size for size in allowed if size <= len(places))
                yield places[:size], is_usual
                places = places[size:]

    def _calls_of(self, key: BatchKey, pictures: int) -> _Calls:
        """Return the calls of the size that this many pictures tell about: 3 tell what 2 take, rather than 4."""
        of_kind = self._calls.setdefault(key.kind, {})
        self._calls.move_to_end(key.kind)
        if len(self._calls) > _MAX_KINDS:
            self._calls.popitem(last=False)
        return of_kind.setdefault(1 << pictures.bit_length() - 1, _Calls())

    def _allowed(self, key: BatchKey) -> set[int]:
        return {1, *(self._exact.get(_shape(key), ()) if self._must_be_exact else self._sizes)}


def _shape(key: BatchKey) -> BatchKey:
    """Leave out what changes no tensor's shape."""
    return BatchKey(key.mode, key.width, key.height, num_inference_steps=1)
