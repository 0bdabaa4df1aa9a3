"""Pulls of the whole model from a hub on loopback by the real clients, and damage in its gigabytes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from safetensors import safe_open
from safetensors.torch import save_file

from app.server.process import START_FAILED
from app.weights.source import HubName, HubSource
from app.weights.store import locate
from tests.conftest import wait_until
from tests.weights.conftest import Pull
from tests.weights.local_hub import REPOSITORY, Fault, LocalHub

WEIGHTS = "diffusion_pytorch_model"
SHARDS = 3
STEP_BYTES = 10 << 20
"""The clients write in steps of this size."""

PULL_S = 600


@dataclass(frozen=True, slots=True)
class Pulled:
    """The story of a pull that was interrupted twice.

    Attributes:
        source: The weights that were pulled.
        weights: The weights folder.
        kept_bytes: The bytes of each file that were in the weights folder before the last pull.
        sent_bytes: The bytes of each file that the hub sent to the last pull.
        seconds: The time of the last pull.
    """

    source: HubSource
    weights: Path
    kept_bytes: dict[str, int]
    sent_bytes: dict[str, int]
    seconds: float

    @property
    def folder(self) -> Path:
        return locate(self.source, self.weights)


@pytest.fixture(scope="module")
def sharded(model: Path, disk: Path) -> Path:
    """The model with its UNet in three files. All others are links."""
    folder = disk / "sharded"
    whole = model / "unet" / f"{WEIGHTS}.fp16.safetensors"
    for path in _files(model):
        if path != whole:
            copy = folder / path.relative_to(model)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    _shard(whole, folder / "unet")
    return folder


def _shard(whole: Path, folder: Path) -> None:
    """Write a model's tensors in three files of about a third each, with their index, as `save_pretrained` does."""
    names: list[list[str]] = [[]]
    with safe_open(whole, framework="pt") as tensors:
        part_bytes = 0
        for name in tensors.keys():  # noqa: SIM118 - it is no dict
            if part_bytes > whole.stat().st_size / SHARDS:
                names.append([])
                part_bytes = 0
            names[-1].append(name)
            part_bytes += tensors.get_tensor(name).nbytes
        weight_map: dict[str, str] = {}
        for number, part in enumerate(names, 1):
            file = f"{WEIGHTS}.fp16-{number:05}-of-{len(names):05}.safetensors"
            save_file({name: tensors.get_tensor(name) for name in part}, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
    assert len(names) == SHARDS
    index = {"metadata": {"total_size": whole.stat().st_size}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.safetensors.index.fp16.json").write_text(json.dumps(index))


@contextmanager
def interrupted_twice(name: HubName, folder: Path, held: tuple[str, str], disk: Path) -> Iterator[Pulled]:
    """Pull from a hub, interrupt the pull in the middle of each of two files, and let a third pull complete it."""
    authority = trustme.CA()
    certificate, trusted = disk / "hub.pem", disk / "authority.pem"
    authority.issue_cert("hub.modelers.cn").private_key_and_cert_chain_pem.write_to_path(certificate)
    authority.cert_pem.write_to_path(trusted)
    hub = LocalHub(folder, certificate if name == "openmind" else None)
    hub.start()
    source, weights = HubSource(name, REPOSITORY), disk / f"weights-{name}"
    environment = {
        "REQUESTS_CA_BUNDLE": str(trusted),
        "TURBO_MODEL": f"{name}:{REPOSITORY}",
        "TURBO_WEIGHTS_DIR": str(weights),
    }

    def start() -> Pull:
        pull = Pull(hub, disk / "pull.log", "", **environment)
        pull.timeout_s = PULL_S
        return pull

    try:
        for file, end in zip(held, (signal.SIGKILL, signal.SIGINT), strict=True):
            hub.faults = [Fault("hold", at=file, times=1)]
            before = hub.sent_bytes[file]
            pull = start()
            size_bytes = (folder / file).stat().st_size
            half = (size_bytes - _present(weights, hub.etag(file))) // 2 - STEP_BYTES
            wait_until(lambda: hub.sent_bytes[file] - before >= half, within_s=PULL_S)  # noqa: B023 - called now
            wait_until(lambda: _present(weights, hub.etag(file)) >= half, within_s=60)  # noqa: B023 - called now
            pull.process.send_signal(end)
            assert pull.process.wait(60) != 0
        present = {str(path.relative_to(folder)): _present(weights, hub.etag(path)) for path in _files(folder)}
        hub.faults = []
        hub.sent_bytes = Counter()
        began = time.monotonic()
        start().succeeds()
        yield Pulled(source, weights, present, dict(hub.sent_bytes), time.monotonic() - began)
    finally:
        hub.stop()
        shutil.rmtree(weights, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _present(weights: Path, digest: str) -> int:
    """The bytes of a file, or of a part of it, in the weights folder."""
    return max((path.stat().st_size for path in weights.rglob(f"{digest}*")), default=0)


def test_after_two_interruptions_a_pull_from_openmind_goes_on_in_the_middle_of_the_unet(
    model: Path, disk: Path
) -> None:
    unet = f"unet/{WEIGHTS}.fp16.safetensors"
    with interrupted_twice("openmind", model, (unet, unet), disk) as pulled:
        assert_only_the_rest_was_sent(pulled, model)
        assert pulled.sent_bytes[unet] < 0.4 * (model / unet).stat().st_size


@pytest.fixture(scope="module")
def from_hugging_face(sharded: Path, disk: Path) -> Iterator[Pulled]:
    """A pull that was interrupted in the middle of the second and of the third shard."""
    held = [f"unet/{WEIGHTS}.fp16-0000{number}-of-00003.safetensors" for number in (2, 3)]
    held.sort(key=lambda file: (sharded / file).stat().st_size)  # the order in which they are pulled
    with interrupted_twice("hf", sharded, (held[0], held[1]), disk) as pulled:
        yield pulled


def test_after_two_interruptions_a_pull_from_hugging_face_goes_on_in_the_middle_of_a_shard(
    from_hugging_face: Pulled, sharded: Path
) -> None:
    assert_only_the_rest_was_sent(from_hugging_face, sharded)
    shards = [name for name in from_hugging_face.sent_bytes if name.startswith("unet/") and "-of-" in name]
    assert any(from_hugging_face.kept_bytes[name] > 0 for name in shards)
    assert not list(from_hugging_face.weights.rglob("*.incomplete"))


def assert_only_the_rest_was_sent(pulled: Pulled, folder: Path) -> None:
    """Check that the last pull got exactly the bytes that were missing, and that all files are there."""
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}
    missing = {name: size - pulled.kept_bytes[name] for name, size in sizes.items()}
    print(f"the last pull took {pulled.seconds:.0f} s for {sum(missing.values()) / 1e9:.1f} GB")  # noqa: T201
    assert pulled.sent_bytes == {name: size for name, size in missing.items() if size}
    for name, size in sizes.items():
        assert (pulled.folder / name).stat().st_size == size


@pytest.mark.parametrize("damage", ["a flipped byte", "a missing end"])
def test_a_damaged_shard_is_named_at_the_start_with_the_remedy(from_hugging_face: Pulled, damage: str) -> None:
    shard = (from_hugging_face.folder / "unet" / f"{WEIGHTS}.fp16-00002-of-00003.safetensors").resolve()
    size_bytes = shard.stat().st_size
    if damage == "a flipped byte":
        at, fault = size_bytes // 2, "its SHA-256 is not that of the pulled file"
    else:
        at, fault = size_bytes - 1, f"it has {size_bytes - 1} bytes instead of {size_bytes}"
    with shard.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        if damage == "a flipped byte":
            file.write(bytes([byte[0] ^ 1]))
        else:
            file.truncate()
        file.flush()
        try:
            reason = _start_fails(TURBO_MODEL=f"hf:{REPOSITORY}", TURBO_WEIGHTS_DIR=str(from_hugging_face.weights))
        finally:
            file.seek(at)
            file.write(byte)
    assert re.search(rf"fp16-00002-of-00003\.safetensors is damaged: {fault}\. Run `python -m app pull`\.", reason)


def _start_fails(**environment: str) -> str:
    """Start the service, which must fail by itself, and return the reason in its log."""
    ended = subprocess.run(
        [sys.executable, "-m", "app"],
        env={**os.environ, "TURBO_PORT": "0", **environment},
        capture_output=True,
        text=True,
        timeout=PULL_S,
        check=False,
    )
    assert ended.returncode == START_FAILED, ended.stderr
    (reason,) = re.findall(r'^\{"event": "cannot start: (.*)", "level": "critical"', ended.stderr, re.MULTILINE)
    return str(reason)
