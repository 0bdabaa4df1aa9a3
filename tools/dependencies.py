"""Lists the packages that the service needs to run, as they are installed here.

python -m tools.dependencies licences       writes the table of THIRD_PARTY.md
python -m tools.dependencies only FOLDER    makes an environment with these packages alone, for cyclonedx-py
"""

import hashlib
import json
import re
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from app import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = PROJECT["dependencies"] + _EXTRAS["cpu"] + _EXTRAS["mcp"]  # as in the image
LIST = ROOT / "THIRD_PARTY.md"

SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "MIT License": "MIT",
    "木兰宽松许可证, 第2版": "MulanPSL-2.0",
}
"""SPDX names for the packages' own licence names. The licence texts of the packages with "BSD" have three clauses."""

CUDA = re.compile(r"(nvidia|cuda)-.*|triton")
"""The dependencies of torch's CUDA builds, which THIRD_PARTY.md names as a group."""


def dependencies() -> dict[str, Distribution]:
    """Return the packages that pyproject.toml requires for CPU with MCP, and their own requirements, by name."""
    found: dict[str, Distribution] = {}
    waiting = [line for line in map(Requirement, REQUIREMENTS) if applies(line)]
    seen: set[tuple[str, str]] = set()
    for requirement in waiting:  # the list grows during the loop
        name = canonicalize_name(requirement.name)
        found[name] = package = distribution(name)
        wanted = {(name, extra) for extra in ("", *requirement.extras)} - seen
        waiting += [needed for _, extra in wanted for needed in _required(package, extra)]
        seen |= wanted
    return dict(sorted(found.items()))


def _required(package: Distribution, extra: str) -> Iterator[Requirement]:
    return (line for line in map(Requirement, package.requires or ()) if applies(line, extra=extra))


def applies(requirement: Requirement, *, extra: str = "") -> bool:
    """Return whether a requirement applies to this Python and machine, for a package with this extra or without one."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def licence(package: Distribution) -> str:
    """Return a package's licence: as an SPDX expression if possible, otherwise in the package's words, or empty."""
    metadata = package.metadata
    classifiers = [line for line in metadata.get_all("Classifier") or () if line.startswith("License ::")]
    fields = [text.strip() for field in ("License-Expression", "License") for text in metadata.get_all(field) or ()]
    said = [*fields, *(line.split(" :: ")[-1] for line in classifiers)]
    first = next((text for text in said if text and "\n" not in text), "")
    return SPDX.get(first, first)


class Row(NamedTuple):
    """A row of THIRD_PARTY.md's table: a package, and its licence in this version."""

    name: str
    version: str
    licence: str

    def __str__(self) -> str:
        return f"| [{self.name}](https://pypi.org/project/{self.name}/) | {self.version} | {self.licence} |"


_ROW = re.compile(r"^\| \[([^]]+)\]\([^)]*\) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)
_HEAD = "| package | version | licence |\n| --- | --- | --- |\n"
_DIGEST = "<!-- sha256 of the rows, by `make licences`: {} -->"


def rows() -> list[Row]:
    """Return the rows of THIRD_PARTY.md's table for the installed packages."""
    return [
        Row(name, Version(package.version).public, licence(package))
        for name, package in dependencies().items()
        if not CUDA.fullmatch(name)
    ]


def differences(document: str, installed: Sequence[Row]) -> list[str]:
    """Return the errors in THIRD_PARTY.md's table, one sentence each, given the rows of the installed packages.

    The packages and their licences must be the same. Versions can differ, because pip installs the newest release in
    each allowed range, for this Python and from this index. A row therefore names the version whose licence was read,
    and the installed version must have the same licence. A listed version must meet three conditions: pyproject.toml
    allows it; its major number is not above the installed one's; and `make licences` wrote it, which the digest below
    the table shows.
    """
    listed = [Row(*cells) for cells in _ROW.findall(document)]
    found = []
    if _table(listed) not in document:
        found.append("The table is not as `make licences` writes it: its rows do not have the digest below it.")
    if len(by_name := {row.name: row for row in listed}) < len(listed):
        found.append("A package is listed twice.")
    here = {row.name: row for row in installed}
    found += [f"{name} is listed, but the service does not need it." for name in sorted(by_name.keys() - here.keys())]
    found += [f"{name} is needed, but not listed." for name in sorted(here.keys() - by_name.keys())]
    for name in sorted(here.keys() & by_name.keys()):
        found += _differences(by_name[name], here[name])
    return found


def _differences(listed: Row, installed: Row) -> Iterator[str]:
    name, version, _ = listed
    if listed.licence != installed.licence:
        yield f"{name} {version} is listed as {listed.licence}; {installed.version} is {installed.licence}."
    try:
        if Version(version).major > Version(installed.version).major:
            yield f"{name} is listed in version {version}, but {installed.version} is installed."
        ranges = [line for line in map(Requirement, REQUIREMENTS) if canonicalize_name(line.name) == name]
        if not all(line.specifier.contains(version, prereleases=True) for line in ranges):
            yield f"{name} is listed in version {version}, which pyproject.toml does not allow."
    except InvalidVersion:
        yield f"{name} is listed in version {version}, which is no version."


def _table(of: Sequence[Row]) -> str:
    lines = "".join(f"{row}\n" for row in of)
    return f"{_HEAD}{lines}\n{_DIGEST.format(hashlib.sha256(lines.encode()).hexdigest())}\n"


def write_licences() -> None:
    """Replace the table in THIRD_PARTY.md."""
    before, _, rest = LIST.read_text(encoding="utf-8").partition(_HEAD)
    _, _, after = rest.partition(" -->\n")
    LIST.write_text(before + _table(rows()) + after, encoding="utf-8")


def only(folder: Path) -> None:
    """Make an environment that lists the service's dependencies alone, with links instead of copies.

    Its pyproject.toml is the service's, with the version and without the other extras.
    """
    venv.create(folder, clear=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    for package in dependencies().values():
        file = next(file for file in package.files or () if re.fullmatch(r"[^/]+\.dist-info/METADATA", str(file)))
        information = Path(str(package.locate_file(file))).parent
        (packages / information.name).symlink_to(information)
    project = {key: PROJECT[key] for key in ("name", "description", "license")}
    project |= {"version": __version__, "dependencies": REQUIREMENTS}
    lines = ["[project]", *(f"{key} = {json.dumps(value)}" for key, value in project.items())]
    (folder / "pyproject.toml").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["licences"]:
            write_licences()
        case ["only", folder]:
            only(Path(folder))
        case _:
            sys.exit(__doc__)
