"""The simulated NPU. It must be installed before diffusers is imported, so these tests run in their own process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.main import create_app
from app.observability.logs import configure_logging
from app.settings import Settings
from tests.conftest import serving
from tests.npu.simulator import Npu, install

install()
# As on the command line: structlog's default prints the variables of every frame, which is slow for tensors.
configure_logging(log_format="json", level="info")


def pytest_configure(config: pytest.Config) -> None:
    """Keep no log records: a record keeps a failed call's tensors alive, and tests count the device's memory."""
    config.pluginmanager.unregister(name="logging-plugin")


@pytest.fixture
def npu() -> Iterator[Npu]:
    """The simulated hardware without faults, with one device."""
    hardware = install()
    hardware.heal()
    yield hardware
    if hardware.hang is not None:
        hardware.hang.set()
    hardware.heal()


class Service:
    """A client of a service. `losses` counts lost devices if the service runs in this process."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.losses: list[None] = []

    def txt2img(self, **fields: object) -> httpx.Response:
        body = {"prompt": "a red circle on a blue background", "seed": 1, "width": 64, "height": 64, **fields}
        return self.client.post("/txt2img", json=body)

    def img2img(self, image: bytes, **fields: object) -> httpx.Response:
        form = {"prompt": "a green square", "seed": 1, "width": 64, "height": 64, **fields}
        return self.client.post("/img2img", data=form, files={"image": image})

    def inpaint(self, image: bytes, mask: bytes, **fields: object) -> httpx.Response:
        form = {"prompt": "a green square", "seed": 1, "width": 64, "height": 64, **fields}
        return self.client.post("/inpaint", data=form, files={"image": image, "mask": mask})

    def health(self) -> tuple[int, int, str]:
        """The status codes of liveness and readiness, and the name of the state."""
        live, ready = self.client.get("/healthz/live"), self.client.get("/healthz/ready")
        return live.status_code, ready.status_code, (ready.json().get("health") or ready.json())["status"]


@contextlib.contextmanager
def asking(url: str) -> Iterator[Service]:
    """A client of the service at `url`."""
    with httpx.Client(base_url=url, timeout=60) as client:
        yield Service(client)


@contextlib.contextmanager
def service_on_npu(**settings: object) -> Iterator[Service]:
    """Serve a model, by default the demo model, on the simulated NPU.

    It runs in fp32, because a CPU is slow in fp16. The warm-up is one small picture.
    """
    all_settings = {"device": "npu", "dtype": "fp32", "warm_up_sizes": "64x64", "max_batch": 1, **settings}
    losses: list[None] = []
    app = create_app(Settings.model_validate(all_settings), on_device_lost=lambda: losses.append(None))
    with serving(app) as url, asking(url) as client:
        client.losses = losses
        yield client


@pytest.fixture
def service(npu: Npu, tiny_folder: Path) -> Iterator[Service]:
    """The tiny model on the simulated NPU."""
    with service_on_npu(model=str(tiny_folder)) as service:
        npu.calls.clear()
        yield service
