"""The guard: every call to the device goes through it, and no picture leaves it that the device may not have made."""

import logging
from collections.abc import Callable, Sequence

from app.errors import DeviceLostError, DeviceOutOfMemoryError
from app.pipelines.base import Device, GenerationParams, Pipeline, PipelineImage

_log = logging.getLogger(__name__)


class DeviceGuard:
    """Calls pipelines, tries again when memory is short, and asks the device to prove itself after every call.

    A device can die in silence: after one error torch_npu's task queue may drop all later work, calls return normally,
    and pictures are what the memory held before (torch_npu 2.13). Only a value that is computed anew shows it, so one
    is asked for after each call, whether it failed or not. On the device thread alone.

    `on_progress` is called before the second try, which takes as long as the first.
    """

    def __init__(self, device: Device, *, on_progress: Callable[[], None]) -> None:
        self._device = device
        self._on_progress = on_progress

    def call(self, pipeline: Pipeline, batch: Sequence[GenerationParams]) -> list[PipelineImage]:
        """Make the batch's pictures. If memory is short, empty the cache and try once more, one picture at a time.

        Raises:
            DeviceLostError: The device cannot be trusted any more.
            DeviceOutOfMemoryError: Memory was short the second time too.
            Exception: Whatever else the pipeline raises.
        """
        try:
            return self._attempt(pipeline, batch)
        except DeviceOutOfMemoryError as error:
            _log.warning("%s Trying once more with an empty cache.", error)
        # Outside of the handler: what failed holds its tensors until the exception is gone.
        self._on_progress()
        self._device.free_memory()
        self._device.check()
        try:
            return [image for params in batch for image in self._attempt(pipeline, [params])]
        except DeviceOutOfMemoryError:
            self._device.check()
            raise

    def _attempt(self, pipeline: Pipeline, batch: Sequence[GenerationParams]) -> list[PipelineImage]:
        try:
            images = pipeline(batch)
        except (DeviceLostError, DeviceOutOfMemoryError):
            raise
        except Exception:  # whatever it was, what a library swallowed before it may have been the device's death
            self._device.check()
            raise
        self._device.check()
        return images
