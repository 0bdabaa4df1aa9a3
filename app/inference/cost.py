"""The cost of calls: their work relative to each other, and the measured seconds for a unit of work.

Every bound on a call's time comes from here: when it counts as hung, whether it can meet the deadline, and when a
client should retry. A large request is judged by its own work, so it does not change the estimates for small ones.
"""

import statistics
from collections import deque
from collections.abc import Callable, Sequence

from app.inference.samples import sample_pictures
from app.pipelines.base import GenerationParams, Mode

Request = Sequence[GenerationParams]

_EWMA_WEIGHT = 0.2
"""Weight of the newest call in the running mean of seconds for a unit of work."""

_RECENT_REQUESTS = 15
"""The median work of so many requests is assumed for a request that has not been read. One large request does not move
a median."""

_HANG_FACTOR = 8
"""A call may always take this many times its expected seconds. On a busy CPU the wall time of calls varied tenfold, and
the expected seconds follow it."""

_DEFAULT_SIZE = (512, 512)


class CostModel:
    """Seconds for a unit of work, measured during warm-up and updated by every call.

    The loader's `work` defines the unit. The device thread calls `learn`; any thread may call the other methods, since
    each number is replaced as a whole.

    Args:
        work: The work of a picture.
        size: (width, height) in pixels of the picture that others are compared with: the first warm-up size.
    """

    def __init__(self, work: Callable[[GenerationParams], float], *, size: tuple[int, int] | None = None) -> None:
        self._work = work
        self._reference = sample_pictures(Mode.TXT2IMG, size or _DEFAULT_SIZE, 1)
        self._warm_up_s = 0.0
        self._mean_s: float | None = None
        self._least_s = 0.0
        self._recent: deque[float] = deque(maxlen=_RECENT_REQUESTS)

    def work(self, request: Request) -> float:
        """Return the work of a request's pictures."""
        return sum(map(self._work, request))

    @property
    def usual_work(self) -> float:
        """The work of a usual request: the median of the latest, and before any one picture of the warm-up."""
        recent = tuple(self._recent)
        return statistics.median(recent) if recent else self.work(self._reference)

    def expected_s(self, work: float) -> float:
        """Return the seconds that this work should take at the recent pace; 0 before the warm-up."""
        return work * (self._warm_up_s if self._mean_s is None else self._mean_s)

    def least_s(self, work: float) -> float:
        """Return the seconds that this work takes at the fastest pace measured so far; 0 before the warm-up."""
        return work * self._least_s

    def hang_limit_s(self, request: Request, *, hang_limit_s: float) -> float:
        """Return the seconds after which a call for these pictures counts as hung.

        A picture up to the warm-up's size may take `hang_limit_s`, or several times its expected seconds if that is
        more. For a larger picture the limit grows with its work.
        """
        reference = self.work(self._reference)
        limit_s = max(hang_limit_s, _HANG_FACTOR * self.expected_s(reference))
        return limit_s * sum(max(1.0, self._work(params) / reference) for params in request)

    def calibrate(self, measured: Sequence[tuple[GenerationParams, float]]) -> None:
        """Take single pictures of the warm-up, each with the seconds of its call, as the first measure.

        They are in the order of the calls, and the last one counts, as first calls are slower.
        """
        paces_s = [seconds / self._work(params) for params, seconds in measured]
        self._warm_up_s, self._least_s = paces_s[-1], min(paces_s)

    def learn(self, requests: Sequence[Request], seconds: float) -> None:
        """Update the pace with a call that served these requests. On the device thread."""
        works = [self.work(request) for request in requests]
        pace_s = seconds / sum(works)
        self._recent.extend(works)
        self._mean_s = pace_s if self._mean_s is None else self._mean_s + _EWMA_WEIGHT * (pace_s - self._mean_s)
        if len(requests) == 1:  # a batch is faster for each than one can be alone
            self._least_s = min(self._least_s, pace_s)
