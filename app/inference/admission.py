"""Admission: who may wait for the device, how long, and when a rejected client should retry."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import KW_ONLY, dataclass, field

from app import errors
from app.errors import DeviceLostError, TurboError
from app.inference.cost import Request
from app.inference.registry import PipelineRegistry

_MIN_RETRY_AFTER_S, _MAX_RETRY_AFTER_S = 1, 120
"""No SDK waits for less than a second. The OpenAI SDK does not retry above 120 s."""


_MAX_DEADLINES = 10
"""A request for 10 pictures may take ten times as long as one for a picture."""


@dataclass(slots=True, eq=False)
class Place:
    """An admitted request. It waits until the device begins with it."""

    time_left: asyncio.Timeout
    deadline_s: float
    """Seconds that the request may take."""
    request: Request = ()
    """Empty until its pictures are known."""
    asked_at: float = 0.0
    turn_at: float = math.inf
    """When the device began, by the monotonic clock."""
    served: bool = False
    """Whether its pictures are made."""
    ended_by: TurboError | None = None
    interruptible_by: str | None = None
    """The client that may drop the request while it waits; None if nobody may."""

    @property
    def waiting(self) -> bool:
        return self.turn_at == math.inf

    @property
    def queue_s(self) -> float:
        return self.turn_at - self.asked_at

    @property
    def ends(self) -> float:
        """The deadline by the event loop's clock."""
        return self.time_left.when() or math.inf

    def begin(self) -> None:
        self.turn_at = time.monotonic()

    def extend(self, deadline_s: float) -> None:
        """Give the request this time in all, if it is more."""
        if deadline_s <= self.deadline_s:
            return
        self.time_left.reschedule(self.ends + deadline_s - self.deadline_s)
        self.deadline_s = deadline_s

    def end(self, error: TurboError) -> None:
        """Answer the request with `error`, now."""
        if not self.time_left.expired():
            self.ended_by = error
            self.time_left.reschedule(asyncio.get_running_loop().time())


@dataclass(eq=False)
class Admission:
    """Gives requests a place in the queue and holds them to their deadline. Lives on the event loop."""

    registry: PipelineRegistry
    _: KW_ONLY
    max_queue: int
    deadline_s: float
    draining: bool = field(default=False, init=False)
    lost: DeviceLostError | None = field(default=None, init=False)
    places: set[Place] = field(default_factory=set, init=False)
    """Admitted requests that are not answered yet."""

    @property
    def waiting(self) -> int:
        """Admitted requests that the device has not begun."""
        return sum(place.waiting for place in self.places)

    @property
    def in_flight(self) -> int:
        """Admitted requests that are not answered yet."""
        return len(self.places)

    def drain(self) -> None:
        """Reject new requests from now on; admitted requests will be served."""
        self.draining = True

    def give_up(self) -> None:
        """Answer all admitted requests with an error, now: the time to drain is over."""
        for place in self.places:
            place.end(errors.DrainingError("The service stopped before the request was done.", retry_after_s=1))

    def close(self, error: DeviceLostError) -> None:
        """Answer all requests that wait for the device with `error`, and reject new ones.

        Requests that already have their pictures are finished: the device was healthy when it made them.
        """
        self.lost = error
        for place in self.places:
            if not place.served:
                place.end(copy(error))  # an error that is raised repeatedly would keep every traceback

    def check_deadline(self) -> None:
        """Check that the warm-up's picture can be made within the deadline.

        Raises:
            DeadlineTooShortError: It takes longer.
        """
        costs = self.registry.costs
        least_s = costs.least_s(costs.reference)
        if least_s > self.deadline_s:
            raise errors.DeadlineTooShortError(
                f"A picture of the first warm-up size takes {least_s:.1f} s on this device, and TURBO_DEADLINE_S "
                f"is {self.deadline_s:g}. Set a longer TURBO_DEADLINE_S, or smaller TURBO_WARM_UP_SIZES."
            )

    def check(self) -> None:
        """Raise what `admit` would raise now, before the body is read.

        Raises:
            DrainingError: The service is shutting down.
            DeviceLostError: The device has failed.
            QueueFullError: `max_queue` requests wait, or as many as can be served by the deadline.
        """
        if self.lost is not None:
            raise copy(self.lost)
        if self.draining:
            raise errors.DrainingError("The service is shutting down.", retry_after_s=self.retry_after_s())
        ahead = self.waiting + self.registry.lock.serving  # a check of the idle device is short and does not count
        if ahead > self.max_queue:
            raise errors.QueueFullError(
                f"{self.waiting} requests are waiting already.", retry_after_s=self.retry_after_s()
            )
        # If the queue outlasts the deadline, the device works on requests that expire unfinished. Allow for two calls:
        # this request's own, and one batch that may overtake it.
        if ahead and self.backlog_s() + 2 * self.registry.costs.long_call_s > self.deadline_s:
            raise self._queue_too_long(self.deadline_s)

    @asynccontextmanager
    async def admit(self, *, interruptible_by: str | None = None) -> AsyncIterator[Place]:
        """Give the request a place, and end the `async with` at its deadline.

        Raises:
            DeadlineExceededError: The deadline passed.
            DrainingError: The time to drain was over.
            DeviceLostError: The device was lost.
            TurboError: As `check`.
        """
        self.check()
        place = Place(asyncio.timeout(self.deadline_s), self.deadline_s, interruptible_by=interruptible_by)
        self.places.add(place)
        try:
            async with place.time_left:
                yield place
        except TimeoutError:
            if place.ended_by is not None:
                raise place.ended_by from None
            raise errors.DeadlineExceededError(
                f"The request was not done within {place.deadline_s:.4g} s.",
                retry_after_s=self.retry_after_s(besides=place),
            ) from None
        finally:
            self.places.discard(place)

    def check_in_time(self, request: Request, place: Place) -> None:
        """Check that a request, whose pictures are now known, was not ended meanwhile and can meet its deadline.

        The deadline is now extended by the work, see `deadline_s_of`.

        Raises:
            TurboError: The request was ended.
            BeyondDeadlineError: This device cannot make the pictures in time, not even when it is idle.
            QueueFullError: The device cannot make them in time after the admitted requests.
        """
        if place.ended_by is not None:
            raise place.ended_by
        costs = self.registry.costs
        least_s, expected_s = costs.least_s(request), costs.expected_s(request)
        deadline_s = self.deadline_s_of(request)
        if least_s > deadline_s:
            raise errors.BeyondDeadlineError(
                f"The request would take {max(least_s, expected_s):.1f} s on this device, and a request may take "
                f"{deadline_s:.4g} s. Ask for fewer pictures, a smaller size or fewer steps."
            )
        if place in self.places:  # the client may have left
            place.extend(deadline_s)
        others_s = self.backlog_s(besides=place)
        if others_s and asyncio.get_running_loop().time() + others_s + expected_s > place.ends:
            raise self._queue_too_long(deadline_s, besides=place)

    def deadline_s_of(self, request: Request) -> float:
        """Return the seconds that a request may take: `deadline_s` for a picture like the warm-up's first.

        More pictures, pixels or steps add the seconds that they are expected to take on this device, so that what the
        service offers can be had on a slow one too; up to ten times `deadline_s` in all.
        """
        costs = self.registry.costs
        further_s = costs.expected_s(request) - costs.expected_s(costs.reference)
        return min(self.deadline_s + max(0.0, further_s), _MAX_DEADLINES * self.deadline_s)

    def backlog_s(self, *, besides: Place | None = None) -> float:
        """Estimate the seconds until the admitted requests, without `besides`, are done."""
        waiting_s = sum(
            self.registry.costs.expected_s(place.request) if place.request else self.registry.costs.usual_s
            for place in self.places
            if place.waiting and place is not besides
        )
        running_s = self.registry.lock.serving_s - self.registry.lock.running_s
        return waiting_s + max(0.0, running_s)

    def _queue_too_long(self, deadline_s: float, *, besides: Place | None = None) -> errors.QueueFullError:
        return errors.QueueFullError(
            f"The admitted requests take so long that this one would not be done within {deadline_s:.4g} s.",
            retry_after_s=self.retry_after_s(besides=besides),
        )

    def retry_after_s(self, *, besides: Place | None = None) -> int:
        return max(_MIN_RETRY_AFTER_S, min(_MAX_RETRY_AFTER_S, math.ceil(self.backlog_s(besides=besides))))
