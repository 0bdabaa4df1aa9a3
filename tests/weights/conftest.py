"""Pulls by the real clients, each in a process of its own because they read the environment at import."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import trustme

from app.weights.source import HubSource
from tests.weights.local_hub import REPOSITORY, LocalHub

NOT_WANTED = (
    "README.md",
    "sd_xl_turbo_1.0.safetensors",
    "sd_xl_turbo_1.0.fp16.safetensors",
    "config.json",
    "notes.txt",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "vae/model.ckpt",
    "vae/older/config.json",
    "vae/older/notes.txt",
    "vae/older/diffusion_pytorch_model.fp16.safetensors",
    "older/vae/model_index.json",
)
TOKEN = "hf_secret_of_the_operator"  # noqa: S105 - it opens nothing
# The child resolves every name to this machine: the openMind client takes https and the domains of its own hub only.
# Collecting garbage is half of what a pull costs, as openmind_hub does it several times a file; here there is none.
CHILD = """
import gc, socket, sys
gc.disable()
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: resolve("127.0.0.1", *rest, **more)
{prelude}
from app.cli.commands import main
gc.freeze()
sys.exit(main(["pull"]))
"""
# The clients pause a second or more before each of several attempts; here the clock jumps over the pauses.
HASTE = """
import time
pause, clock, skipped_s = time.sleep, time.monotonic, 0
def skip(seconds):
    global skipped_s
    skipped_s += seconds
    pause(0.01)
time.sleep, time.monotonic = skip, lambda: clock() + skipped_s
"""
NO_NETWORK = """
import os, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print("NETWORK", event, arguments, file=sys.stderr, flush=True)
        os._exit(99)
sys.addaudithook(refuse)
"""


class Pull:
    """`python -m app pull` in a process of its own, on a weights folder beside the repository."""

    timeout_s = 40.0
    """How long the pull may take: not minutes of repeated attempts."""

    def __init__(self, hub: LocalHub, log: Path, prelude: str, **environment: str) -> None:
        self._log = log
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.port}",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
            "OPENMIND_HUB_ENDPOINT": f"https://hub.modelers.cn:{hub.port}",
        }
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD.format(prelude=prelude)],
                env={**os.environ, **settings, **environment},
                stderr=file,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def succeeds(self) -> None:
        assert self._wait() == 0, self.log

    def fails(self) -> str:
        """Wait for a clear end, within a time that repeated attempts over minutes would not keep; return its reason."""
        assert self._wait() == 3, self.log
        assert "Traceback" not in self.log
        assert TOKEN not in self.log
        (line,) = re.findall(r'\{"event".*"level": "critical".*\}$', self.log, re.MULTILINE)
        reason: str = json.loads(line)["event"]
        assert len(reason.splitlines()) == 1
        return reason

    def _wait(self) -> int:
        return self.process.wait(timeout=self.timeout_s)


StartPull = Callable[..., Pull]

needs_openmind = pytest.mark.skipif(
    find_spec("openmind_hub") is None, reason="openmind-hub supports Python below 3.14 only"
)
openmind = pytest.param("openmind", marks=needs_openmind)
only_openmind = pytest.mark.parametrize("source", [openmind], indirect=True)
only_hugging_face = pytest.mark.parametrize("source", ["hf"], indirect=True)


@pytest.fixture(params=[openmind, "hf"])
def source(request: pytest.FixtureRequest) -> HubSource:
    return HubSource(request.param, REPOSITORY)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    authority.issue_cert("hub.modelers.cn").private_key_and_cert_chain_pem.write_to_path(folder / "hub.pem")
    return folder


@pytest.fixture
def hub(source: HubSource, tiny_folder: Path, certificates: Path, tmp_path: Path) -> Iterator[LocalHub]:
    folder = tmp_path / "repository"
    shutil.copytree(tiny_folder, folder)
    for name in NOT_WANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} is not wanted")
    hub = LocalHub(folder, certificates / "hub.pem" if source.hub == "openmind" else None)
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def pull(hub: LocalHub, source: HubSource, certificates: Path, weights: Path, tmp_path: Path) -> Iterator[StartPull]:
    """Start pulls from the hub, which are killed when the test ends."""
    pulls: list[Pull] = []

    def start(model: str = f"{source.hub}:{REPOSITORY}", *, prelude: str = "", **environment: str) -> Pull:
        settings = {
            "REQUESTS_CA_BUNDLE": str(certificates / "authority.pem"),
            "TURBO_MODEL": model,
            "TURBO_WEIGHTS_DIR": str(weights),
            **environment,
        }
        pulls.append(Pull(hub, tmp_path / f"pull-{len(pulls)}.log", prelude, **settings))
        return pulls[-1]

    yield start
    for started in pulls:
        started.process.kill()
        started.process.wait()
