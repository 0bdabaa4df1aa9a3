"""The guard: makes every call to the device, and checks the device before it hands out pictures."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from app.errors import ClientDisconnectedError, DeviceLostError, DeviceOutOfMemoryError
from app.inference.cost import Request
from app.pipelines.base import Device, GenerationParams, Pipeline, PipelineImage

_log = logging.getLogger(__name__)

Outcome = list[PipelineImage] | Exception
"""One request's pictures, or the reason why there are none."""

Wanted = Callable[[int], bool]
"""Returns whether a client still waits for the request with this number."""


@dataclass(frozen=True, kw_only=True)
class DeviceGuard:
    """Calls a pipeline, makes second tries, and checks the device after every call. On the device thread alone.

    A device can die without an error: after one error torch_npu's task queue may drop all later work, calls return
    normally, and pictures are old memory (torch_npu 2.13). Only a newly computed value shows that.

    `on_progress` is called before the second try, which takes as long as the first. `on_made` is called with the
    pictures and the seconds of each successful call.
    """

    pipeline: Pipeline
    device: Device
    on_progress: Callable[[], None]
    on_made: Callable[[Sequence[GenerationParams], float], None] = lambda _, __: None

    def call(self, requests: Sequence[Request], *, wanted: Wanted = lambda _: True) -> list[Outcome]:
        """Make the pictures of all requests as one batch, and return an outcome for each.

        A single request above the pipeline's batch limit is made in several calls. If memory was short or a batch of
        several requests failed, each picture is tried once more alone, so a bad request fails alone. If memory was
        short, the cache is emptied first. No second try or further call is made for a request whose client has left;
        its outcome is a ClientDisconnectedError.

        Raises:
            DeviceLostError: The device cannot be trusted any more. No request has pictures.
        """
        try:
            if len(requests) == 1:
                size = self.pipeline.batch_limit(requests[0][0].batch_key)
                return [self._in_parts(requests[0], size, partial(wanted, 0))]
            images = iter(self._attempt([params for request in requests for params in request]))
            return [list(islice(images, len(request))) for request in requests]
        except DeviceLostError:
            raise
        except DeviceOutOfMemoryError as error:
            _log.warning("%s Trying once more with an empty cache.", error)
            memory_was_short = True
        except Exception as error:  # noqa: BLE001 - the pipeline is foreign code: only its requests fail
            if len(requests) == 1:
                return [error]
            _log.warning("A batch of %d requests failed. Trying them one by one.", len(requests), exc_info=error)
            memory_was_short = False
        # Outside of the handler, as the exception keeps the failed call's tensors.
        self.on_progress()
        if memory_was_short:
            self.device.free_memory()
            self.device.check()
        return [self._one_by_one(request, partial(wanted, number)) for number, request in enumerate(requests)]

    def _in_parts(self, request: Request, size: int, wanted: Callable[[], bool]) -> list[PipelineImage]:
        """Make a request's pictures, `size` at once, while its client waits for them."""
        images: list[PipelineImage] = []
        while len(images) < len(request):
            if not wanted():
                raise ClientDisconnectedError("The client has left.")
            images += self._attempt(request[len(images) : len(images) + size])
        return images

    def _one_by_one(self, request: Request, wanted: Callable[[], bool]) -> Outcome:
        try:
            return self._in_parts(request, 1, wanted)
        except DeviceLostError:
            raise
        except DeviceOutOfMemoryError as error:
            try:
                self.device.check()
            except DeviceOutOfMemoryError:
                self.device.free_memory()  # other requests of the batch may fit
                self.device.check()
            return error
        except Exception as error:  # noqa: BLE001 - only this request fails
            return error

    def _attempt(self, batch: Sequence[GenerationParams]) -> list[PipelineImage]:
        started = time.monotonic()
        try:
            images = self.pipeline(batch)
        except (DeviceLostError, DeviceOutOfMemoryError):
            raise
        except Exception:  # a library may have hidden an earlier error, of which the device died
            self.device.check()
            raise
        self.device.check()
        if len(images) != len(batch):
            raise RuntimeError(f"The pipeline made {len(images)} pictures of a batch of {len(batch)}.")
        self.on_made(batch, time.monotonic() - started)
        return images
