"""The guard: every call to the device goes through it, and no picture leaves it that the device may not have made."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from app.errors import ClientDisconnectedError, DeviceLostError, DeviceOutOfMemoryError
from app.pipelines.base import Device, GenerationParams, Pipeline, PipelineImage

_log = logging.getLogger(__name__)

Outcome = list[PipelineImage] | Exception
"""What became of one request: its pictures, or why there are none."""

OnMade = Callable[[Sequence[GenerationParams], float], None]
"""Is told of each call that made its pictures, and of its seconds."""

Wanted = Callable[[int], bool]
"""Tells whether a client still waits for the request with this number."""


class DeviceGuard:
    """Calls pipelines, tries again what may go well, and asks the device to prove itself after every call.

    A device can die in silence: after one error torch_npu's task queue may drop all later work, calls return normally,
    and pictures are what the memory held before (torch_npu 2.13). Only a value that is computed anew shows it, so one
    is asked for after each call, whether it failed or not. On the device thread alone.

    `on_progress` is called before the second try, which takes as long as the first; `on_made` after each call that made
    its pictures.

    If the client of a request has left, no further call is started for it: neither a second try, nor the remaining
    calls of a request that takes several. Its outcome is a ClientDisconnectedError.
    """

    def __init__(
        self, device: Device, *, on_progress: Callable[[], None], on_made: OnMade = lambda _, __: None
    ) -> None:
        self._device = device
        self._on_progress = on_progress
        self._on_made = on_made

    def call(
        self,
        pipeline: Pipeline,
        requests: Sequence[Sequence[GenerationParams]],
        *,
        wanted: Wanted = lambda _: True,
    ) -> list[Outcome]:
        """Make the pictures of all requests as one batch, and return an outcome for each.

        A single request with more pictures than are worth making at once is made in several calls. When memory is
        short, or one of several requests may be to blame, each picture is tried once more alone; before that the cache
        is emptied if memory was short. So a request that fails takes no other along.

        Raises:
            DeviceLostError: The device cannot be trusted any more; nobody has pictures.
        """
        try:
            if len(requests) == 1:
                size = pipeline.batch_limit(requests[0][0].batch_key)
                return [self._in_parts(pipeline, requests[0], size, partial(wanted, 0))]
            images = self._attempt(pipeline, [params for request in requests for params in request])
        except DeviceLostError:
            raise
        except DeviceOutOfMemoryError as error:
            _log.warning("%s Trying once more with an empty cache.", error)
            memory_was_short = True
        except Exception as error:  # noqa: BLE001 - the pipeline is foreign code, and its errors go to whom they concern
            if len(requests) == 1:
                return [error]
            _log.warning("A batch of %d requests failed. Trying them one by one.", len(requests), exc_info=error)
            memory_was_short = False
        else:
            return _dealt(images, requests)
        # Outside of the handler: what failed holds its tensors until the exception is gone.
        self._on_progress()
        if memory_was_short:
            self._device.free_memory()
            self._device.check()
        return [self._one_by_one(pipeline, request, partial(wanted, number)) for number, request in enumerate(requests)]

    def _in_parts(
        self, pipeline: Pipeline, request: Sequence[GenerationParams], size: int, wanted: Callable[[], bool]
    ) -> list[PipelineImage]:
        """Make a request's pictures, `size` at once, while its client waits for them.

        Raises:
            ClientDisconnectedError: The client has left.
        """
        images: list[PipelineImage] = []
        while len(images) < len(request):
            if not wanted():
                raise ClientDisconnectedError("Nobody waits for the pictures any more.")
            images += self._attempt(pipeline, request[len(images) : len(images) + size])
        return images

    def _one_by_one(
        self, pipeline: Pipeline, request: Sequence[GenerationParams], wanted: Callable[[], bool]
    ) -> Outcome:
        try:
            return self._in_parts(pipeline, request, 1, wanted)
        except DeviceLostError:
            raise
        except DeviceOutOfMemoryError as error:
            self._check_after_shortage()
            return error
        except Exception as error:  # noqa: BLE001 - this request's own, whatever it is
            return error

    def _check_after_shortage(self) -> None:
        try:
            self._device.check()
        except DeviceOutOfMemoryError:
            self._device.free_memory()  # others of the batch may fit
            self._device.check()

    def _attempt(self, pipeline: Pipeline, batch: Sequence[GenerationParams]) -> list[PipelineImage]:
        started = time.monotonic()
        try:
            images = pipeline(batch)
        except (DeviceLostError, DeviceOutOfMemoryError):
            raise
        except Exception:  # whatever it was, what a library swallowed before it may have been the device's death
            self._device.check()
            raise
        self._device.check()
        if len(images) != len(batch):
            raise RuntimeError(f"The pipeline made {len(images)} pictures of a batch of {len(batch)}.")
        self._on_made(batch, time.monotonic() - started)
        return images


def _dealt(images: Sequence[PipelineImage], requests: Sequence[Sequence[GenerationParams]]) -> list[Outcome]:
    """Give each request its pictures, which come in the requests' order."""
    outcomes: list[Outcome] = []
    begin = 0
    for request in requests:
        outcomes.append(list(images[begin : begin + len(request)]))
        begin += len(request)
    return outcomes
