"""Shared by the tests: a tiny model, apps in this process, and servers in their own processes."""

import asyncio
import contextlib
import gc
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import hypothesis
import pytest
from fastapi import FastAPI
from PIL import Image

from app.main import create_app
from app.server.draining import DrainingServer
from app.settings import Settings
from tests.support.gated_pipeline import GatedPipeline
from tests.support.warm_process import WarmProcess

# With several processes on few cores, OpenMP threads that spin while waiting slow all of them down many times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

# Examples take longer where other processes keep the processors busy.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of `make test-long`."""
    parser.addoption(
        "--long", action="store_true", help="run fuzzing, shutdowns and disconnecting clients many more times"
    )


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """The number of repetitions: `rounds(few, many)` returns `many` with --long, else `few`."""
    chosen = 1 if request.config.getoption("--long") else 0
    return lambda few, many: (few, many)[chosen]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what only `make test-long` runs: it takes half a minute, and another test shows nearly the same."""
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("only_long"):
                item.add_marker(pytest.mark.skip(reason="takes long: make test-long runs it"))


def pytest_collection_finish() -> None:
    """Exempt what was imported from garbage collection, which would take a tenth of the tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fast model of the right format that paints noise. Tests may damage copies of it."""
    from tests.support.tiny_model import build_tiny_model  # noqa: PLC0415 - importing diffusers looks for an NPU

    folder = tmp_path_factory.mktemp("tiny")
    build_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE of TAESDXL's class and files, with random weights. Tests may damage copies of it."""
    from tests.support.tiny_model import build_tiny_vae  # noqa: PLC0415 - as above

    folder = tmp_path_factory.mktemp("taesdxl")
    build_tiny_vae(folder)
    return folder


@pytest.fixture
def any_batch_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let real pipelines in this process take batches of any allowed size; at first they would take 2."""
    from app.pipelines.batch_sizes import BatchSizes  # noqa: PLC0415 - tests without pipelines need not import it

    monkeypatch.setattr(BatchSizes, "limit", lambda self, key: max(self._allowed(key)))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("TURBO_", "OTEL_")):
            monkeypatch.delenv(name)


@contextlib.asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Run the app's lifespan, and yield a client that calls the app without a socket."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60) as client:
            yield client


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app with the fake model."""
    async with running(create_app(Settings(model="fake"))) as client:
        yield client


@pytest.fixture
def pipeline() -> GatedPipeline:
    return GatedPipeline()


@contextlib.contextmanager
def serving(app: FastAPI, *, port: int = 0) -> Iterator[str]:
    """Serve the app from a thread over a real socket, with the service's own server, and yield its URL.

    By default on a free port.
    """
    settings = app.state.context.settings.model_copy(update={"port": port})
    server = DrainingServer(app, settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)


class ServerProcess:
    """The service as an operator starts it: `python -m app`, with settings as environment variables."""

    def __init__(
        self, log: Path, *, prelude: str | None = None, warm: bool = False, on_npu: bool = False, **settings: object
    ) -> None:
        """Start the service, by default without MCP, whose import takes as long as all others of the fake.

        `prelude` is Python code that the process runs first. A `warm` process has the large libraries already, with
        `on_npu` on the simulated NPU.
        """
        variables = {f"TURBO_{name.upper()}": str(value) for name, value in settings.items()}
        environment = {"TURBO_MCP": "false", **os.environ, **variables}
        environment.setdefault("TURBO_PORT", "0")
        self._log = log
        start = f"{prelude or ''}\nfrom app.cli.commands import main\nmain([])"
        self.process: subprocess.Popen[bytes] | WarmProcess
        if warm or on_npu:
            self.process = WarmProcess(start, environment, stderr=log, on_npu=on_npu)
            return
        command = ["-m", "app"] if prelude is None else ["-c", start]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *command], env=environment, stderr=file, stdin=subprocess.DEVNULL
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def wait_until_started(self, *, timeout_s: float = 60) -> str:
        """Wait until the port is open, and return the service's URL."""
        port = self.wait_for_log(r"Uvicorn running on http://[^:]+:([0-9]+)", timeout_s=timeout_s)
        return f"http://127.0.0.1:{port}"

    def wait_for_log(self, pattern: str, *, timeout_s: float = 60) -> str:
        """Wait until the log matches, and return the first group, or the whole match if there is no group."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if match := re.search(pattern, self.log):
                return match[match.lastindex or 0]
            assert self.process.poll() is None, f"the service ended with {self.process.returncode}:\n{self.log}"
            time.sleep(0.02)
        raise AssertionError(f"the log did not match {pattern!r} within {timeout_s} s:\n{self.log}")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 30) -> int:
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


StartServer = Callable[..., ServerProcess]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start services, and kill them when the test ends."""
    servers: list[ServerProcess] = []

    def start(**options: Any) -> ServerProcess:
        servers.append(ServerProcess(tmp_path / f"server-{len(servers)}.log", **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


def program(name: str) -> str:
    """The path of an installed program. If it is missing, skip the test, but fail in CI."""
    path = shutil.which(name)
    if path is None:
        lacks(f"{name} is not installed; `make system-programs` says how to install it")
    return path


def lacks(reason: str) -> NoReturn:
    """Skip a test because the system lacks something it needs, but fail in CI."""
    fail_or_skip = pytest.fail if "CI" in os.environ else pytest.skip
    fail_or_skip(reason)


def wait_until(condition: Callable[[], object], *, within_s: float = 30) -> None:
    """Wait until another thread or process makes the condition true."""
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def wait_for_queue(client: httpx.Client, *, waiting: int = 0) -> None:
    """Wait until the service's device works and at least so many requests wait for it."""

    def holds() -> bool:
        queue: dict[str, float] = client.get("/healthz/ready").json()["queue"]
        return queue["running_s"] > 0 and queue["waiting"] >= waiting

    wait_until(holds)


def png(size: tuple[int, int] = (64, 64), color: str = "red") -> bytes:
    """A PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    """Decode the picture in a file's bytes."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


async def until(condition: Callable[[], object], *, timeout_s: float = 30) -> None:
    ends = time.monotonic() + timeout_s  # not by the event loop's clock, which some tests move
    while not condition():
        assert time.monotonic() < ends, f"the condition did not come true within {timeout_s:g} s"
        await asyncio.sleep(0.005)
