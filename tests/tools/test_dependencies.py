import json
import re
import subprocess
import sys
from pathlib import Path

from tools.dependencies import LIST, dependencies, licence, only

ALLOWED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0"),
    *("CNRI-Python", "ISC", "MIT", "MIT-CMU", "MPL-2.0", "MulanPSL-2.0", "PSF-2.0", "Zlib"),
}
"""Licences under which a package may be passed on with the service, as it is."""

CUDA = re.compile(r"(nvidia|cuda)-.*|triton")
"""What torch's CUDA builds bring: THIRD_PARTY.md names them as a whole."""

PACKAGES = {name: package for name, package in dependencies().items() if not CUDA.fullmatch(name)}


def test_every_package_that_the_service_needs_is_listed() -> None:
    listed = set(re.findall(r"^\| \[([^]]+)\]", LIST.read_text(encoding="utf-8"), re.MULTILINE))
    assert not PACKAGES.keys() - listed, "`make licences` writes the list anew"


def test_every_package_that_the_service_needs_has_a_licence_that_is_allowed() -> None:
    licences = {name: licence(package) for name, package in PACKAGES.items()}
    others = {name: text for name, text in licences.items() if not set(re.split(r" (?:AND|OR) ", text)) <= ALLOWED}
    assert not others, "read the licence, and add it to ALLOWED, or to SPDX of tools/dependencies.py, if that is right"


def test_what_is_installed_for_tests_and_training_is_not_what_the_service_needs() -> None:
    assert {"torch", "starlette", "pydantic-core"} <= PACKAGES.keys()
    assert not {"pytest", "scipy", "matplotlib", "sdxl-turbo-server"} & PACKAGES.keys()


def test_the_sbom_lists_what_the_service_needs_and_nothing_else(tmp_path: Path) -> None:
    only(tmp_path / "only")
    command = [str(Path(sys.executable).with_name("cyclonedx-py")), "environment", "--output-reproducible"]
    done = subprocess.run(  # to validate takes 7 s; `make sbom` does
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
