import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.errors import WeightsError
from app.weights.source import DemoSource, FolderSource, HubSource
from app.weights.store import locate, pull

DEMO = DemoSource()


@pytest.fixture
def store(weights_dir: Path, tmp_path: Path) -> Path:
    """A weights folder with the demo in it that a test may harm."""
    store = tmp_path / "weights"
    shutil.copytree(weights_dir, store)
    return store


def refuse(_: Path) -> None:
    raise AssertionError("nothing needs to be built")


def test_pulled_weights_are_located(store: Path) -> None:
    assert locate(DEMO, store) == store / DEMO.folder_name


def test_weights_that_were_never_pulled_are_an_error_that_says_how(tmp_path: Path) -> None:
    for source in (DEMO, HubSource("hf", "stabilityai/sdxl-turbo")):
        with pytest.raises(WeightsError, match=r"not in .*Run `python -m app pull`"):
            locate(source, tmp_path)


def test_weights_that_are_here_and_whole_are_not_made_again(store: Path) -> None:
    assert pull(DEMO, store, build_demo=refuse) == store / DEMO.folder_name


@pytest.mark.parametrize("harm", ["change", "truncate", "delete"])
def test_a_harmed_file_is_named_and_a_pull_mends_it(store: Path, demo_folder: Path, harm: str) -> None:
    path = store / DEMO.folder_name / "vae" / "config.json"
    if harm == "change":
        path.write_text(path.read_text().replace("8", "9"))
    elif harm == "truncate":
        path.write_text("{")
    else:
        path.unlink()
    with pytest.raises(WeightsError, match=r"vae/config\.json is (damaged|missing).*Run `python -m app pull`"):
        locate(DEMO, store)
    pull(DEMO, store, build_demo=lambda folder: _copy(demo_folder, folder))
    locate(DEMO, store)


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
    (store / f"{DEMO.folder_name}.json").write_text(content)
    with pytest.raises(WeightsError, match=r"\.json is damaged\. Delete it"):
        locate(DEMO, store)


def test_of_several_pulls_at_once_one_builds_and_all_succeed(demo_folder: Path, tmp_path: Path) -> None:
    builds: list[Path] = []

    def build(folder: Path) -> None:
        builds.append(folder)
        time.sleep(0.3)
        _copy(demo_folder, folder)

    with ThreadPoolExecutor() as pool:
        pulled = list(pool.map(lambda _: pull(DEMO, tmp_path, build_demo=build), range(4)))
    assert set(pulled) == {tmp_path / DEMO.folder_name}
    assert len(builds) == 1


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "model_index.json").write_text("{}")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        pull(DEMO, tmp_path, build_demo=fail)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_what_is_built_can_be_read_by_every_user(store: Path) -> None:
    """An image is built by root and runs as nobody."""
    for path in (store / DEMO.folder_name).rglob("*"):
        assert path.stat().st_mode & 0o004


def test_the_record_lists_every_file_with_its_size(store: Path) -> None:
    record = json.loads((store / f"{DEMO.folder_name}.json").read_text())
    folder = store / DEMO.folder_name
    assert {name: entry["size_bytes"] for name, entry in record["files"].items()} == {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }


def test_a_folder_of_the_operator_s_is_served_as_it_is(demo_folder: Path, tmp_path: Path) -> None:
    source = FolderSource(demo_folder)
    assert locate(source, tmp_path) == demo_folder
    assert pull(source, tmp_path, build_demo=refuse) == demo_folder
    with pytest.raises(WeightsError, match="There is no folder"):
        pull(FolderSource(tmp_path / "nothing"), tmp_path, build_demo=refuse)


def test_a_weights_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(WeightsError, match=rf"TURBO_WEIGHTS_DIR=.* cannot be written: {os.strerror(20)}"):
        pull(DEMO, in_the_way / "weights", build_demo=refuse)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
