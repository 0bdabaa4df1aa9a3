"""The engine: makes the device calls of admitted requests, and ends the service if the device is lost."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Literal, TypeVar

from app import errors
from app.errors import DeviceLostError, TurboError
from app.inference.admission import Admission, Place
from app.inference.batching_lock import Item, TooLateError
from app.inference.cost import Request
from app.inference.registry import PipelineRegistry
from app.pipelines.base import PipelineImage

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenerationResult:
    """The pictures of one request, and the seconds, the number and the picture count of the call that made them."""

    images: list[PipelineImage]
    queue_s: float
    inference_s: float
    call: int
    batch_pictures: int


Status = Literal["ready", "draining", "device_lost", "hung", "starting"]


@dataclass(eq=False)
class Engine:
    """Makes the device calls of admitted requests. Lives on the event loop and never blocks it.

    If the device fails, every waiting request is answered with the error. Then `on_device_lost` is called once, on the
    event loop; the process should be replaced.
    """

    registry: PipelineRegistry
    admission: Admission
    _: KW_ONLY
    on_device_lost: Callable[[DeviceLostError], None]
    calls: int = field(default=0, init=False)
    """Calls for pictures so far."""
    _measuring: asyncio.Task[None] | None = field(default=None, init=False)

    @property
    def status(self) -> Status:
        """The most serious state now. Never waits for the device."""
        if self.registry.lock.hung:
            return "hung"
        if self.admission.lost is not None:
            return "device_lost"
        if self.admission.draining:
            return "draining"
        return "ready" if self.registry.warm else "starting"

    @property
    def live(self) -> bool:
        """Whether the process can serve; if not, replace it."""
        return self.status not in ("hung", "device_lost")

    def lose_device(self, error: DeviceLostError) -> None:
        """Answer the waiting requests with `error`, reject new ones, and have the process replaced."""
        if self.admission.lost is not None:
            _log.warning("another error after the device was lost: %s", error, exc_info=error)
            return
        self.admission.close(error)
        self.on_device_lost(error)

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
        try:
            self.admission.check_in_time(request, place)
            result = await self.registry.lock.serve(self._item(request, place))
        except errors.BeyondDeadlineError:
            self._measure_if_stale(place)
            raise
        except TurboError:
            raise
        except TooLateError:
            raise errors.DeadlineExceededError(
                f"Too little time was left to finish the request within {place.deadline_s:.4g} s.",
                retry_after_s=self.admission.retry_after_s(besides=place),
            ) from None
        except Exception as error:  # the pipeline is foreign code: only this request fails
            raise errors.InferenceError("The pipeline failed on this request.") from error
        place.served = True
        return result

    def _item(self, request: Request, place: Place) -> Item[Place, GenerationResult]:
        """Return the request as an item of the device lock."""
        costs, key = self.registry.costs, request[0].batch_key
        return Item(
            value=place,
            call=partial(self._serve, loop=asyncio.get_running_loop()),
            key=key,
            max_pictures=self.registry.loaded.by_mode[key.mode].batch_limit(key),
            pictures=len(request),
            expected_s=costs.expected_s(request),
            least_s=costs.least_s(request),
            ends=place.ends,
            limit_s=self.registry.hang_limit_s(request),
            on_turn=place.begin,
        )

    def _measure_if_stale(self, place: Place) -> None:
        """Measure the idle device again before it rejects more requests; `place` is the rejected one."""
        idle = not self.admission.backlog_s(besides=place) and not self.registry.lock.serving
        if idle and self.registry.costs.is_stale and (self._measuring is None or self._measuring.done()):
            self._measuring = asyncio.create_task(self._measure_again())

    async def _measure_again(self) -> None:
        """Make the reference picture, so that a measurement on a busy machine does not reject requests forever."""
        reference = self.registry.costs.reference
        call = partial(self._unless_lost, partial(self.registry.call, [reference]), asyncio.get_running_loop())
        with suppress(DeviceLostError):  # reported by `_unless_lost`
            await self.registry.lock.run(call, limit_s=self.registry.hang_limit_s(reference))

    def _serve(self, places: Sequence[Place], *, loop: asyncio.AbstractEventLoop) -> list[GenerationResult | Exception]:
        """Serve requests of one batch key by one call. On the device thread."""
        started = time.monotonic()
        waiting = [place for place in places if place in self.admission.places]
        requests = [place.request for place in waiting]
        call = partial(self.registry.call, requests, wanted=lambda number: waiting[number] in self.admission.places)
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
        await self.registry.lock.run(check)

    def _unless_lost(self, call: Callable[[], T], loop: asyncio.AbstractEventLoop) -> T:
        """Make a call unless the device is lost, and report a loss. On the device thread."""
        if self.admission.lost is not None:
            raise copy(self.admission.lost)
        try:
            return call()
        except DeviceLostError as error:
            # Reported from here, as the clients may have left, and before the next call.
            loop.call_soon_threadsafe(self.lose_device, error)
            raise
