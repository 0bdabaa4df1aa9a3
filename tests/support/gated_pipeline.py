"""A pipeline that waits in every call until its gate is open, and records its calls."""

import threading
import time
from collections.abc import Callable, Sequence

from app.pipelines.base import BatchKey, GenerationParams, LoadedPipelines, Mode, PipelineImage
from app.pipelines.fake import FakePipeline


class CheckedDevice:
    """A device that counts its calls. While `error` is set, its checks raise it."""

    def __init__(self) -> None:
        self.checks = 0
        self.times_freed = 0
        self.error: Exception | None = None

    def check(self) -> None:
        self.checks += 1
        if self.error is not None:
            raise self.error

    def free_memory(self) -> None:
        self.times_freed += 1


class GatedPipeline:
    """A fake that records its calls, their threads, and the most calls at the same time. The gate is open at first.

    Each call raises the next of `errors`. When none is left, it raises `error` if that is set. Otherwise it raises the
    error in `poison` for the seed of one of its pictures. A unit of `work` takes `unit_s` seconds, by `sleep`.
    """

    def __init__(
        self,
        *,
        max_batch: int = 8,
        unit_s: float = 0.0,
        work: Callable[[GenerationParams], float] = lambda _: 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.calls: list[Sequence[GenerationParams]] = []
        self.thread_ids: set[int] = set()
        self.peak = 0
        self.error: Exception | None = None
        self.errors: list[Exception] = []
        self.poison: dict[int, Exception] = {}
        self.device = CheckedDevice()
        self.unit_s, self._work, self._sleep = unit_s, work, sleep
        self._inside = 0
        self._mutex = threading.Lock()
        self._fake = FakePipeline(max_batch=max_batch)

    def __call__(self, batch: Sequence[GenerationParams], /) -> list[PipelineImage]:
        with self._mutex:
            self.calls.append(batch)
            self.thread_ids.add(threading.get_ident())
            self._inside += 1
            self.peak = max(self.peak, self._inside)
        try:
            self.entered.release()
            assert self.gate.wait(timeout=60), "the test did not open the gate within 60 s"
            if self.errors:
                raise self.errors.pop(0)
            if self.error is not None:
                raise self.error
            for params in batch:
                if params.seed in self.poison:
                    raise self.poison[params.seed]
            self._sleep(self.unit_s * sum(map(self._work, batch)))
            return self._fake(batch)
        finally:
            with self._mutex:
                self._inside -= 1

    def batch_limit(self, key: BatchKey) -> int:
        return self._fake.batch_limit(key)

    @property
    def prompts(self) -> list[str]:
        return [batch[0].prompt for batch in self.calls]

    def load(self) -> LoadedPipelines:
        """Return this pipeline for every mode; a `PipelineLoader`."""
        self.thread_ids.add(threading.get_ident())
        return LoadedPipelines(
            by_mode=dict.fromkeys(Mode, self),
            device=self.device,
            model="gated",
            device_name="none",
            dtype="none",
            work=self._work,
        )

    def close(self) -> None:
        """Make calls wait from now on, and forget the recorded calls of the warm-up."""
        self.gate.clear()
        self.calls.clear()
        while self.entered.acquire(blocking=False):
            pass
