"""The real clients against a hub on loopback, each in a process of its own: they read the environment at import."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
import uvicorn

from app.errors import WeightsError
from app.weights.hub import download
from app.weights.source import HubSource
from app.weights.store import locate
from tests.weights.local_hub import COMMIT, REPOSITORY, LocalHub

WANTED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
}
NOT_WANTED = (
    "README.md",
    "sd_xl_turbo_1.0.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "vae/model.ckpt",
)
# The child resolves every name to this machine: the openMind client takes https and the domains of its own hub only.
CHILD = """
import socket, sys
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: resolve("127.0.0.1", *rest, **more)
from app.command_line import main
sys.exit(main(["pull"]))
"""

Pull = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub(tiny_folder: Path, tmp_path: Path) -> LocalHub:
    folder = tmp_path / "repository"
    shutil.copytree(tiny_folder, folder)
    for name in NOT_WANTED:
        (folder / name).write_bytes(b"not wanted")
    return LocalHub(folder)


@pytest.fixture(params=["openmind", "hf"])
def source(request: pytest.FixtureRequest) -> HubSource:
    return HubSource(request.param, REPOSITORY)


@pytest.fixture
def pull(hub: LocalHub, source: HubSource, tmp_path: Path) -> Iterator[Pull]:
    """Run `python -m app pull` against the hub."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    identity = authority.issue_cert("hub.modelers.cn")
    identity.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        certificate = tmp_path / "server.pem" if source.hub == "openmind" else None
        server = uvicorn.Server(uvicorn.Config(hub.app, log_config=None, ssl_certfile=certificate))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def run(model: str = f"{source.hub}:{source.repo_id}") -> subprocess.CompletedProcess[str]:
            environment = {
                **os.environ,
                "HF_ENDPOINT": f"http://127.0.0.1:{port}",
                "HF_HUB_DISABLE_XET": "1",
                "OPENMIND_HUB_ENDPOINT": f"https://hub.modelers.cn:{port}",
                "REQUESTS_CA_BUNDLE": str(tmp_path / "ca.pem"),
                "TURBO_MODEL": model,
                "TURBO_WEIGHTS_DIR": str(tmp_path / "weights"),
            }
            environment.pop("HF_HUB_OFFLINE", None)
            return subprocess.run(
                [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, timeout=100, check=False
            )

        yield run
        server.should_exit = True
        thread.join()


def test_pull_brings_configs_tokenizers_and_fp16_weights_and_nothing_else(
    hub: LocalHub, pull: Pull, source: HubSource, tmp_path: Path
) -> None:
    done = pull()
    assert done.returncode == 0, done.stderr
    assert hub.downloads >= WANTED
    assert not hub.downloads & set(NOT_WANTED)
    folder = locate(source, tmp_path / "weights")
    for name in WANTED:
        assert (folder / name).read_bytes() == (hub.folder / name).read_bytes()


def test_a_second_pull_asks_nothing_of_the_hub(hub: LocalHub, pull: Pull) -> None:
    assert pull().returncode == 0
    hub.requests.clear()
    assert pull().returncode == 0
    assert hub.requests == []


def test_a_file_that_came_damaged_is_fetched_again(
    hub: LocalHub, pull: Pull, source: HubSource, tmp_path: Path
) -> None:
    name = "unet/diffusion_pytorch_model.fp16.safetensors"
    hub.damage = {name: 1}
    done = pull()
    assert done.returncode == 0, done.stderr
    assert (locate(source, tmp_path / "weights") / name).read_bytes() == (hub.folder / name).read_bytes()


def test_a_file_that_keeps_coming_damaged_is_a_clear_error_and_leaves_no_weights(
    hub: LocalHub, pull: Pull, source: HubSource, tmp_path: Path
) -> None:
    hub.damage = {"vae/config.json": 1000}
    done = pull()
    assert done.returncode == 3
    assert "vae/config.json of PyTorch-NPU/sdxl-turbo came down damaged twice" in done.stderr
    with pytest.raises(WeightsError, match="Run `python -m app pull`"):
        locate(source, tmp_path / "weights")


def test_weights_that_rot_on_the_disk_are_found_and_pulled_again(
    hub: LocalHub, pull: Pull, source: HubSource, tmp_path: Path
) -> None:
    assert pull().returncode == 0
    name = "unet/diffusion_pytorch_model.fp16.safetensors"
    path = locate(source, tmp_path / "weights") / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.resolve().chmod(0o644)
    path.resolve().write_bytes(data)
    with pytest.raises(WeightsError, match=f"{name} is damaged: its SHA-256"):
        locate(source, tmp_path / "weights")
    assert pull().returncode == 0
    assert (locate(source, tmp_path / "weights") / name).read_bytes() == (hub.folder / name).read_bytes()


def test_a_pinned_commit_is_pulled_beside_the_branch(pull: Pull, source: HubSource, tmp_path: Path) -> None:
    assert pull(f"{source.hub}:{REPOSITORY}@{COMMIT}").returncode == 0
    assert locate(HubSource(source.hub, REPOSITORY, COMMIT), tmp_path / "weights").name == COMMIT


def test_a_repository_that_is_not_there_is_a_clear_error(pull: Pull, source: HubSource) -> None:
    started = time.monotonic()
    done = pull(f"{source.hub}:nobody/nothing")
    assert done.returncode == 3
    assert f"{source.hub}:nobody/nothing@main could not be downloaded" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 60


def test_a_folder_that_the_openmind_client_refuses_is_a_clear_error() -> None:
    with pytest.raises(WeightsError, match=r"does not write to .*/var\. Set TURBO_WEIGHTS_DIR to a folder elsewhere"):
        download(HubSource("openmind", REPOSITORY), Path("/var/lib/weights"))
