"""A service process, the pictures it made, and whether it was live all the time."""

import base64
import io
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ServerProcess, opened

START_S = 600
"""A start takes about a minute on two idle cores."""

PROMPT, SEED = "a lighthouse at dawn, oil on canvas", 7

REQUESTS: Mapping[str, Mapping[str, Any]] = {
    "256 px": {"width": 256, "height": 256},
    "512 px": {},
    "1024 px": {"width": 1024, "height": 1024},
    "512 px, 4 steps": {"num_inference_steps": 4},
    "1024 px, 4 steps": {"width": 1024, "height": 1024, "num_inference_steps": 4},
    "four at once": {"num_images": 4, "width": 384, "height": 384},
    "image to image, 512 px": {"image": 512, "num_inference_steps": 2, "strength": 0.5},
    "image to image, 512 px, 4 steps": {"image": 512, "num_inference_steps": 4, "strength": 1.0},
    "image to image, 1024 px": {
        "image": 1024,
        "width": 1024,
        "height": 1024,
        "num_inference_steps": 2,
        "strength": 0.5,
    },
    "inpainting, 512 px": {"image": 512, "mask": 64},
}
"""Requests by name. `image` is the side of the picture that image to image and inpainting start from; `mask`
is the width of the frame that inpainting keeps."""


@dataclass(frozen=True, slots=True)
class Made:
    """The answer to a request, and the seconds until it was there."""

    response: httpx.Response
    seconds: float

    @property
    def pictures(self) -> list[bytes]:
        assert self.response.status_code == 200, self.response.text
        if self.response.headers["content-type"] == "application/json":
            return [base64.b64decode(image["b64"]) for image in self.response.json()["images"]]
        return [self.response.content]


@dataclass(frozen=True, slots=True)
class Seen:
    """One request of a crowd: its answer, and its times by the monotonic clock."""

    status: int
    began: float
    ended: float
    retry_after_s: int | None
    code: str | None

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Life:
    """The service from its start to its end. A thread asks for its liveness meanwhile."""

    def __init__(
        self, folder: Path, *, model: Path, deadline_s: float, drain_s: float = 60, dtype: str = "auto"
    ) -> None:
        self.deadline_s = deadline_s
        self.liveness: list[tuple[int, float]] = []
        """Status and seconds of each check."""
        self.start_peak_bytes = 0
        """The most memory, without cached files, that the process was seen to take until its port was open."""
        self._made: dict[str, Made] = {}
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._ask_for_liveness)
        log = folder / "log"
        self.server = ServerProcess(log, model=model, deadline_s=deadline_s, drain_s=drain_s, dtype=dtype)
        try:
            self.url = f"http://127.0.0.1:{self._wait_for_port()}"
        except BaseException:
            self.server.kill()
            raise
        self._client = httpx.Client(base_url=self.url, timeout=1800)
        self._watch.start()

    def make(self, name: str) -> Made:
        """The answer to the request of this name; it is sent once."""
        if name not in self._made:
            self._made[name] = self.ask(REQUESTS[name])
            print(f"{name}: {self._made[name].response.status_code} in {self._made[name].seconds:.1f} s")  # noqa: T201
        return self._made[name]

    def ask(self, request: Mapping[str, Any]) -> Made:
        """Send a request, by default with one prompt and one seed."""
        fields = {"prompt": PROMPT, "seed": SEED, **request}
        headers = {"Accept": "application/json"} if "num_images" in fields else {}
        side = fields.pop("image", None)
        began = time.monotonic()
        if side is None:
            response = self._client.post("/txt2img", json=fields, headers=headers)
        elif (frame := fields.pop("mask", None)) is not None:
            files = {"image": _gradient(side), "mask": _mask(side, frame)}
            response = self._client.post("/inpaint", data=fields, files=files)
        else:
            response = self._client.post("/img2img", data=fields, files={"image": _gradient(side)})
        return Made(response, time.monotonic() - began)

    def ask_together(self, requests: Sequence[Mapping[str, Any]]) -> list[Made]:
        with ThreadPoolExecutor(len(requests)) as threads:
            return list(threads.map(self.ask, requests))

    def crowd(self, clients: int, *, lasting_s: float) -> list[Seen]:
        """Have clients ask for pictures one after another, and after a rejection again a second later."""
        until = time.monotonic() + lasting_s

        def persist(number: int) -> list[Seen]:
            seen: list[Seen] = []
            while (began := time.monotonic()) < until:
                response = self.ask({"seed": 1000 * number + len(seen)}).response
                after = response.headers.get("retry-after")
                code = None if response.status_code == 200 else response.json()["code"]
                ended = time.monotonic()
                seen.append(Seen(response.status_code, began, ended, int(after) if after else None, code))
                if response.status_code == 429:
                    time.sleep(1)
            return seen

        with ThreadPoolExecutor(clients) as threads:
            return [one for seen in threads.map(persist, range(1, clients + 1)) for one in seen]

    def ready(self) -> dict[str, Any]:
        content: dict[str, Any] = self._client.get("/healthz/ready").json()
        return content

    def metrics(self) -> dict[str, float]:
        """The values of all samples, by name and labels as Prometheus writes them."""
        families = text_string_to_metric_families(self._client.get("/metrics").text)
        return {
            ",".join([sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()))]): sample.value
            for family in families
            for sample in family.samples
        }

    def end(self) -> None:
        self._ended.set()
        self._watch.join()
        self._client.close()
        self.server.kill()

    def _wait_for_port(self) -> str:
        until = time.monotonic() + START_S
        while not (match := re.search(r"Uvicorn running on http://[^:]+:([0-9]+)", self.server.log)):
            assert self.server.process.poll() is None, self.server.log
            assert time.monotonic() < until, self.server.log
            status = Path(f"/proc/{self.server.process.pid}/status").read_text(encoding="ascii")
            if kib := re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE):
                self.start_peak_bytes = max(self.start_peak_bytes, int(kib[1]) << 10)
            time.sleep(0.1)
        return match[1]

    def _ask_for_liveness(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self._ended.wait(0.5):
                began = time.monotonic()
                try:
                    status = client.get("/healthz/live").status_code
                except httpx.TransportError:
                    with suppress(subprocess.TimeoutExpired):
                        self.server.wait(5)  # it is ending
                        return
                    status = 0
                self.liveness.append((status, time.monotonic() - began))


def assert_real(data: bytes, *, size: tuple[int, int]) -> None:
    """Check that a file is a picture of this size with a whole range of levels and with detail."""
    picture = opened(data)
    assert picture.size == size
    pixels = np.asarray(picture.convert("RGB"), dtype=float)
    assert pixels.std() > 10
    assert len(np.unique(pixels)) > 100
    assert np.abs(np.diff(pixels, axis=1)).mean() > 0.5


def _gradient(side: int) -> bytes:
    """A PNG that is as good a start as any: two gradients."""
    ramp = np.linspace(0, 255, side, dtype=np.uint8)
    pixels = np.stack([*np.meshgrid(ramp, ramp), np.full((side, side), 90, np.uint8)], axis=-1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _mask(side: int, frame: int) -> bytes:
    """A PNG that is white within a black frame."""
    mask, file = Image.new("L", (side, side)), io.BytesIO()
    mask.paste(255, (frame, frame, side - frame, side - frame))
    mask.save(file, "PNG")
    return file.getvalue()
