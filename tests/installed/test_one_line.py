"""The wheel as a user gets it: one command installs it in an environment of its own, and serves the demo model.

For `make test-installed`, because it downloads packages. The variables UVX_OPTIONS and PIPX_OPTIONS choose where torch
comes from; the defaults are the README's.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from benchmarks.support.ports import free_port
from tools import dist

UV = Path(sys.executable).with_name("uv")
READY_S = 900
"""Downloads included."""

ONE_LINE = {
    "uvx": [UV, "tool", "run", *shlex.split(os.environ.get("UVX_OPTIONS", "--torch-backend cpu")), "--from"],
    "pipx": [
        *(UV, "tool", "run", "pipx", "run"),
        f"--pip-args={os.environ.get('PIPX_OPTIONS', '--extra-index-url https://download.pytorch.org/whl/cpu')}",
        "--spec",
    ],
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dist.build(tmp_path_factory.mktemp("dist"))[0]


@pytest.fixture(params=ONE_LINE)
def command(request: pytest.FixtureRequest, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)  # not in the checkout, whose `app` would be imported
    for name in ("PIPX_HOME", "PIPX_BIN_DIR", "UV_TOOL_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("UV_SYSTEM_CERTS", "true")
    return [*map(str, ONE_LINE[request.param]), str(wheel), "sdxl-turbo-server"]


@contextmanager
def serving(command: list[str], log: Path) -> Iterator[str]:
    """Run a command until it serves, and yield its address."""
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, "TURBO_PORT": str(port)}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + READY_S
        while process.poll() is None and time.monotonic() < end:
            try:
                httpx.get(f"{url}/healthz/ready").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        else:
            pytest.fail(log.read_text())
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(60)


def test_one_command_serves_the_demo_model_with_torch_for_cpu(command: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(command, log) as url:
        picture = httpx.post(f"{url}/txt2img", json={"prompt": "a fox with a scarf", "seed": 1}, timeout=60)
    assert picture.status_code == 200
    assert Image.open(BytesIO(picture.content)).size == (512, 512)
    assert "is built for CUDA" not in log.read_text()
    shutil.rmtree(tmp_path, ignore_errors=True)  # a gigabyte
