"""What the tests share: a tiny model, apps that run in this process, and servers in processes of their own."""

import asyncio
import contextlib
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
from typing import NoReturn

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from app.main import create_app
from app.server.serve import DrainingServer
from app.settings import Settings
from tests.support.gated_pipeline import GatedPipeline

# Where several processes compute, threads that spin while they wait for each other make all of them many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Name the option of `make test-long`."""
    parser.addoption("--long", action="store_true", help="run the tests that look for trouble many more times")


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How often to try: `rounds(few, many)` gives `few` in the suite and `many` with --long."""
    chosen = 1 if request.config.getoption("--long") else 0
    return lambda few, many: (few, many)[chosen]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the right format that paints noise, for tests that harm it or need it to be fast."""
    from tests.support.tiny_model import build_tiny_model  # noqa: PLC0415 - diffusers looks for an NPU when it is imported

    folder = tmp_path_factory.mktemp("tiny")
    build_tiny_model(folder)
    return folder


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("TURBO_", "OTEL_")):
            monkeypatch.delenv(name)


@contextlib.asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Run the app's lifespan, and give a client that talks to it without a socket."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60) as client:
            yield client


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service on the fake."""
    async with running(create_app(Settings(model="fake"))) as client:
        yield client


@pytest.fixture
def pipeline() -> GatedPipeline:
    return GatedPipeline()


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve the app over a real socket from a thread, as the service is served, and give its URL."""
    settings = app.state.context.settings.model_copy(update={"port": 0})
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

    def __init__(self, log: Path, *, prelude: str | None = None, **settings: object) -> None:
        """Start it; `prelude` is Python that runs in the process first."""
        environment = {**os.environ, **{f"TURBO_{name.upper()}": str(value) for name, value in settings.items()}}
        environment.setdefault("TURBO_PORT", "0")
        self._log = log
        with log.open("wb") as file:
            start = f"{prelude}\nfrom app.cli.commands import main\nmain([])"
            command = ["-m", "app"] if prelude is None else ["-c", start]
            self.process = subprocess.Popen(
                [sys.executable, *command], env=environment, stderr=file, stdin=subprocess.DEVNULL
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def wait_until_started(self) -> str:
        """Wait until the port is open, and return the service's URL."""
        return f"http://127.0.0.1:{self.wait_for_log(r'Uvicorn running on http://[^:]+:([0-9]+)')}"

    def wait_for_log(self, pattern: str, *, timeout_s: float = 60) -> str:
        """Wait for a line that matches, and return its first group (or all of the match)."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if match := re.search(pattern, self.log):
                return match[match.lastindex or 0]
            assert self.process.poll() is None, f"the service ended with {self.process.returncode}:\n{self.log}"
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} within {timeout_s} s in:\n{self.log}")

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
    """Start services that are killed when the test ends."""
    servers: list[ServerProcess] = []

    def start(*, prelude: str | None = None, **settings: object) -> ServerProcess:
        servers.append(ServerProcess(tmp_path / f"server-{len(servers)}.log", prelude=prelude, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


def program(name: str) -> str:
    """The path of a program that the system has to bring; without it the test is skipped, but never in CI."""
    path = shutil.which(name)
    if path is None:
        lacks(f"{name} is not installed; `make system-programs` says how")
    return path


def lacks(reason: str) -> NoReturn:
    """Skip a test for what the system lacks, but fail in CI."""
    fail_or_skip = pytest.fail if "CI" in os.environ else pytest.skip
    fail_or_skip(reason)


def wait_until(condition: Callable[[], object], *, within_s: float = 30) -> None:
    """Wait for what another thread or process does."""
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def png(size: tuple[int, int] = (64, 64), color: str = "red") -> bytes:
    """A PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    """The picture in a file's bytes, decoded."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


async def until(condition: Callable[[], object], *, timeout_s: float = 10) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is another thread's
            await asyncio.sleep(0.005)
