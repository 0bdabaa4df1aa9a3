"""The packages that the service needs to run, as they are installed here.

python -m tools.dependencies licences       writes the table of THIRD_PARTY.md
python -m tools.dependencies only FOLDER    makes an environment that has nothing else, for cyclonedx-py to look at
"""

import json
import re
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["cpu"]
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
"""What packages say instead of SPDX's names. The texts of those that say BSD were read: they have three clauses."""


def dependencies() -> dict[str, Distribution]:
    """The packages that pyproject.toml requires for CPU and those that these require, by name."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(line) for line in REQUIREMENTS]
    seen: set[tuple[str, str]] = set()
    for requirement in waiting:  # it grows meanwhile
        name = canonicalize_name(requirement.name)
        found[name] = package = distribution(name)
        wanted = {(name, extra) for extra in ("", *requirement.extras)} - seen
        waiting += [needed for _, extra in wanted for needed in _required(package, extra)]
        seen |= wanted
    return dict(sorted(found.items()))


def _required(package: Distribution, extra: str) -> Iterator[Requirement]:
    for line in package.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def licence(package: Distribution) -> str:
    """A package's licence, as an SPDX expression where the package gives one or says what `SPDX` knows; or nothing."""
    metadata = package.metadata
    classifiers = [line for line in metadata.get_all("Classifier") or () if line.startswith("License ::")]
    fields = [text.strip() for field in ("License-Expression", "License") for text in metadata.get_all(field) or ()]
    said = [*fields, *(line.split(" :: ")[-1] for line in classifiers)]
    first = next((text for text in said if text and "\n" not in text), "")
    return SPDX.get(first, first)


def rows() -> list[str]:
    """The rows of THIRD_PARTY.md's table."""
    return [
        f"| [{name}](https://pypi.org/project/{name}/) | {licence(package)} |"
        for name, package in dependencies().items()
    ]


def write_licences() -> None:
    """Put the rows into THIRD_PARTY.md, in place of those that it has."""
    head, rule, rest = LIST.read_text(encoding="utf-8").partition("| --- | --- |\n")
    after = re.sub(r"\A(\|.*\n)*", "", rest)
    LIST.write_text("\n".join([head + rule.rstrip(), *rows(), after]), encoding="utf-8")


def only(folder: Path) -> None:
    """Make an environment that tells of the service's dependencies and of nothing else, with links instead of copies.

    Its pyproject.toml is the service's own with the version and without the other extras.
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
