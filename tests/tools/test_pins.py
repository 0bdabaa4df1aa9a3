"""The locks, and the checks of pins: with the real pip, and packages of its own in a folder."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.wheels import write_wheel
from tools import pins
from tools.dependencies import PROJECT, ROOT

NAME_OF = {"run": [], "test": ["mcp", "ray", "training", "watermark"]}
EXCLUDED = {
    line for line in (pins.LOCKS / "excluded.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
}


def locked(name: str) -> dict[str, list[Requirement]]:
    """Return a lock's pins by package; a package may have several, each for other Pythons."""
    found: dict[str, list[Requirement]] = {}
    for pin in pins.locked(name):
        found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def applies(requirement: Requirement, python: str) -> bool:
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "extra": ""}
    return requirement.marker is None or requirement.marker.evaluate(environment)


@pytest.mark.parametrize("name", NAME_OF)
@pytest.mark.parametrize("python", pins.PYTHONS)
def test_a_lock_has_a_fitting_version_of_every_package_that_pyproject_names(name: str, python: str) -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = [*PROJECT["dependencies"]]
    for extra in NAME_OF[name]:
        lines += PROJECT["optional-dependencies"][extra]
    if name == "test":
        lines += document["dependency-groups"]["dev"] + document["dependency-groups"]["vocabulary"]
    lock = locked(name)
    for requirement in map(Requirement, lines):
        package = canonicalize_name(requirement.name)
        if package == "torch" or package in EXCLUDED or not applies(requirement, python):
            continue
        (pin,) = [one for one in lock.get(package, []) if applies(one, python)]
        (version,) = [specifier.version for specifier in pin.specifier]
        assert version in requirement.specifier, f"requirements/{name}.txt: {pin}, but {requirement}; run make lock"


def test_the_service_is_tested_with_the_versions_that_make_run_installs() -> None:
    tested = locked("test")
    for package, requirements in locked("run").items():
        assert {(one.specifier, one.marker) for one in requirements} <= {
            (one.specifier, one.marker) for one in tested[package]
        }


@pytest.mark.parametrize("name", NAME_OF)
def test_every_pin_has_hashes_and_nothing_of_cuda_is_locked(name: str) -> None:
    text = (pins.LOCKS / f"{name}.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=\S)", text.partition("\naccelerate")[2])
    assert all("--hash=sha256:" in block for block in blocks)
    assert not [
        package for package in locked(name) if package.startswith(("nvidia", "cuda", "torch")) or package in EXCLUDED
    ]


def test_the_checks_cover_every_extra_on_every_python_and_machine() -> None:
    covered = {(extra, python, machine) for extras, python, machine in pins.combinations() for extra in extras}
    every = PROJECT["optional-dependencies"]
    assert covered == {
        (extra, python, machine) for extra in every for python in pins.PYTHONS for machine in pins.MACHINES
    }
    classifiers = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert classifiers == set(pins.PYTHONS)


def test_a_package_with_an_upper_bound_below_a_python_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, bounds in (("narrow", ">=3.8,<3.14"), ("wide", ">=3.8"), ("unbounded", "")):
        write_wheel(tmp_path, name, requires_python=bounds)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    names = ["narrow==1.0", "wide==1.0", "unbounded==1.0"]
    found = pins.requires_python(names, "3.14", "aarch64")
    assert found == {"narrow==1.0": ">=3.8,<3.14", "wide==1.0": ">=3.8", "unbounded==1.0": ""}
    with pytest.raises(pins.PinsError, match="absent==1"):
        pins.requires_python(["absent==1"], "3.14", "aarch64")


def test_an_index_that_does_not_answer_is_an_error_and_changes_no_lock(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [file.read_bytes() for file in sorted(pins.LOCKS.iterdir())]
    for name in ("UV_DEFAULT_INDEX", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    assert pins.main(["lock"]) == pins.main(["check"]) == 1
    printed = capsys.readouterr()
    assert "http://127.0.0.1:9/" in printed.err
    assert "requirements/test.txt: " in printed.out
    assert [file.read_bytes() for file in sorted(pins.LOCKS.iterdir())] == before


def test_a_wrong_command_prints_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert pins.main(["unlock"]) == 2
    assert "python -m tools.pins lock" in capsys.readouterr().err
