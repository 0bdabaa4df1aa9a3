import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from tools.dependencies import CUDA, LIST, Row, dependencies, differences, licence, only, rows

ALLOWED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0"),
    *("CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "MulanPSL-2.0", "PSF-2.0", "Zlib"),
}
"""Licences that allow distributing a package unchanged with the service."""

PACKAGES = {name: package for name, package in dependencies().items() if not CUDA.fullmatch(name)}

DOCUMENT = LIST.read_text(encoding="utf-8")
LISTED = [Row(*cells) for cells in re.findall(r"^\| \[([^]]+)\]\S+ \| (.+) \| (.+) \|$", DOCUMENT, re.MULTILINE)]
"""The rows in the table of THIRD_PARTY.md."""


def with_digest(document: str) -> str:
    """Return the document with the digest of its rows, as `make licences` writes it."""
    rows = "".join(re.findall(r"^\| \[.*\n", document, re.MULTILINE))
    return re.sub(r"\b[0-9a-f]{64}\b", hashlib.sha256(rows.encode()).hexdigest(), document)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the table is for Pythons that openmind-hub supports")
def test_the_table_of_third_party_software_is_true_of_what_the_service_needs_here() -> None:
    assert differences(DOCUMENT, rows()) == [], "run `make licences` to rewrite the table"


def test_a_row_that_is_missing_too_many_or_there_twice_is_a_difference() -> None:
    row = next(f"{row}\n" for row in LISTED if row.name == "certifi")
    other = "| [leftpad](https://pypi.org/project/leftpad/) | 1.0 | MIT |\n"
    for document, reason in (
        (DOCUMENT.replace(row, ""), "certifi is needed, but not listed."),
        (DOCUMENT.replace(row, row + other), "leftpad is listed, but the service does not need it."),
        (DOCUMENT.replace(row, row + row), "A package is listed twice."),
    ):
        assert differences(with_digest(document), LISTED) == [reason]


def test_a_licence_that_is_not_the_installed_package_s_is_a_difference_in_every_row() -> None:
    for row in LISTED:
        other = "MIT" if row.licence != "MIT" else "ISC"
        document = DOCUMENT.replace(str(row), str(row._replace(licence=other)))
        (reason,) = differences(with_digest(document), LISTED)
        assert reason.startswith(f"{row.name} {row.version} is listed as {other}; ")


@pytest.mark.parametrize(
    ("name", "version", "reason"),
    [
        ("torch", "2.11.0", "torch is listed in version 2.11.0, which pyproject.toml does not allow."),
        ("fastapi", "0.166.0", "fastapi is listed in version 0.166.0, which pyproject.toml does not allow."),
        ("certifi", "3000.1", "certifi is listed in version 3000.1, but "),
        ("certifi", "newest", "certifi is listed in version newest, which is no version."),
    ],
)
def test_a_version_that_nobody_can_have_read_the_licence_of_is_a_difference(
    name: str, version: str, reason: str
) -> None:
    row = next(row for row in LISTED if row.name == name)
    document = DOCUMENT.replace(str(row), str(row._replace(version=version)))
    (found,) = differences(with_digest(document), LISTED)
    assert found.startswith(reason)


def test_any_change_by_hand_is_a_difference() -> None:
    (digest,) = re.findall(r"\b[0-9a-f]{64}\b", DOCUMENT)
    documents = [DOCUMENT.replace(digest, digest[::-1]), DOCUMENT.replace("org/project/torch/", "org/project/pytorch/")]
    documents += [DOCUMENT.replace(str(row), str(row._replace(version=f"{row.version}.1"))) for row in LISTED]
    for document in documents:
        assert "its rows do not have the digest below it" in differences(document, LISTED)[0]


def test_a_later_or_an_earlier_release_with_the_same_licence_is_no_difference() -> None:
    """A later installation, another Python or another index may give such a release."""
    later = [row._replace(version=f"{Version(row.version).major + 1}.0") for row in LISTED]
    earlier = [row._replace(version=f"{Version(row.version).major}.0a1") for row in LISTED]
    assert differences(DOCUMENT, later) == differences(DOCUMENT, earlier) == []


def test_a_release_with_another_licence_is_a_difference() -> None:
    installed = [row._replace(version="9999", licence="BUSL-1.1") if row.name == "rich" else row for row in LISTED]
    (version,) = (row.version for row in LISTED if row.name == "rich")
    assert differences(DOCUMENT, installed) == [f"rich {version} is listed as MIT; 9999 is BUSL-1.1."]


def test_every_package_that_the_service_needs_has_a_licence_that_is_allowed() -> None:
    licences = {name: licence(package) for name, package in PACKAGES.items()}
    others = {name: text for name, text in licences.items() if not set(re.split(r" (?:AND|OR) ", text)) <= ALLOWED}
    assert not others, "read the licence; if it is allowed, add it to ALLOWED, or to SPDX in tools/dependencies.py"


def test_what_is_installed_for_tests_and_training_is_not_what_the_service_needs() -> None:
    assert {"torch", "starlette", "pydantic-core"} <= PACKAGES.keys()
    assert not {"pytest", "scipy", "opencv-python-headless", "matplotlib", "sdxl-turbo-server"} & PACKAGES.keys()


def test_the_sbom_lists_what_the_service_needs_and_nothing_else(tmp_path: Path) -> None:
    only(tmp_path / "only")
    command = [str(Path(sys.executable).with_name("cyclonedx-py")), "environment", "--output-reproducible"]
    done = subprocess.run(  # no validation, which takes 7 s; `make sbom` validates
        [*command, "--no-validate", f"--pyproject={tmp_path / 'only' / 'pyproject.toml'}", str(tmp_path / "only")],
        capture_output=True,
        check=True,
    )
    bom = json.loads(done.stdout)
    versions = {
        re.sub("[-_.]+", "-", component["name"]).lower(): component["version"] for component in bom["components"]
    }
    assert versions == {name: package.version for name, package in dependencies().items()}
    assert bom["metadata"]["component"]["name"] == "sdxl-turbo-server"
