"""tools/environment, in a small project with packages of its own in a folder: with the real uv and the real pip."""

import os
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

from tests.support.wheels import write_wheel
from tools.dependencies import ROOT

UV = Path(sys.executable).with_name("uv")

BACKEND = """
import zipfile
def build_editable(folder, *_):
    with zipfile.ZipFile(f"{folder}/own-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("own.pth", "")
        archive.writestr("own-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: own\\nVersion: 1.0\\n")
        archive.writestr("own-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr("own-1.0.dist-info/RECORD", "")
    return "own-1.0-py3-none-any.whl"
"""
"""A build backend without requirements."""

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "own"
version = "1.0"
requires-python = ">=3.11,<3.15"

[project.optional-dependencies]
cpu = ["torch>=2,<3"]

[dependency-groups]
oracle = ["beside"]
"""


def digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


def pack(package: Distribution, folder: Path) -> None:
    """Write the wheel of an installed package to a folder again."""
    with zipfile.ZipFile(folder / f"{package.name}-{package.version}-py3-none-any.whl", "w") as archive:
        for file in package.files or ():
            if not str(file).startswith("..") and file.suffix != ".pyc" and file.name != "INSTALLER":
                archive.write(str(package.locate_file(file)), str(file))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose lock has an older version than the index, of a package with a requirement that is left out."""
    project, index = tmp_path / "project", tmp_path / "index"
    for folder in (project / "tools", project / "requirements", index):
        folder.mkdir(parents=True)
    for name, version in (("torch", "2.5"), ("torch", "3.0"), ("served", "2.0"), ("tested", "1.0"), ("beside", "1.0")):
        write_wheel(index, name, version)
    pack(distribution("pip"), index)
    served = digest(write_wheel(index, "served", requires="left-out"))
    tested = digest(index / "tested-1.0-py3-none-any.whl")
    (project / "backend.py").write_text(BACKEND)
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "requirements/run.txt").write_text(f"served==1.0 \\\n    --hash=sha256:{served}\n")
    (project / "requirements/test.txt").write_text(
        f"served==1.0 \\\n    --hash=sha256:{served}\ntested==1.0 \\\n    --hash=sha256:{tested}\n"
    )
    shutil.copy(ROOT / "tools/environment", project / "tools")
    return project


def make(project: Path, part: str, **variables: str) -> subprocess.CompletedProcess[str]:
    index = project.parent / "index"
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(index)}
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("UV", "PIP"))}
    return subprocess.run(
        [project / "tools/environment", part],
        env={**kept, **offline, "PYTHON": sys.executable, "TORCH_INDEX": "https://nowhere.invalid/", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def installed(project: Path) -> set[str]:
    """Return the packages of the project's environment besides pip and uv, as `name version`."""
    code = "import importlib.metadata as m; print(*(f'{d.name} {d.version}' for d in m.distributions()), sep='\\n')"
    text = subprocess.check_output([project / ".venv/bin/python", "-c", code], text=True)
    return {line for line in text.splitlines() if line.partition(" ")[0] not in ("pip", "setuptools", "uv", "wheel")}


def test_pip_installs_the_locked_versions_where_uv_cannot_be_had(project: Path) -> None:
    run = make(project, "run")
    assert run.returncode == 0, run.stderr
    assert "uv cannot be installed; pip takes longer" in run.stdout
    assert installed(project) == {"own 1.0", "served 1.0", "torch 2.5"}
    test = make(project, "test")
    assert test.returncode == 0, test.stderr
    assert installed(project) == {"own 1.0", "served 1.0", "torch 2.5", "tested 1.0"}
    assert (project / ".venv/oracle/beside.py").is_file()


def test_uv_installs_the_same_versions(project: Path) -> None:
    run = make(project, "run", UV=str(UV))
    assert run.returncode == 0, run.stderr
    assert installed(project) == {"own 1.0", "served 1.0", "torch 2.5"}
    test = make(project, "test", UV=str(UV))
    assert test.returncode == 0, test.stderr
    assert installed(project) == {"own 1.0", "served 1.0", "torch 2.5", "tested 1.0"}
    assert (project / ".venv/oracle/beside.py").is_file()


def test_a_file_with_another_hash_than_the_lock_s_is_not_installed(project: Path) -> None:
    write_wheel(project.parent / "index", "served", requires="something-else")
    run = make(project, "run", UV=str(UV))
    assert run.returncode != 0
    assert "HASH" in run.stderr.upper()
    assert not list((project / ".venv/lib").glob("python3*/site-packages/served.py"))


def test_a_missing_torch_names_the_variable_for_a_mirror(project: Path) -> None:
    (project.parent / "index/torch-2.5-py3-none-any.whl").unlink()
    run = make(project, "run", UV=str(UV))
    assert run.returncode == 1
    assert "No CPU build of torch was found. Name a mirror: TORCH_INDEX=https://..." in run.stderr


def test_torch_comes_from_its_index_also_where_another_index_is_configured(project: Path) -> None:
    mirror = simple_index(project.parent / "mirror", *(project.parent / "index").glob("*.whl"))
    cpu = simple_index(project.parent / "cpu", write_wheel(project.parent, "torch", "2.4"))
    indexes = {"UV_NO_INDEX": "", "UV_FIND_LINKS": "", "UV_DEFAULT_INDEX": mirror, "TORCH_INDEX": cpu}
    run = make(project, "run", UV=str(UV), **indexes)
    assert run.returncode == 0, run.stderr
    assert installed(project) == {"own 1.0", "served 1.0", "torch 2.4"}


def test_uv_gets_the_index_of_pip_s_configuration(project: Path) -> None:
    mirror = simple_index(project.parent / "mirror", *(project.parent / "index").glob("*.whl"))
    (project.parent / "pip.conf").write_text(f"[global]\nindex-url = {mirror}\n")
    indexes = {"UV_NO_INDEX": "", "UV_FIND_LINKS": "", "PIP_NO_INDEX": "", "PIP_FIND_LINKS": "", "TORCH_INDEX": mirror}
    run = make(project, "run", UV=str(UV), PIP_CONFIG_FILE=str(project.parent / "pip.conf"), **indexes)
    assert run.returncode == 0, run.stderr
    assert installed(project) == {"own 1.0", "served 1.0", "torch 2.5"}


def simple_index(folder: Path, *wheels: Path) -> str:
    """Write a package index with these wheels, and return its address."""
    for file in wheels:
        package = folder / file.name.partition("-")[0]
        package.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, package)
        (package / "index.html").write_text("".join(f'<a href="{one.name}">.</a>' for one in package.glob("*.whl")))
    return folder.as_uri()


def test_uv_of_the_environment_that_is_made_anew_is_not_used(project: Path) -> None:
    make(project, "run", UV=str(UV))
    shutil.copy(UV, project / ".venv/bin/uv")
    activated = f"{project}/.venv/bin:/usr/bin:/bin"
    run = make(project, "run", PATH=activated)
    assert run.returncode == 0, run.stderr
    assert "torch 2.5" in installed(project)


def test_an_interpreter_that_does_not_run_is_named(project: Path) -> None:
    run = make(project, "run", UV="", PYTHON="/nonexistent/python")
    assert run.returncode == 1
    assert "PYTHON=/nonexistent/python does not run." in run.stderr


def test_without_a_python_the_error_says_which_are_needed(project: Path) -> None:
    run = make(project, "run", UV="", PYTHON="")
    assert run.returncode == 1
    assert "Python >=3.11,<3.15 is needed" in run.stderr
