"""The wheel and the source distribution, as `make dist` builds them."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from app import __version__
from tools import dist


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return dist.build(tmp_path_factory.mktemp("dist"))


def test_the_wheel_has_its_types_licences_program_and_demo_model_and_no_tests(built: list[Path]) -> None:
    assert list(dist.faults(built[0])) == []


def test_links_of_the_readme_lead_to_the_repository_on_the_index_s_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE", "https://forge.example/owner/name")
    with zipfile.ZipFile(dist.build(tmp_path)[0]) as archive:
        metadata = archive.read(f"sdxl_turbo_server-{__version__}.dist-info/METADATA").decode()
    assert "Project-URL: Source, https://forge.example/owner/name\n" in metadata
    assert "](https://forge.example/owner/name/raw/HEAD/docs/playground.png)" in metadata
    assert "](https://forge.example/owner/name/blob/HEAD/docs/clients.md#programs)" in metadata
    assert re.findall(r"\]\((?!#|https?:)[^)]*\)", metadata) == []


def test_two_builds_give_the_same_bytes(built: list[Path], tmp_path: Path) -> None:
    again = dist.build(tmp_path)
    assert [one.name for one in again] == [one.name for one in built]
    assert [one.read_bytes() for one in again] == [one.read_bytes() for one in built]


def test_the_index_s_checks_accept_both(built: list[Path]) -> None:
    programs = Path(sys.executable).parent
    subprocess.run([programs / "twine", "check", "--strict", *built], check=True)
    subprocess.run([programs / "check-wheel-contents", built[0]], check=True, cwd=dist.ROOT)


def test_the_wheel_has_every_file_of_the_packages(built: list[Path]) -> None:
    tracked = subprocess.check_output(["git", "ls-files", "app", "deploy/ray/sdxl_turbo_ray"], cwd=dist.ROOT, text=True)
    with zipfile.ZipFile(built[0]) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == {name.removeprefix("deploy/ray/") for name in tracked.splitlines()}


def test_the_source_distribution_has_what_a_wheel_is_built_from_and_no_tests(built: list[Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md", "app/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests", "build", "requirements"))]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("app/py.typed", "app/py.typed is missing"),
        (f"sdxl_turbo_server-{__version__}.dist-info/licenses/LICENSE", "the licence file LICENSE is missing"),
    ],
)
def test_a_wheel_that_lacks_a_file_is_named(built: list[Path], tmp_path: Path, name: str, fault: str) -> None:
    broken = tmp_path / built[0].name
    with zipfile.ZipFile(built[0]) as whole, zipfile.ZipFile(broken, "w") as archive:
        for one in whole.namelist():
            if one != name:
                archive.writestr(one, whole.read(one))
    assert list(dist.faults(broken)) == [fault]


def test_tests_in_a_wheel_are_named(built: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / built[0].name
    shutil.copy(built[0], broken)
    with zipfile.ZipFile(broken, "a") as archive:
        archive.writestr("tests/test_main.py", "")
    assert list(dist.faults(broken)) == ["the top-level packages are app, sdxl_turbo_ray, tests"]
