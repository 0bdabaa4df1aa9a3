"""A cache in front of the fleet, as nginx has it, and the popularity of the URLs that it is asked for."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import numpy.typing as npt

OK = 200
Answered = Callable[[int, int], None]
"""Gets the status of an answer, and its `Retry-After` in seconds; 0 if it has none."""


Fetch = Callable[[Answered], None]
"""Asks the service, and calls its argument with the answer."""


def zipf(urls: int, *, exponent: float) -> npt.NDArray[np.float64]:
    """Return the share of requests for each URL: the share of rank r is proportional to r ** -exponent."""
    weights = np.arange(1, urls + 1, dtype=np.float64) ** -exponent
    return np.asarray(weights / weights.sum())


def draw(shares: npt.NDArray[np.float64], count: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Return the URLs of `count` requests, as ranks from 0 on."""
    return np.random.default_rng(seed).choice(len(shares), size=count, p=shares)


@dataclass(eq=False)
class Cache:
    """Keeps answers up to a number of bytes, drops the least recently used first, and asks for a missing URL once.

    All answers have the same size. `now` returns the simulated time. If it `collapses`, requests wait while their URL
    is asked for (nginx's `proxy_cache_lock`). With `stale_on_error`, an expired answer is better than an error
    (`proxy_cache_use_stale`).
    """

    now: Callable[[], float]
    _: KW_ONLY
    max_bytes: int
    answer_bytes: int
    ttl_s: float
    collapses: bool = True
    stale_on_error: bool = False
    hits: int = field(default=0, init=False)
    misses: int = field(default=0, init=False)
    _expires: OrderedDict[int, float] = field(default_factory=OrderedDict, init=False)
    _waiting: dict[int, list[tuple[Answered, Fetch]]] = field(default_factory=dict, init=False)

    def get(self, url: int, answered: Answered, fetch: Fetch) -> None:
        """Answer from the cache, or wait for the request for this URL that is under way, or call `fetch`."""
        if self._expires.get(url, -1.0) > self.now():
            self._expires.move_to_end(url)
            self.hits += 1
            answered(OK, 0)
        elif self.collapses and url in self._waiting:
            self.hits += 1
            self._waiting[url].append((answered, fetch))
        else:
            self.misses += 1
            self._waiting.setdefault(url, []).append((answered, fetch))
            fetch(lambda status, retry_after_s: self._fetched(url, status, retry_after_s))

    def clear(self) -> None:
        """Lose all answers."""
        self._expires.clear()

    def _fetched(self, url: int, status: int, retry_after_s: int) -> None:
        waiting = self._waiting.pop(url, [])
        if status == OK:
            self._expires[url] = self.now() + self.ttl_s
            self._expires.move_to_end(url)
            if len(self._expires) * self.answer_bytes > self.max_bytes:
                self._expires.popitem(last=False)
        elif self.stale_on_error and url in self._expires:
            status, retry_after_s = OK, 0
        else:  # the error is the first one's; the next one asks again
            waiting, others = waiting[:1], waiting[1:]
            for answered, fetch in others:
                self.get(url, answered, fetch)
        for answered, _ in waiting:
            answered(status, retry_after_s)
