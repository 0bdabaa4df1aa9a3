"""A crowd of clients that send requests and know the correct pictures of each."""

import base64
import contextlib
import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import numpy as np
from PIL import Image

from app.images.sizes import Size
from app.modes.img2img import Img2ImgParams
from app.modes.inpaint import DEFAULT_FEATHER, Area, InpaintParams
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import GenerationParams, Mode
from app.pipelines.fake import FakePipeline
from tests.conftest import ServerProcess, opened, png, wait_for_queue

CLIENTS = 16


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The content of one request: pictures from a prompt, and from a picture of `color` if it is set.

    Of a picture with a mask, the left `masked` pixels are drawn.
    """

    prompt: str
    seed: int
    num_images: int = 1
    color: str | None = None
    masked: int = 0
    side: int = 64

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.num_images)

    def request(self, url: httpx.URL) -> httpx.Request:
        fields = {"prompt": self.prompt, "seed": self.seed, "num_images": self.num_images}
        fields |= {"width": self.side, "height": self.side}
        if self.color is None:
            return httpx.Request("POST", url.join("txt2img"), json=fields)
        files = {"image": png((self.side, self.side), self.color)}
        if self.masked:
            mask = io.BytesIO()
            self._mask().save(mask, "PNG")
            files["mask"] = mask.getvalue()
        return httpx.Request("POST", url.join("inpaint" if self.masked else "img2img"), data=fields, files=files)

    def send(self, client: httpx.Client) -> httpx.Response:
        return client.send(self.request(client.base_url))

    def painted(self) -> list[Image.Image]:
        """The pictures that the fake makes for this wish."""
        batch: list[GenerationParams]
        if self.color is None:
            batch = [
                Txt2ImgParams(prompt=self.prompt, seed=seed, num_inference_steps=1, width=self.side, height=self.side)
                for seed in self.seeds
            ]
        elif not self.masked:
            image = Image.new("RGB", (self.side, self.side), self.color)
            batch = [
                Img2ImgParams(prompt=self.prompt, seed=seed, num_inference_steps=2, strength=0.5, image=image)
                for seed in self.seeds
            ]
        else:
            area = self._area()
            batch = [
                InpaintParams(prompt=self.prompt, seed=seed, num_inference_steps=4, strength=1.0, area=area)
                for seed in self.seeds
            ]
        made = zip(batch, FakePipeline()(batch), strict=True)
        return [Image.fromarray(params.finish(image.pixels)) for params, image in made]

    def _mask(self) -> Image.Image:
        mask = Image.new("L", (self.side, self.side))
        mask.paste(255, (0, 0, self.masked, self.side))
        return mask

    def _area(self) -> Area:
        image, size = Image.new("RGB", (self.side, self.side), self.color or "black"), Size(self.side, self.side)
        return Area.of(
            np.asarray(image), self._mask(), size, feather=DEFAULT_FEATHER, padding=None, max_pixels=size.pixels
        )


def pictures(response: httpx.Response) -> list[Image.Image]:
    """The decoded pictures of a response, which must be a 200."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"] != "application/json":
        return [opened(response.content)]
    return [opened(base64.b64decode(image["b64"])) for image in response.json()["images"]]


def alike(ours: Sequence[Image.Image], theirs: Sequence[Image.Image], *, levels: int = 0) -> bool:
    """Whether the pictures are the same, with differences of at most `levels` of 255."""
    if [one.size for one in ours] != [other.size for other in theirs]:
        return False
    pairs = (
        (np.asarray(one, dtype=int), np.asarray(other, dtype=int)) for one, other in zip(ours, theirs, strict=True)
    )
    return all(np.abs(one - other).max() <= levels for one, other in pairs)


def wishes(first: int, number: int, *, side: int = 64) -> list[Wish]:
    """Different wishes of all modes, some for several pictures. Seeds begin at 10 * `first`."""
    return [
        Wish(
            prompt=f"a house number {i}",
            seed=10 * i,
            num_images=3 if i % 7 == 0 else 1,
            color="teal" if i % 3 == 0 else None,
            masked=8 + 8 * (i % 5) if i % 6 == 0 else 0,
            side=side,
        )
        for i in range(first, first + number)
    ]


Send = Callable[[Wish, httpx.Client], httpx.Response]


def ask_all(url: str, asked: Sequence[Wish], *, send: Send = Wish.send) -> list[httpx.Response]:
    """Send all wishes from a crowd of clients with persistent connections; return the responses in order."""
    local = threading.local()
    clients = []

    def connect() -> None:
        local.client = httpx.Client(base_url=url, timeout=60)
        clients.append(local.client)

    with ThreadPoolExecutor(CLIENTS, initializer=connect) as threads:
        answers = list(threads.map(lambda wish: send(wish, local.client), asked))
    for client in clients:
        client.close()
    return answers


class Persistence:
    """Retries until the response has pictures, as clients do, but sooner than `Retry-After` says."""

    def __init__(self) -> None:
        self.refusals: list[httpx.Response] = []
        self._failing = False

    def through_failures(self) -> None:
        """From now on, accept that the service cannot be reached."""
        self._failing = True

    def __call__(self, wish: Wish, client: httpx.Client) -> httpx.Response:
        while True:
            try:
                answer = wish.send(client)
            except httpx.TransportError:
                assert self._failing, "a service without faults did not respond"
            else:
                if answer.status_code == httpx.codes.OK:
                    return answer
                self.refusals.append(answer)
            time.sleep(0.25)


def answered(url: str) -> Counter[int]:
    """The number of requests for pictures by the status of the response."""
    counted: Counter[int] = Counter()
    for name, value in _metrics(url, "turbo_requests_total"):
        if any(f'route="/{mode}"' in name for mode in Mode):
            counted[int(name.rpartition('status="')[2].partition('"')[0])] += int(value)
    return counted


def device_calls(url: str) -> float:
    """The number of calls for pictures that the device has finished."""
    return sum(value for _, value in _metrics(url, "turbo_device_calls_total"))


def batches_of(
    url: str, asked: Sequence[Wish], *, hold: Callable[[], None], let_go: Callable[[], None]
) -> Counter[str]:
    """Send requests one after the other while the device is held; return how many were in calls of each size.

    The first request runs alone, and the others queue in order, so the calls are the same every time.
    """
    before = Counter(dict(_metrics(url, "turbo_batch_pictures_bucket")))
    hold()
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(len(asked)) as threads:
        for number, wish in enumerate(asked):
            threads.submit(wish.send, client)
            wait_for_queue(client, waiting=number)
        let_go()
    return Counter(dict(_metrics(url, "turbo_batch_pictures_bucket"))) - before


def _metrics(url: str, name: str) -> Iterator[tuple[str, float]]:
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith(name):
            key, _, value = line.rpartition(" ")
            yield key, float(value)


@contextlib.contextmanager
def supervised(start: Callable[[], ServerProcess]) -> Iterator["Supervisor"]:
    """Restart the service whenever it ends, as an orchestrator does. `start` must use the same port each time."""
    supervisor = Supervisor(start)
    try:
        yield supervisor
    finally:
        supervisor.stop()


class Supervisor:
    """Waits for the service to end, records its exit code, and starts it again."""

    def __init__(self, start: Callable[[], ServerProcess]) -> None:
        self.exit_codes: list[int] = []
        self.server = start()
        self._start = start
        self._stopped = False
        self._thread = threading.Thread(target=self._replace)
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self.server.process.kill()
        self._thread.join()

    def _replace(self) -> None:
        while not self._stopped:
            code = self.server.process.wait()
            if not self._stopped:
                self.exit_codes.append(code)
                self.server = self._start()
