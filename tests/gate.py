"""A pipeline that stops in every call until the gate is opened, and remembers what happened."""

import threading
from collections.abc import Sequence

from app.pipelines.base import GenerationParams, LoadedPipelines, Mode, PipelineImage
from app.pipelines.fake import FakePipeline


class GatedPipeline:
    """A fake that counts its calls, their threads, and how many ran at once. The gate is open at first."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.calls: list[Sequence[GenerationParams]] = []
        self.thread_ids: set[int] = set()
        self.peak = 0
        self.error: Exception | None = None
        self._inside = 0
        self._mutex = threading.Lock()
        self._fake = FakePipeline()

    def __call__(self, batch: Sequence[GenerationParams], /) -> list[PipelineImage]:
        with self._mutex:
            self.calls.append(batch)
            self.thread_ids.add(threading.get_ident())
            self._inside += 1
            self.peak = max(self.peak, self._inside)
        try:
            self.entered.release()
            assert self.gate.wait(timeout=60), "nobody opened the gate"
            if self.error is not None:
                raise self.error
            return self._fake(batch)
        finally:
            with self._mutex:
                self._inside -= 1

    @property
    def prompts(self) -> list[str]:
        return [batch[0].prompt for batch in self.calls]

    def load(self) -> LoadedPipelines:
        """Be the `PipelineLoader` too."""
        self.thread_ids.add(threading.get_ident())
        return LoadedPipelines(by_mode=dict.fromkeys(Mode, self), model="gated", device="none", dtype="none")

    def close(self) -> None:
        """Let calls stop here from now on; forget the warm-up's."""
        self.gate.clear()
        self.calls.clear()
        while self.entered.acquire(blocking=False):
            pass
