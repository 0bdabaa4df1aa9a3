"""The engine: admits requests, limits their time, and makes their device calls."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from copy import copy
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Literal, TypeVar

from app import errors
from app.errors import DeviceLostError, TurboError
from app.inference.cost import Request
from app.inference.device_lock import DeviceLock, Item, TooLateError
from app.inference.registry import PipelineRegistry
from app.pipelines.base import PipelineImage

T = TypeVar("T")

_log = logging.getLogger(__name__)

_MIN_RETRY_AFTER_S, _MAX_RETRY_AFTER_S = 1, 120
"""No SDK waits for less than a second. The OpenAI SDK does not retry above 120 s."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenerationResult:
    """The pictures of one request, and the seconds, the number and the picture count of the call that made them."""

    images: list[PipelineImage]
    queue_s: float
    inference_s: float
    call: int
    batch_pictures: int


Status = Literal["ready", "draining", "device_lost", "hung", "starting"]


@dataclass(slots=True, eq=False)
class Place:
    """An admitted request. It waits until the device begins with it."""

    time_left: asyncio.Timeout
    request: Request = ()
    """Empty until its pictures are known."""
    asked_at: float = 0.0
    turn_at: float = math.inf
    """When the device began, by the monotonic clock."""
    served: bool = False
    """Whether its pictures are made."""
    ended_by: TurboError | None = None

    @property
    def waiting(self) -> bool:
        return self.turn_at == math.inf

    @property
    def queue_s(self) -> float:
        return self.turn_at - self.asked_at

    def begin(self) -> None:
        self.turn_at = time.monotonic()

    def end(self, error: TurboError) -> None:
        """Answer the request with `error`, now."""
        if not self.time_left.expired():
            self.ended_by = error
            self.time_left.reschedule(asyncio.get_running_loop().time())


@dataclass(eq=False)
class Engine:
    """Admits requests, holds them to their deadline, and makes their device calls.

    Lives on the event loop and never blocks it. If the device fails, every waiting request is answered with the error.
    Then `on_device_lost` is called once, on the event loop; the process should be replaced.
    """

    registry: PipelineRegistry
    device_lock: DeviceLock
    _: KW_ONLY
    max_queue: int
    deadline_s: float
    on_device_lost: Callable[[DeviceLostError], None]
    draining: bool = field(default=False, init=False)
    calls: int = field(default=0, init=False)
    """Calls for pictures so far."""
    _places: set[Place] = field(default_factory=set, init=False)
    _lost: DeviceLostError | None = field(default=None, init=False)
    _measuring: asyncio.Task[None] | None = field(default=None, init=False)

    @property
    def status(self) -> Status:
        """The most serious state now. Never waits for the device."""
        if self.device_lock.hung:
            return "hung"
        if self._lost is not None:
            return "device_lost"
        if self.draining:
            return "draining"
        return "ready" if self.registry.warm else "starting"

    @property
    def live(self) -> bool:
        """Whether the process can serve; if not, replace it."""
        return self.status not in ("hung", "device_lost")

    @property
    def waiting(self) -> int:
        """Admitted requests that the device has not begun."""
        return sum(place.waiting for place in self._places)

    @property
    def in_flight(self) -> int:
        """Admitted requests that are not answered yet."""
        return len(self._places)

    def drain(self) -> None:
        """Reject new requests from now on; admitted requests will be served."""
        self.draining = True

    def give_up(self) -> None:
        """Answer all admitted requests with an error, now: the time to drain is over."""
        for place in self._places:
            place.end(errors.DrainingError("The service stopped before the request was done.", retry_after_s=1))

    def lose_device(self, error: DeviceLostError) -> None:
        """Answer all requests that wait for the device with `error`, reject new ones, and have the process replaced.

        Requests that already have their pictures are finished: the device was healthy when it made them.
        """
        if self._lost is not None:
            _log.warning("another error after the device was lost: %s", error, exc_info=error)
            return
        self._lost = error
        for place in self._places:
            if not place.served:
                place.end(copy(error))  # an error that is raised repeatedly would keep every traceback
        self.on_device_lost(error)

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

    def check_admission(self) -> None:
        """Raise what `admit` would raise now, before the body is read.

        Raises:
            DrainingError: The service is shutting down.
            DeviceLostError: The device has failed.
            QueueFullError: `max_queue` requests wait, or as many as can be served by the deadline.
        """
        if self._lost is not None:
            raise copy(self._lost)
        if self.draining:
            raise errors.DrainingError("The service is shutting down.", retry_after_s=self._retry_after_s())
        ahead = self.waiting + self.device_lock.serving  # a check of the idle device is short and does not count
        if ahead > self.max_queue:
            raise errors.QueueFullError(
                f"{self.waiting} requests are waiting already.", retry_after_s=self._retry_after_s()
            )
        # If the queue outlasts the deadline, the device works on requests that expire unfinished. Allow for two calls:
        # this request's own, and one batch that may overtake it.
        if ahead and self._backlog_s() + 2 * self.registry.costs.long_call_s > self.deadline_s:
            raise self._queue_too_long()

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[Place]:
        """Give the request a place, and end the `async with` at its deadline.

        Raises:
            DeadlineExceededError: The deadline passed.
            DrainingError: The time to drain was over.
            DeviceLostError: The device was lost.
            TurboError: As `check_admission`.
        """
        self.check_admission()
        place = Place(asyncio.timeout(self.deadline_s))
        self._places.add(place)
        try:
            async with place.time_left:
                yield place
        except TimeoutError:
            if place.ended_by is not None:
                raise place.ended_by from None
            raise errors.DeadlineExceededError(
                f"The request was not done within {self.deadline_s:g} s.",
                retry_after_s=self._retry_after_s(besides=place),
            ) from None
        finally:
            self._places.discard(place)

    async def generate(self, request: Request, place: Place) -> GenerationResult:
        """Make the pictures of one request, which share a batch key, in one call with waiting requests of the same key.

        Raises:
            BeyondDeadlineError: This device cannot make them within the deadline, not even when it is idle.
            QueueFullError: The device cannot make them by the deadline after the admitted requests.
            DeadlineExceededError: When the device was free, too little time was left.
            DeviceOutOfMemoryError: The device has no memory for this request.
            DeviceLostError: The device failed, now or before.
            DeadPictureError: The model's output is no picture.
            InferenceError: The pipeline failed in any other way.
        """
        place.request, place.asked_at = request, time.monotonic()
        item = self._item(request, place)
        try:
            result = await self.device_lock.serve(item)
        except TurboError:
            raise
        except TooLateError:
            raise errors.DeadlineExceededError(
                f"Too little time was left to finish the request within {self.deadline_s:g} s.",
                retry_after_s=self._retry_after_s(besides=place),
            ) from None
        except Exception as error:  # the pipeline is foreign code: only this request fails
            raise errors.InferenceError("The pipeline failed on this request.") from error
        place.served = True
        return result

    def _item(self, request: Request, place: Place) -> Item[Place, GenerationResult]:
        """Return the request as an item of the device lock, if it was not ended meanwhile and can meet its deadline."""
        if place.ended_by is not None:
            raise place.ended_by
        others_s = self._backlog_s(besides=place)
        costs = self.registry.costs
        least_s, expected_s = costs.least_s(request), costs.expected_s(request)
        if least_s > self.deadline_s:
            idle = not others_s and not self.device_lock.serving
            if idle and costs.is_stale and (self._measuring is None or self._measuring.done()):
                self._measuring = asyncio.create_task(self._measure_again())
            raise errors.BeyondDeadlineError(
                f"The request would take {max(least_s, expected_s):.1f} s on this device, and a request may take "
                f"{self.deadline_s:g} s. Ask for fewer pictures, a smaller size or fewer steps."
            )
        loop, key = asyncio.get_running_loop(), request[0].batch_key
        ends = place.time_left.when() or math.inf
        if others_s and loop.time() + others_s + expected_s > ends:
            raise self._queue_too_long(besides=place)
        return Item(
            value=place,
            call=partial(self._serve, loop=loop),
            key=key,
            max_pictures=self.registry.loaded.by_mode[key.mode].batch_limit(key),
            pictures=len(request),
            expected_s=expected_s,
            least_s=least_s,
            ends=ends,
            limit_s=self.registry.hang_limit_s(request),
            on_turn=place.begin,
        )

    async def _measure_again(self) -> None:
        """Make the reference picture, so that a measurement on a busy machine does not reject requests forever."""
        reference = self.registry.costs.reference
        call = partial(self._unless_lost, partial(self.registry.call, [reference]), asyncio.get_running_loop())
        with suppress(DeviceLostError):  # reported by `_unless_lost`
            await self.device_lock.run(call, limit_s=self.registry.hang_limit_s(reference))

    def _serve(self, places: Sequence[Place], *, loop: asyncio.AbstractEventLoop) -> list[GenerationResult | Exception]:
        """Serve requests of one batch key by one call. On the device thread."""
        started = time.monotonic()
        waiting = [place for place in places if place in self._places]
        requests = [place.request for place in waiting]
        call = partial(self.registry.call, requests, wanted=lambda number: waiting[number] in self._places)
        try:
            outcomes = self._unless_lost(call, loop) if waiting else []
        except DeviceLostError as error:
            return [copy(error) for _ in places]
        inference_s = time.monotonic() - started
        self.registry.costs.learn_requests(requests)
        self.calls += 1
        pictures = sum(map(len, requests))
        result = partial(GenerationResult, inference_s=inference_s, call=self.calls, batch_pictures=pictures)
        results: dict[Place, GenerationResult | Exception] = {
            place: outcome if isinstance(outcome, Exception) else result(images=outcome, queue_s=place.queue_s)
            for place, outcome in zip(waiting, outcomes, strict=True)
        }
        return [results.get(place, errors.ClientDisconnectedError("The client has left.")) for place in places]

    async def check_device(self) -> None:
        """Check after the waiting calls that the device computes.

        Raises:
            DeviceLostError: It does not.
            DeviceOutOfMemoryError: It has no memory for the check.
        """
        check = partial(self._unless_lost, self.registry.loaded.device.check, asyncio.get_running_loop())
        await self.device_lock.run(check)

    def _unless_lost(self, call: Callable[[], T], loop: asyncio.AbstractEventLoop) -> T:
        """Make a call unless the device is lost, and report a loss. On the device thread."""
        if self._lost is not None:
            raise copy(self._lost)
        try:
            return call()
        except DeviceLostError as error:
            # Reported from here, as the clients may have left, and before the next call.
            loop.call_soon_threadsafe(self.lose_device, error)
            raise

    def _backlog_s(self, *, besides: Place | None = None) -> float:
        """Estimate the seconds until the admitted requests, without `besides`, are done."""
        waiting_s = sum(
            self.registry.costs.expected_s(place.request) if place.request else self.registry.costs.usual_s
            for place in self._places
            if place.waiting and place is not besides
        )
        running_s = self.device_lock.serving_s - self.device_lock.running_s
        return waiting_s + max(0.0, running_s)

    def _queue_too_long(self, *, besides: Place | None = None) -> errors.QueueFullError:
        return errors.QueueFullError(
            f"The admitted requests take so long that this one would not be done within {self.deadline_s:g} s.",
            retry_after_s=self._retry_after_s(besides=besides),
        )

    def _retry_after_s(self, *, besides: Place | None = None) -> int:
        return max(_MIN_RETRY_AFTER_S, min(_MAX_RETRY_AFTER_S, math.ceil(self._backlog_s(besides=besides))))
