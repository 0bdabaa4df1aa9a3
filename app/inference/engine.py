"""The engine: who is let in, how long it may take, and the call itself."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.errors import (
    DeadlineExceededError,
    DeviceLostError,
    DrainingError,
    InferenceError,
    QueueFullError,
    TurboError,
)
from app.inference.device_lock import DeviceLock
from app.inference.registry import PipelineRegistry
from app.pipelines.base import GenerationParams, PipelineImage

_RETRY_AFTER_S = (1, 120)
"""Bounds of Retry-After: no SDK waits for less than a second; the OpenAI SDK never retries above 120."""

_EWMA_WEIGHT = 0.2
"""Weight of the newest call in the running mean of seconds per request."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenerationResult:
    """The pictures of one request, and where its time went."""

    images: list[PipelineImage]
    queue_s: float
    inference_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """What health checks read: taken from plain attributes, so that it never waits for the device."""

    warm: bool
    draining: bool
    device_lost: bool
    hung: bool
    waiting: int
    running_s: float

    @property
    def live(self) -> bool:
        """Whether the process is of any use; if not, replace it."""
        return not (self.device_lost or self.hung)

    @property
    def ready(self) -> bool:
        """Whether new requests should be sent here."""
        return self.live and self.warm and not self.draining


class Place:
    """An admitted request's place. It counts as waiting until the device begins with it."""

    def __init__(self, time_left: asyncio.Timeout) -> None:
        self.time_left = time_left
        self.waiting = True


class Engine:
    """Admission, deadline and the device call. Lives on the event loop; nothing in it blocks."""

    def __init__(
        self,
        registry: PipelineRegistry,
        device_lock: DeviceLock,
        *,
        max_queue: int,
        deadline_s: float,
        hang_limit_s: float,
    ) -> None:
        self._registry = registry
        self._device_lock = device_lock
        self._max_queue = max_queue
        self._deadline_s = deadline_s
        self._hang_limit_s = hang_limit_s
        self._places: set[Place] = set()
        self._draining = False
        self._given_up = False
        self._device_lost = False
        self._mean_request_s: float | None = None

    @property
    def status(self) -> EngineStatus:
        """The state for health checks and metrics."""
        running_s = self._device_lock.running_s
        return EngineStatus(
            warm=self._registry.warm,
            draining=self._draining,
            device_lost=self._device_lost,
            hung=running_s > self._hang_limit_s,
            waiting=self._waiting,
            running_s=running_s,
        )

    @property
    def max_queue(self) -> int:
        """Requests that may wait."""
        return self._max_queue

    @property
    def in_flight(self) -> int:
        """Requests that were admitted and are not answered yet."""
        return len(self._places)

    def drain(self) -> None:
        """Admit nobody from now on; who is in will be served."""
        self._draining = True

    def give_up(self) -> None:
        """Answer everybody who is in with an error, now: the time to drain is over."""
        self._given_up = True
        for place in self._places:
            if not place.time_left.expired():
                place.time_left.reschedule(asyncio.get_running_loop().time())

    def check_admission(self) -> None:
        """Raise what `admit` would raise now, so that a body need not be read in vain.

        Raises:
            DrainingError: The service is shutting down.
            DeviceLostError: The device has failed.
            QueueFullError: As many requests wait as may wait.
        """
        if self._draining:
            raise DrainingError("The service is shutting down.", retry_after_s=self._retry_after_s())
        if self._device_lost:
            raise DeviceLostError
        if self._waiting + self._device_lock.busy > self._max_queue:
            raise QueueFullError(f"{self._waiting} requests are waiting already.", retry_after_s=self._retry_after_s())

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[Place]:
        """Give the request a place, and hold it to its deadline while it has one.

        Raises:
            DeadlineExceededError: The deadline passed inside the `async with`.
            DrainingError: The time to drain was over inside the `async with`.
            TurboError: As `check_admission`.
        """
        self.check_admission()
        place = Place(asyncio.timeout(self._deadline_s))
        self._places.add(place)
        try:
            async with place.time_left:
                yield place
        except TimeoutError:
            if self._given_up:
                raise DrainingError("The service stopped before the request was done.", retry_after_s=1) from None
            raise DeadlineExceededError(
                f"The request was not done within {self._deadline_s:g} s.", retry_after_s=self._retry_after_s()
            ) from None
        finally:
            self._places.discard(place)

    async def generate(self, batch: Sequence[GenerationParams], place: Place) -> GenerationResult:
        """Make the pictures of one request, all of one mode, as one call on the device thread.

        Raises:
            DeviceOutOfMemoryError: The device has no memory for this request.
            DeviceLostError: The device failed, now or before.
            InferenceError: The pipeline failed in any other way.
        """
        pipeline = self._registry[batch[0].mode]
        entered = time.monotonic()
        queue_s = inference_s = 0.0

        def on_turn() -> None:
            nonlocal queue_s
            place.waiting = False
            queue_s = time.monotonic() - entered

        def call() -> list[PipelineImage]:
            nonlocal inference_s
            if self._device_lost:
                raise DeviceLostError
            started = time.monotonic()
            try:
                images = pipeline(batch)
            except DeviceLostError:
                self._device_lost = True  # here, on the device thread, so that the next call finds it
                raise
            inference_s = time.monotonic() - started
            self._learn(inference_s)  # also of calls that nobody waits for any more
            return images

        try:
            images = await self._device_lock.run(call, on_turn=on_turn)
        except TurboError:
            raise
        except Exception as error:  # the pipeline is foreign code: whatever it raises, this request alone fails
            raise InferenceError("The pipeline failed on this request.") from error
        return GenerationResult(images=images, queue_s=queue_s, inference_s=inference_s)

    @property
    def _waiting(self) -> int:
        return sum(place.waiting for place in self._places)

    def _learn(self, inference_s: float) -> None:
        before = self._mean_request_s
        self._mean_request_s = inference_s if before is None else before + _EWMA_WEIGHT * (inference_s - before)

    def _retry_after_s(self) -> int:
        """Estimate when the requests that are in will be done: their number times the measured time of one."""
        mean_s = self._registry.warm_call_s if self._mean_request_s is None else self._mean_request_s
        requests = self._waiting + self._device_lock.busy
        lowest, highest = _RETRY_AFTER_S
        return max(lowest, min(highest, math.ceil(requests * mean_s)))
