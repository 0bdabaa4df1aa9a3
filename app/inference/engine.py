"""The engine: who is let in, how long it may take, and the call itself."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from app.errors import (
    BeyondDeadlineError,
    ClientDisconnectedError,
    DeadlineExceededError,
    DeadlineTooShortError,
    DeviceLostError,
    DrainingError,
    InferenceError,
    QueueFullError,
    TurboError,
)
from app.inference.cost import CostModel
from app.inference.device_guard import Outcome
from app.inference.device_lock import DeviceLock, TooLateError
from app.inference.registry import PipelineRegistry
from app.pipelines.base import GenerationParams, PipelineImage

T = TypeVar("T")

_log = logging.getLogger(__name__)

_RETRY_AFTER_S = (1, 120)
"""Bounds of Retry-After: no SDK waits for less than a second; the OpenAI SDK never retries above 120."""

_EWMA_WEIGHT = 0.2
"""Weight of the newest call in the running mean of requests per call."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenerationResult:
    """The pictures of one request, where its time went, and the number and the pictures of the call that served it."""

    images: list[PipelineImage]
    queue_s: float
    inference_s: float
    call: int
    batch_pictures: int


_Served = tuple[list[PipelineImage], float, int, int]
"""A request's pictures, and of the call that made them the seconds, the number, and all its pictures."""

StatusWord = Literal["ready", "draining", "device_lost", "hung", "starting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """What health checks read: taken from plain attributes, so that it never waits for the device."""

    warm: bool
    draining: bool
    device_lost: bool
    hung: bool
    waiting: int
    running_s: float
    calls: int
    busy_s: float

    @property
    def live(self) -> bool:
        """Whether the process is of any use; if not, replace it."""
        return not (self.device_lost or self.hung)

    @property
    def ready(self) -> bool:
        """Whether new requests should be sent here."""
        return self.live and self.warm and not self.draining

    @property
    def word(self) -> StatusWord:
        """All of it in a word: what counts most."""
        if self.hung:
            return "hung"
        if self.device_lost:
            return "device_lost"
        if self.draining:
            return "draining"
        return "ready" if self.warm else "starting"


class Place:
    """An admitted request's place: waiting until the device begins with it, served once it has its pictures.

    `request` is its pictures, None until they are known. `turn_at` is when the device began, by the monotonic clock.
    """

    def __init__(self, time_left: asyncio.Timeout) -> None:
        self.time_left = time_left
        self.request: Sequence[GenerationParams] | None = None
        self.turn_at: float | None = None
        self.served = False
        self.ended_by: TurboError | None = None

    @property
    def waiting(self) -> bool:
        """Whether the device has not begun with it."""
        return self.turn_at is None

    def end(self, error: TurboError) -> None:
        """Answer the request with `error`, now."""
        if not self.time_left.expired():
            self.ended_by = error
            self.time_left.reschedule(asyncio.get_running_loop().time())


class Engine:
    """Admission, deadline, the device call, and what becomes of a device that fails.

    Lives on the event loop; nothing in it blocks. `on_device_lost` is called once, there, with the error, when the
    device has failed and every waiting request has been answered; the process should then be replaced.
    """

    def __init__(
        self,
        registry: PipelineRegistry,
        device_lock: DeviceLock,
        *,
        max_queue: int,
        deadline_s: float,
        on_device_lost: Callable[[DeviceLostError], None],
    ) -> None:
        self._registry = registry
        self._device_lock = device_lock
        self._max_queue = max_queue
        self._deadline_s = deadline_s
        self._on_device_lost = on_device_lost
        self._places: set[Place] = set()
        self._draining = False
        self._lost: DeviceLostError | None = None
        self._long_call = 1.0
        self._measuring: asyncio.Task[None] | None = None
        self._calls = 0

    @property
    def status(self) -> EngineStatus:
        """The state for health checks and metrics."""
        return EngineStatus(
            warm=self._registry.warm,
            draining=self._draining,
            device_lost=self._lost is not None,
            hung=self._device_lock.hung,
            waiting=self._waiting,
            running_s=self._device_lock.running_s,
            calls=self._calls,
            busy_s=self._device_lock.busy_s,
        )

    @property
    def draining(self) -> bool:
        """Whether nobody is admitted any more."""
        return self._draining

    @property
    def max_queue(self) -> int:
        """Requests that may wait."""
        return self._max_queue

    @property
    def deadline_s(self) -> float:
        """Seconds that a request may take."""
        return self._deadline_s

    @property
    def in_flight(self) -> int:
        """Requests that were admitted and are not answered yet."""
        return len(self._places)

    def drain(self) -> None:
        """Admit nobody from now on; who is in will be served."""
        self._draining = True

    def give_up(self) -> None:
        """Answer everybody who is in with an error, now: the time to drain is over."""
        for place in self._places:
            place.end(DrainingError("The service stopped before the request was done.", retry_after_s=1))

    def lose_device(self, error: DeviceLostError) -> None:
        """Answer everybody who waits for the device with `error`, admit nobody any more, and have the process replaced.

        Requests that have their pictures, which the device made in good health, are finished.
        """
        if self._lost is not None:
            _log.warning("the device is lost, and more comes of it: %s", error, exc_info=error)
            return
        self._lost = error
        for place in self._places:
            if not place.served:
                place.end(self._lost_error())
        self._on_device_lost(error)

    def check_deadline(self) -> None:
        """Check that the warm-up's picture can be made within the deadline.

        Raises:
            DeadlineTooShortError: It cannot.
        """
        least_s = self._costs.least_s(self._costs.reference)
        if least_s > self._deadline_s:
            raise DeadlineTooShortError(
                f"A picture of the first warm-up size takes {_rounded(least_s)} s on this device, and TURBO_DEADLINE_S "
                f"is {self._deadline_s:g}. Set it higher, or TURBO_WARM_UP_SIZES smaller."
            )

    def check_admission(self) -> None:
        """Raise what `admit` would raise now, so that a body need not be read in vain.

        Raises:
            DrainingError: The service is shutting down.
            DeviceLostError: The device has failed.
            QueueFullError: As many requests wait as may wait, or as can be served by the deadline.
        """
        if self._lost is not None:
            raise self._lost_error()
        if self._draining:
            raise DrainingError("The service is shutting down.", retry_after_s=self._retry_after_s())
        if self._waiting + self._busy > self._max_queue:
            raise QueueFullError(f"{self._waiting} requests are waiting already.", retry_after_s=self._retry_after_s())
        # If the queue outlasts the deadline, the device works on requests that expire unfinished. Allow for two calls:
        # this request's own, and one batch that may overtake it.
        if self._waiting + self._busy and self._backlog_s() + 2 * self._call_s > self._deadline_s:
            raise self._too_long_a_queue()

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[Place]:
        """Give the request a place, and hold it to its deadline while it has one.

        Raises:
            DeadlineExceededError: The deadline passed inside the `async with`.
            DrainingError: The time to drain was over inside the `async with`.
            DeviceLostError: The device was lost inside the `async with`.
            TurboError: As `check_admission`.
        """
        self.check_admission()
        place = Place(asyncio.timeout(self._deadline_s))
        self._places.add(place)
        try:
            async with place.time_left:
                yield place
        except TimeoutError:
            if place.ended_by is not None:
                raise place.ended_by from None
            raise DeadlineExceededError(
                f"The request was not done within {self._deadline_s:g} s.",
                retry_after_s=self._retry_after_s(besides=place),
            ) from None
        finally:
            self._places.discard(place)

    async def generate(self, request: Sequence[GenerationParams], place: Place) -> GenerationResult:
        """Make the pictures of one request, which share a batch key, in one call with others that wait and have it too.

        Raises:
            BeyondDeadlineError: This device cannot make them within the deadline, not even when it is idle.
            QueueFullError: It cannot after the requests that are in.
            DeadlineExceededError: When the device was free, too little time was left.
            DeviceOutOfMemoryError: The device has no memory for this request.
            DeviceLostError: The device failed, now or before.
            DeadPictureError: What the model made is no picture.
            InferenceError: The pipeline failed in any other way.
        """
        entered = time.monotonic()
        queue_s = 0.0
        place.request = request
        ends = self._check_in_time(request, place)

        def on_turn() -> None:
            nonlocal queue_s
            place.turn_at = time.monotonic()
            queue_s = place.turn_at - entered

        try:
            images, inference_s, call, batch_pictures = await self._device_lock.serve(
                _Asked(request, place),
                partial(self._serve, loop=asyncio.get_running_loop()),
                key=request[0].batch_key,
                limit=self._registry.batch_limit(request[0].batch_key),
                pictures=len(request),
                expected_s=self._costs.expected_s(request),
                limit_s=self._registry.hang_limit_s(request),
                start_by=ends - self._costs.least_s(request),
                ends=ends,
                on_turn=on_turn,
            )
        except TurboError:
            raise
        except TooLateError:
            raise DeadlineExceededError(
                f"Too little time was left to finish the request within {self._deadline_s:g} s.",
                retry_after_s=self._retry_after_s(besides=place),
            ) from None
        except Exception as error:  # the pipeline is foreign code: whatever it raises, this request alone fails
            raise InferenceError("The pipeline failed on this request.") from error
        place.served = True
        return GenerationResult(
            images=images, queue_s=queue_s, inference_s=inference_s, call=call, batch_pictures=batch_pictures
        )

    def _check_in_time(self, request: Sequence[GenerationParams], place: Place) -> float:
        """Check that the request can be done by its deadline, and return that by the event loop's clock.

        Raises:
            TurboError: The request was ended meanwhile.
            BeyondDeadlineError: The device cannot do it in that time even when it is idle.
            QueueFullError: The device cannot do it after the requests that are in.
        """
        if place.ended_by is not None:  # and its deadline is now
            raise place.ended_by
        others_s = self._backlog_s(besides=place)
        least_s = self._costs.least_s(request)
        if least_s > self._deadline_s:
            if not others_s and not self._busy and self._costs.is_stale and self._measuring is None:
                self._measuring = asyncio.create_task(self._measure_again())
            expected_s = max(least_s, self._costs.expected_s(request))
            raise BeyondDeadlineError(
                f"This would take {_rounded(expected_s)} s on this device, and a request may take "
                f"{self._deadline_s:g} s. Ask for fewer pictures, a smaller size or fewer steps."
            )
        ends = place.time_left.when() or math.inf
        if others_s and asyncio.get_running_loop().time() + others_s + self._costs.expected_s(request) > ends:
            raise self._too_long_a_queue(besides=place)
        return ends

    async def _measure_again(self) -> None:
        """Make the reference picture, so that a measurement on a busy machine does not refuse requests for good."""
        reference = self._costs.reference
        call = partial(self._unless_lost, partial(self._registry.call, [reference]), asyncio.get_running_loop())
        try:
            with suppress(DeviceLostError):  # the engine knows
                await self._device_lock.run(call, limit_s=self._registry.hang_limit_s(reference))
        finally:
            self._measuring = None

    def _serve(self, asked: Sequence["_Asked"], *, loop: asyncio.AbstractEventLoop) -> list[_Served | Exception]:
        """Serve requests of one batch key by one call. On the device thread."""
        started = time.monotonic()
        waiting = [one for one in asked if one.place in self._places]
        requests = [one.request for one in waiting]
        outcomes: list[Outcome] = []
        try:
            if waiting:
                outcomes = self._unless_lost(
                    lambda: self._registry.call(requests, wanted=lambda number: waiting[number].place in self._places),
                    loop,
                )
        except DeviceLostError as error:  # one for each: an error that is raised again and again keeps every traceback
            return [DeviceLostError(str(error), remedy=error.remedy) for _ in asked]
        inference_s = time.monotonic() - started
        for request in requests:
            self._costs.learn_usual(request)
        self._long_call = max(float(len(requests)), self._long_call + _EWMA_WEIGHT * (len(requests) - self._long_call))
        self._calls += 1
        call, pictures = self._calls, sum(map(len, requests))
        made: dict[_Asked, _Served | Exception] = {
            one: outcome if isinstance(outcome, Exception) else (outcome, inference_s, call, pictures)
            for one, outcome in zip(waiting, outcomes, strict=True)
        }
        return [made.get(one) or ClientDisconnectedError("Nobody waits for the pictures any more.") for one in asked]

    async def check_device(self) -> None:
        """Have the device prove that it computes, in turn with the calls.

        Raises:
            DeviceLostError: It does not.
            DeviceOutOfMemoryError: It has no memory even for that.
        """
        loop = asyncio.get_running_loop()
        await self._device_lock.run(lambda: self._unless_lost(self._registry.loaded.device.check, loop))

    def _unless_lost(self, call: Callable[[], T], loop: asyncio.AbstractEventLoop) -> T:
        """Make a call unless the device is lost; lose it if it turns out to be. On the device thread."""
        if self._lost is not None:
            raise self._lost_error()
        try:
            return call()
        except DeviceLostError as error:
            # From here, as nobody may wait any more; and it comes before the next call has its turn.
            loop.call_soon_threadsafe(self.lose_device, error)
            raise

    def _lost_error(self) -> DeviceLostError:
        """Return a new error for each request: one that is raised again and again keeps every traceback."""
        return DeviceLostError(str(self._lost), remedy=self._lost.remedy if self._lost else "")

    @property
    def _busy(self) -> bool:
        """Whether requests have the device; a check is over in no time."""
        return self._device_lock.serving > 0

    @property
    def _waiting(self) -> int:
        return sum(place.waiting for place in self._places)

    @property
    def _costs(self) -> CostModel:
        return self._registry.costs

    def _backlog_s(self, *, besides: Place | None = None) -> float:
        """Estimate the seconds until the admitted requests are done.

        Args:
            besides: A request to leave out.
        """
        costs = self._costs
        waiting_s = sum(
            costs.usual_s if place.request is None else costs.expected_s(place.request)
            for place in self._places
            if place.waiting and place is not besides
        )
        running_s = self._device_lock.serving_s - self._device_lock.running_s if self._busy else 0.0
        return waiting_s + max(0.0, running_s)

    @property
    def _call_s(self) -> float:
        """Estimate the seconds of a large batch of usual requests; its size follows the largest batches of late."""
        return self._costs.usual_s * self._long_call

    def _too_long_a_queue(self, *, besides: Place | None = None) -> QueueFullError:
        return QueueFullError(
            f"The requests that are in take so long that another would not be done within {self._deadline_s:g} s.",
            retry_after_s=self._retry_after_s(besides=besides),
        )

    def _retry_after_s(self, *, besides: Place | None = None) -> int:
        lowest, highest = _RETRY_AFTER_S
        return max(lowest, min(highest, math.ceil(self._backlog_s(besides=besides))))


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A request as it waits for the device."""

    request: Sequence[GenerationParams]
    place: Place


def _rounded(seconds: float) -> str:
    """Return seconds as people say them."""
    return f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}"  # noqa: PLR2004 - where a tenth stops to matter
