import hashlib
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import app.weights.store
from app.errors import WeightsError
from app.weights.download import Download
from app.weights.layout import Layout
from app.weights.source import DemoSource, HubSource, LocalSource
from app.weights.store import locate, pull

SOURCE = HubSource("hf", "owner/turbo")
RECORD = "hf--owner--turbo--main.json"


class Downloads:
    """Stands in for the hubs' clients, which have tests of their own: brings the tiny model, and counts."""

    def __init__(self, tiny_folder: Path) -> None:
        self.folder = tiny_folder
        self.count = 0
        self.allowed = True

    def __call__(self, _: HubSource, weights_dir: Path, __: Layout) -> Download:
        assert self.allowed, "nothing needs to be downloaded"
        self.count += 1
        time.sleep(0.1)
        folder = shutil.copytree(self.folder, weights_dir / "turbo", dirs_exist_ok=True)
        files = (path for path in folder.rglob("*") if path.is_file())
        return Download(
            folder, {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        )


@pytest.fixture
def downloads(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Downloads:
    downloads = Downloads(tiny_folder)
    monkeypatch.setattr("app.weights.store.download", downloads)
    return downloads


@pytest.fixture
def store(downloads: Downloads, tmp_path: Path) -> Path:
    """A weights folder with a pulled model in it."""
    pull(SOURCE, tmp_path / "weights")
    downloads.count = 0
    return tmp_path / "weights"


def test_pulled_weights_are_located(store: Path) -> None:
    assert locate(SOURCE, store) == store / "turbo"


def test_weights_that_were_never_pulled_are_an_error_that_says_how(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"not in .*Run `python -m app pull`"):
        locate(SOURCE, tmp_path)


def test_weights_that_are_here_and_whole_are_not_pulled_again(store: Path, downloads: Downloads) -> None:
    downloads.allowed = False
    assert pull(SOURCE, store) == store / "turbo"


def test_weights_that_are_here_and_whole_need_no_folder_that_can_be_written(store: Path) -> None:
    (store / ".lock").unlink()
    (store / ".lock").mkdir()
    assert pull(SOURCE, store) == store / "turbo"


@pytest.mark.parametrize("harm", ["change", "truncate", "delete"])
def test_a_harmed_file_is_named_and_a_pull_mends_it(store: Path, harm: str) -> None:
    path = store / "turbo" / "vae" / "config.json"
    if harm == "change":
        path.write_text(path.read_text().replace("8", "9"))
    elif harm == "truncate":
        path.write_text("{")
    else:
        path.unlink()
    with pytest.raises(WeightsError, match=r"vae/config\.json is (damaged|missing).*Run `python -m app pull`"):
        locate(SOURCE, store)
    pull(SOURCE, store)
    locate(SOURCE, store)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"folder": "x", "files": {"a": {"size": 1}}}',
        '{"folder": "x", "files": []}',
        '{"folder": "x", "files": {}}',
        '{"folder": 5, "files": {"a": {"size_bytes": 1, "sha256": ""}}}',
    ],
)
def test_a_harmed_record_is_an_error_that_says_how(store: Path, content: str) -> None:
    (store / RECORD).write_text(content)
    with pytest.raises(WeightsError, match=r"\.json is damaged\. Delete it"):
        locate(SOURCE, store)


def test_of_several_pulls_at_once_one_downloads_and_all_succeed(downloads: Downloads, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        pulled = list(pool.map(lambda _: pull(SOURCE, tmp_path), range(4)))
    assert set(pulled) == {tmp_path / "turbo"}
    assert downloads.count == 1


def test_the_record_lists_every_file_with_its_size(store: Path) -> None:
    record = json.loads((store / RECORD).read_text())
    folder = store / "turbo"
    assert {name: entry["size_bytes"] for name, entry in record["files"].items()} == {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }


def test_the_wheel_carries_the_demo() -> None:
    project = Path(app.weights.store.__file__).parents[2]
    packed = {file.distribution_path for file in WheelBuilder(str(project)).recurse_included_files()}
    demo = project / "app" / "weights" / "demo"
    files = {str(path.relative_to(project)) for path in demo.rglob("*") if path.is_file()}
    assert "app/weights/demo/unet/diffusion_pytorch_model.fp16.safetensors" in files
    assert files <= packed


def test_the_demo_is_in_the_package_and_readable_by_every_user(tmp_path: Path) -> None:
    """An image is built by root and runs as nobody."""
    folder = locate(DemoSource(), tmp_path)
    assert pull(DemoSource(), tmp_path / "none") == folder
    assert list(tmp_path.iterdir()) == []
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o004


def test_a_folder_of_the_operator_s_is_served_as_it_is(tiny_folder: Path, tmp_path: Path) -> None:
    source = LocalSource(tiny_folder)
    assert locate(source, tmp_path) == tiny_folder
    assert pull(source, tmp_path) == tiny_folder
    with pytest.raises(WeightsError, match="There is no folder"):
        pull(LocalSource(tmp_path / "nothing"), tmp_path)


def test_a_weights_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(WeightsError, match=rf"TURBO_WEIGHTS_DIR=.* cannot be written: {os.strerror(20)}"):
        pull(SOURCE, in_the_way / "weights")
