"""The model from a hub on loopback, by the real clients."""

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import save_file

from app.errors import WeightsError
from app.main import create_app
from app.settings import Settings
from app.weights.download import download
from app.weights.layout import MODEL
from app.weights.parts import PART_BYTES, present_bytes
from app.weights.source import HubSource
from app.weights.store import locate
from tests.conftest import running, wait_until
from tests.weights.conftest import (
    HASTE,
    NO_NETWORK,
    NOT_WANTED,
    StartPull,
    needs_openmind,
    only_hugging_face,
    only_openmind,
)
from tests.weights.local_hub import ALWAYS, COMMIT, REPOSITORY, Fault, LocalHub

UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
VAE = "vae/diffusion_pytorch_model.fp16.safetensors"
TEXT_ENCODER = "text_encoder/model.fp16.safetensors"
CONFIG = "vae/config.json"
WANTED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    TEXT_ENCODER,
    "unet/config.json",
    UNET,
    CONFIG,
    VAE,
}
# As if each attempt took a minute, which a large file does.
SLOWNESS = """
import itertools, time
time.monotonic = itertools.count(step=60).__next__
"""
# As on a disk that has room for so many bytes. Both clients write through io.open: pathlib.Path.open and os.fdopen.
FULL_DISK = """
import errno, io
room = 1_000_000
really_open = io.open
def open_on_a_full_disk(file, mode="r", *rest, **more):
    opened = really_open(file, mode, *rest, **more)
    if mode in ("ab", "wb"):
        really_write = opened.write
        def write(data):
            global room
            if len(data) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            room -= len(data)
            return really_write(data)
        opened.write = write
    return opened
io.open = open_on_a_full_disk
"""
NO_LINKS = """
import os
def refuse(*_, **__):
    raise OSError("no links here")
os.symlink = refuse
"""


def assert_whole(source: HubSource, weights: Path, hub: LocalHub) -> None:
    folder = locate(source, weights)
    for name in WANTED:
        assert (folder / name).read_bytes() == (hub.folder / name).read_bytes()


def make_large(hub: LocalHub, name: str, size_bytes: int) -> None:
    """Give a file of the repository this many bytes and more: a tensor's, and the header's."""
    save_file({"x": torch.arange(size_bytes // 4, dtype=torch.float32)}, hub.folder / name)


def blobs_of(source: HubSource, weights: Path) -> Path:
    """Make the folder in which the client keeps the files of the repository."""
    cache = "openmind/hub" if source.hub == "openmind" else "hf"
    blobs = weights / cache / f"models--{REPOSITORY.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    return blobs


def wait_for_part(hub: LocalHub, weights: Path, name: str) -> Path:
    """Wait until all other files are pulled; return the place of what is there of this one."""
    wait_until(lambda: hub.downloads.keys() >= WANTED)
    wait_until(lambda: [path.stem for path in weights.rglob("*.incomplete")] == [hub.etag(name)])
    (part,) = weights.rglob("*.incomplete")
    return part


# What is pulled.


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_pull_brings_configs_tokenizers_and_fp16_weights_and_nothing_else(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path, revision: str
) -> None:
    pull(f"{source.hub}:{REPOSITORY}@{revision}").succeeds()
    assert hub.downloads.keys() >= WANTED
    assert not hub.downloads.keys() & set(NOT_WANTED)
    assert set(hub.downloads.values()) == {1}
    pinned = HubSource(source.hub, REPOSITORY, revision)
    assert_whole(pinned, weights, hub)
    assert locate(pinned, weights).name == COMMIT


async def test_once_the_weights_are_here_neither_pull_nor_serve_touches_the_network(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull().succeeds()
    hub.stop()
    pull(prelude=NO_NETWORK).succeeds()
    attempts: list[object] = []
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda _, address: attempts.append(address))
    async with running(create_app(Settings(model=f"{source.hub}:{REPOSITORY}", weights_dir=weights))) as client:
        assert (await client.get("/healthz/ready")).status_code == 200
    assert not attempts


@only_hugging_face
def test_weights_on_a_volume_that_cannot_be_written_make_a_picture(
    pull: StartPull, source: HubSource, weights: Path, tmp_path: Path
) -> None:
    """As an image volume of Kubernetes is mounted."""
    if subprocess.run(["unshare", "--mount", "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("a mount of its own takes root, which most containers' root is not")
    pull().succeeds()
    mount = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && ! touch "$1/x" 2>&1 && shift && exec "$@"'
    picture = tmp_path / "picture.png"
    command = [sys.executable, "-m", "app", "generate", "a cat", "--output", str(picture)]
    settings = {"TURBO_MODEL": f"{source.hub}:{REPOSITORY}", "TURBO_WEIGHTS_DIR": str(weights), "TURBO_DEVICE": "cpu"}
    subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", weights, *command], env={**os.environ, **settings}, check=True
    )
    assert picture.stat().st_size


@only_hugging_face
def test_of_two_pulls_at_once_one_downloads_and_the_other_waits_for_it(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path
) -> None:
    hub.faults = [Fault("hold", at=CONFIG)]
    first = pull()
    wait_until(lambda: hub.sent_bytes[CONFIG])
    second = pull()
    wait_until(lambda: "waiting for another process" in second.log)
    hub.go_on.set()
    first.succeeds()
    second.succeeds()
    assert set(hub.downloads.values()) == {1}
    assert_whole(source, weights, hub)


@only_openmind
def test_weights_in_a_hidden_folder_of_the_home_are_pulled_through_a_link(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path, tmp_path: Path
) -> None:
    """The default folder is hidden so, and the openMind client writes to none of these but its own home."""
    hidden = tmp_path / ".cache" / "weights"
    hidden.mkdir(parents=True)
    weights.symlink_to(hidden)
    pull(HOME=str(tmp_path)).succeeds()
    assert_whole(source, hidden, hub)


# Faults that a pull gets over.


def test_faults_that_pass_are_got_over(hub: LocalHub, pull: StartPull, source: HubSource, weights: Path) -> None:
    hub.faults = [
        Fault(500, times=1),
        Fault(500, at="model_index.json", times=1),
        Fault(429, at="unet/config.json", times=1),
        Fault("damage", at=CONFIG, times=1),
        Fault("damage", at=VAE, times=1),
        Fault("cut", at=UNET, times=1),
    ]
    pull(prelude=HASTE).succeeds()
    assert [fault.times for fault in hub.faults] == [0] * 6
    assert_whole(source, weights, hub)


@only_openmind
def test_weights_that_rot_on_the_disk_are_found_and_pulled_again(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path
) -> None:
    pull().succeeds()
    path = locate(source, weights) / UNET
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.resolve().chmod(0o644)
    path.resolve().write_bytes(data)
    with pytest.raises(WeightsError, match=f"{UNET} is damaged: its SHA-256"):
        locate(source, weights)
    hub.downloads.clear()
    pull().succeeds()
    assert hub.downloads == {UNET: 1}
    assert_whole(source, weights, hub)


@only_hugging_face
def test_a_blob_that_links_to_the_client_s_store_of_shared_blobs_is_verified_by_its_own_name(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path
) -> None:
    """So huggingface_hub 2.4 keeps files of Xet storage; in the store they are named by Xet's hash."""
    pull().succeeds()
    blob = (locate(source, weights) / UNET).resolve()
    shared = weights / "hf" / "blobs" / "00" / ("0" * 64)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(shared)
    next(weights.glob("*.json")).unlink()
    hub.downloads.clear()
    pull().succeeds()
    assert not hub.downloads
    assert_whole(source, weights, hub)


@pytest.mark.parametrize(
    ("source", "end"),
    [pytest.param("openmind", signal.SIGKILL, marks=needs_openmind), ("hf", signal.SIGTERM)],
    indirect=["source"],
)
def test_a_pull_goes_on_where_a_killed_one_stopped(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path, end: signal.Signals
) -> None:
    """The clients write a file in steps of 10 MiB."""
    kept_bytes = 10 << 20
    make_large(hub, VAE, 24 << 20)
    hub.faults = [Fault("hold", at=VAE, times=1)]
    killed = pull()
    part = wait_for_part(hub, weights, VAE)
    wait_until(lambda: part.stat().st_size >= kept_bytes)
    killed.process.send_signal(end)
    assert killed.process.wait() == -end
    with pytest.raises(WeightsError, match="Run `python -m app pull`"):
        locate(source, weights)
    assert kept_bytes <= (left_over_bytes := part.stat().st_size)
    hub.sent_bytes = Counter()
    pull().succeeds()
    assert hub.sent_bytes == {VAE: (hub.folder / VAE).stat().st_size - left_over_bytes}
    assert_whole(source, weights, hub)
    assert not list(weights.rglob("*.incomplete"))


def test_a_large_file_comes_over_several_connections_and_each_goes_on_where_a_killed_pull_stopped(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path
) -> None:
    make_large(hub, VAE, 3 * PART_BYTES)
    size_bytes = (hub.folder / VAE).stat().st_size
    kept_bytes = 3 * (10 << 20)  # the clients' first step in each part of which the hub sends half
    hub.faults = [Fault("hold", at=VAE, times=3)]
    killed = pull()
    part = wait_for_part(hub, weights, VAE)
    wait_until(lambda: present_bytes(part, size_bytes) >= kept_bytes)
    killed.process.kill()
    assert killed.process.wait() == -signal.SIGKILL
    there_bytes = present_bytes(part, size_bytes)
    assert part.stat().st_blocks * 512 < there_bytes + PART_BYTES // 2
    hub.sent_bytes = Counter()
    pull().succeeds()
    assert hub.sent_bytes == {VAE: size_bytes - there_bytes}
    assert_whole(source, weights, hub)
    assert not list(weights.rglob("*.incomplete"))


@pytest.mark.parametrize("fault", [("whole", ALWAYS), ("damage", 1), ("cut", 2)])
def test_a_large_file_comes_whole_also_if_the_hub_knows_no_ranges_or_a_part_is_damaged_or_breaks_off(
    hub: LocalHub,
    pull: StartPull,
    source: HubSource,
    weights: Path,
    fault: tuple[Literal["whole", "damage", "cut"], int],
) -> None:
    kind, times = fault
    make_large(hub, VAE, PART_BYTES + (1 << 20))
    hub.faults = [Fault(kind, at=VAE, times=times)]
    pull(prelude=HASTE).succeeds()
    assert_whole(source, weights, hub)
    assert not list(weights.rglob("*.incomplete"))


def test_a_part_that_breaks_off_late_and_then_meets_errors_goes_on(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path
) -> None:
    make_large(hub, VAE, 2 * PART_BYTES - (1 << 20))
    left_over = blobs_of(source, weights) / f"{hub.etag(VAE)}.incomplete"  # so that a single part is missing
    left_over.write_bytes((hub.folder / VAE).read_bytes()[:PART_BYTES])
    hub.faults = [Fault("fail", at=VAE, times=1)]
    pull(prelude=SLOWNESS).succeeds()
    assert [fault.times for fault in hub.faults] == [0, 0]
    assert_whole(source, weights, hub)


def test_files_of_the_same_bytes_are_downloaded_once(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path
) -> None:
    make_large(hub, VAE, PART_BYTES)
    shutil.copyfile(hub.folder / VAE, hub.folder / TEXT_ENCODER)
    pull().succeeds()
    assert hub.sent_bytes[VAE] + hub.sent_bytes[TEXT_ENCODER] == (hub.folder / VAE).stat().st_size
    assert_whole(source, weights, hub)


def test_what_an_earlier_pull_left_over_stops_no_pull(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path
) -> None:
    blobs = blobs_of(source, weights)
    unet, vae = (hub.folder / UNET).read_bytes(), (hub.folder / VAE).read_bytes()
    left_over = {UNET: unet, VAE: vae[:1000], TEXT_ENCODER: b"other" * 9, CONFIG: b"longer than the file" * 99}
    for name, content in left_over.items():
        (blobs / f"{hub.etag(name)}.incomplete").write_bytes(content)
    pull(prelude=HASTE).succeeds()
    assert_whole(source, weights, hub)


# Faults that end a pull, each in one line that says what and what to do.


@pytest.mark.parametrize("status", [401, 403])
def test_a_hub_that_refuses_access_is_a_clear_error(
    hub: LocalHub, pull: StartPull, source: HubSource, status: int
) -> None:
    hub.faults = [Fault(status)]
    reason = pull().fails()
    assert f"refuses access to {source.hub}:{REPOSITORY}@main ({status})" in reason
    assert ("HF_TOKEN or `hf auth login`" if source.hub == "hf" else "set TURBO_MODEL to its folder") in reason


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("nobody/nothing", "does not have {hub}:nobody/nothing@main, or shows it only to its members"),
        (f"{REPOSITORY}@nowhere", f"has no revision nowhere of {REPOSITORY}"),
    ],
)
def test_a_name_that_is_not_there_is_a_clear_error(pull: StartPull, source: HubSource, model: str, reason: str) -> None:
    assert f"{reason.format(hub=source.hub)}. Check TURBO_MODEL." in pull(f"{source.hub}:{model}").fails()


@pytest.mark.parametrize("at", ["", CONFIG])
def test_a_hub_that_keeps_failing_is_a_clear_error_after_a_few_attempts(
    hub: LocalHub, pull: StartPull, source: HubSource, at: str
) -> None:
    hub.faults = [Fault(500, at=at)]
    subject = f"{at} of {source}" if at else str(source)
    assert f"answers 500 for {subject}. Try again later" in pull(prelude=HASTE).fails()
    assert ALWAYS - hub.faults[0].times <= 7


def test_a_login_page_in_the_hub_s_place_is_a_clear_error(hub: LocalHub, pull: StartPull, source: HubSource) -> None:
    hub.faults = [Fault("page")]
    reason = pull(prelude=HASTE).fails()
    assert f"gives no valid answer for {source}: " in reason
    assert "a proxy or a login page may answer in the hub's place" in reason


def test_a_hub_that_cannot_be_reached_is_a_clear_error(hub: LocalHub, pull: StartPull, source: HubSource) -> None:
    hub.stop()
    reason = pull().fails()
    assert f"cannot be reached for {source}: [Errno {errno.ECONNREFUSED}] Connection refused. Check the net" in reason


def test_a_file_that_keeps_coming_damaged_is_a_clear_error_and_leaves_no_weights(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path
) -> None:
    hub.faults = [Fault("damage", at=CONFIG)]
    assert f"{CONFIG} of {source} was downloaded twice and damaged both times" in pull(prelude=SLOWNESS).fails()
    assert hub.downloads[CONFIG] == 2
    with pytest.raises(WeightsError, match="Run `python -m app pull`"):
        locate(source, weights)


def test_a_file_that_keeps_breaking_off_is_a_clear_error(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path
) -> None:
    hub.faults = [Fault("cut", at=VAE)]
    assert f"{VAE} of {source} could not be downloaded to {weights}" in pull(prelude=HASTE).fails()


def test_a_disk_that_fills_up_is_a_clear_error_and_a_pull_with_room_goes_on(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path
) -> None:
    reason = pull(prelude=FULL_DISK).fails()
    assert re.search(rf"no space left on {weights} for {UNET} of {source}; free \d+ MB there", reason)
    hub.downloads.clear()
    pull().succeeds()
    assert hub.downloads.keys() == {UNET}
    assert_whole(source, weights, hub)


def test_a_disk_without_room_for_all_files_is_an_error_before_the_first(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path
) -> None:
    hub.faults = [Fault("huge", at=UNET)]
    assert f"no space left on {weights} for {source}; free 1,1" in pull().fails()
    assert not hub.downloads


@only_openmind
def test_an_address_that_the_openmind_client_refuses_is_a_clear_error_without_its_signature(
    hub: LocalHub, pull: StartPull, source: HubSource
) -> None:
    hub.faults = [Fault("redirect", at=CONFIG)]
    refused = pull(prelude=HASTE)
    assert f"{CONFIG} of {source} could not be downloaded" in refused.fails()
    assert "https://elsewhere.example/file is not within the white list" in refused.fails()
    assert "secret" not in refused.fails()


@only_openmind
def test_a_branch_that_moves_during_a_pull_is_a_clear_error(hub: LocalHub, pull: StartPull, source: HubSource) -> None:
    """huggingface_hub is asked for a commit by its number."""
    hub.faults = [Fault("move", at=UNET)]
    assert f"{source} was changed while it was pulled. Pull again" in pull().fails()


@only_openmind
def test_a_folder_that_the_openmind_client_refuses_is_a_clear_error(pull: StartPull) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        reason = pull(TURBO_WEIGHTS_DIR=folder).fails()
    assert "openmind_hub does not write to" in reason


@only_hugging_face
def test_a_file_system_without_symbolic_links_is_a_clear_error(pull: StartPull) -> None:
    assert "cannot be verified: it is not a link" in pull(prelude=NO_LINKS).fails()


@only_hugging_face
def test_a_repository_of_another_model_is_a_clear_error_before_its_weights_are_pulled(
    hub: LocalHub, pull: StartPull
) -> None:
    index = hub.folder / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionXLPipeline", "FluxPipeline"))
    assert "is of class FluxPipeline, not StableDiffusionXLPipeline" in pull().fails()
    assert hub.downloads.keys() == {"model_index.json"}


@only_hugging_face
def test_a_repository_without_fp16_weights_in_diffusers_format_is_a_clear_error(
    hub: LocalHub, pull: StartPull, source: HubSource
) -> None:
    for path in hub.folder.iterdir():
        if path.name not in NOT_WANTED:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert f"{source} does not have the files that TURBO_MODEL needs: model_index.json" in pull().fails()


def test_without_the_openmind_client_the_error_names_the_pythons_that_can_have_it(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openmind_hub", None)  # as if it were not installed
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    source = HubSource("openmind", REPOSITORY)
    with pytest.raises(WeightsError, match="needs the package openmind-hub, which is not installed"):
        download(source, weights, MODEL)
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    with pytest.raises(WeightsError, match=r"supports Python 3\.11, 3\.12 and 3\.13; .* TURBO_MODEL to a folder"):
        download(source, weights, MODEL)
