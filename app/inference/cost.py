"""The cost of calls: the seconds that pictures take on this device, measured during warm-up and by every call.

Each kind of picture has its own measurements, so requests of one kind do not change the estimates for others. A kind
without any is judged by its work relative to the warm-up's picture.
"""

import math
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from app.inference.samples import sample_pictures
from app.pipelines.base import GenerationParams, Kind, Mode

Request = Sequence[GenerationParams]
"""The pictures of one request, which are of one kind."""

_EWMA_WEIGHT = 0.2
"""Weight of the newest call in running means."""

_RECENT_REQUESTS, _PREFILLED = 15, 2
"""A request that has not been read is assumed to take the median of the latest requests, so one large request does not
change the estimate. At first some of them are the warm-up's picture."""

_HANG_FACTOR = 8
"""A call may always take this many times its expected seconds: on a busy CPU the wall time of calls varied tenfold."""

_CERTAIN = 0.7
"""Share of the extrapolated seconds that an unmeasured kind takes at the least. A part of a call does not grow with the
pixels: on a CPU a fifth of SDXL-Turbo's call at 512x512."""

_FRESH_S = 600
"""Seconds for which a measurement may be the reason to reject a request; the machine may have been busy."""

_MAX_KINDS = 256
_DEFAULT_SIZE = (512, 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """Seconds for one picture of a kind: on average, on average where it is alone in its call, and at the least."""

    mean_s: float | None = None
    alone_s: float | None = None
    least_s: float = math.inf
    at: float = -math.inf
    """Monotonic time of the newest measurement."""
    batches: frozenset[int] = frozenset()
    """Numbers of pictures of the calls so far."""

    @property
    def fresh(self) -> bool:
        return time.monotonic() - self.at < _FRESH_S


class CostModel:
    """Seconds that requests take. Only the device thread calls `learn...`; any thread may call the other methods.

    `work` returns the work of a picture, in any unit. The reference picture has the first warm-up size, `size`, as
    (width, height) in pixels. A kind's first call with a number of pictures may compute them twice, and is not
    measured. If `first_call_is_slow`, neither is its first call with a single picture: it may compile.
    """

    def __init__(
        self,
        work: Callable[[GenerationParams], float],
        *,
        size: tuple[int, int] = _DEFAULT_SIZE,
        first_call_is_slow: bool = False,
    ) -> None:
        self._work = work
        self.reference = sample_pictures(Mode.TXT2IMG, size, 1)
        self._default = sample_pictures(Mode.TXT2IMG, _DEFAULT_SIZE, 1)
        self._first_call_is_slow = first_call_is_slow
        self._pace_s = 0.0
        self._kinds: OrderedDict[Kind, _Measured] = OrderedDict()
        self._recent_s: deque[float] = deque(maxlen=_RECENT_REQUESTS)
        self._long_call = 1.0

    def expected_s(self, request: Request) -> float:
        """Return the seconds that a request adds to the queue; 0 before the warm-up."""
        mean_s = self._measured(request[0]).mean_s
        return len(request) * (self._extrapolated_s(request[0]) if mean_s is None else mean_s)

    def least_s(self, request: Request) -> float:
        """Return the seconds that a request takes at the least on the idle device; 0 before the warm-up.

        A kind without a recent measurement takes at least a part of the extrapolation from the reference picture. If
        the reference is smaller than 512x512, the extrapolation starts at 512x512, as most of its seconds are fixed.
        """
        if (measured := self._measured(request[0])).fresh:
            return measured.least_s * len(request)
        reference_s = self._measured(self.reference[0]).least_s
        if reference_s == math.inf:
            return 0.0
        unit = max(self._work(self.reference[0]), self._work(self._default[0]))
        return _CERTAIN * reference_s * self._work(request[0]) / unit * len(request)

    @property
    def usual_s(self) -> float:
        """Estimated seconds of a request that has not been read: the median of the latest requests."""
        return statistics.median(tuple(self._recent_s) or (self.expected_s(self.reference),))

    @property
    def long_call_s(self) -> float:
        """Estimated seconds of a large call. Its number of requests follows the largest recent calls."""
        return self.usual_s * self._long_call

    @property
    def is_stale(self) -> bool:
        """Whether the reference picture needs a new measurement."""
        return time.monotonic() - self._measured(self.reference[0]).at >= _FRESH_S / 10

    def hang_limit_s(self, request: Request, *, hang_limit_s: float) -> float:
        """Return the seconds after which a call for these pictures counts as hung.

        `hang_limit_s` is for a picture up to the reference's work, and grows with a larger one's. A picture that is
        expected to take long may take several times its expected seconds. Batching does not shorten the limit.
        """
        expected_s = max(self._extrapolated_s(request[0]), self._measured(request[0]).alone_s or 0.0)
        times = max(1.0, self._work(request[0]) / self._work(self.reference[0]))
        return max(hang_limit_s * times, _HANG_FACTOR * expected_s) * len(request)

    def calibrate(self, measured: Sequence[tuple[GenerationParams, float]]) -> None:
        """Store the warm-up's single pictures and the seconds of their calls. The last call sets the expectation."""
        for params, seconds in measured:
            least_s = min(self._measured(params).least_s, seconds)
            self._store(params, _Measured(least_s=least_s, at=time.monotonic(), batches=frozenset({1})))
        params, seconds = measured[-1]
        self._pace_s = seconds / self._work(params)
        self._recent_s.extend([self.expected_s(self.reference)] * _PREFILLED)

    def learn(self, batch: Sequence[GenerationParams], seconds: float) -> None:
        """Update the measurements with a call that made these pictures of one kind. On the device thread."""
        known = self._measured(batch[0])
        batches = known.batches | {len(batch)}
        if batches != known.batches and (len(batch) > 1 or self._first_call_is_slow):
            self._store(batch[0], replace(known, batches=batches))
            return
        each_s = seconds / len(batch)
        measured = _Measured(
            mean_s=_moving_average(known.mean_s, each_s),
            alone_s=_moving_average(known.alone_s, each_s) if len(batch) == 1 else known.alone_s,
            least_s=min(known.least_s, each_s) if known.fresh else each_s,
            at=time.monotonic(),
            batches=batches,
        )
        self._store(batch[0], measured)

    def learn_requests(self, requests: Sequence[Request]) -> None:
        """Note that a call served these requests. On the device thread."""
        self._recent_s.extend(map(self.expected_s, requests))
        self._long_call = max(len(requests), _moving_average(self._long_call, len(requests)))

    def _extrapolated_s(self, params: GenerationParams) -> float:
        return self._work(params) * self._pace_s

    def _measured(self, params: GenerationParams) -> _Measured:
        return self._kinds.get(params.batch_key.kind, _Measured())

    def _store(self, params: GenerationParams, measured: _Measured) -> None:
        kind = params.batch_key.kind
        self._kinds[kind] = measured
        self._kinds.move_to_end(kind)
        if len(self._kinds) > _MAX_KINDS:
            reference = self.reference[0].batch_key.kind
            del self._kinds[next(kind for kind in self._kinds if kind != reference)]


def _moving_average(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + _EWMA_WEIGHT * (newest - mean)
