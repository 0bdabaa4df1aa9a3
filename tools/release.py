"""Makes a release's commit and tag, and tells the release workflow what it needs to know about a version.

python -m tools.release cut VERSION [CHECK...]    writes the version, runs `make CHECK...`, commits, tags; no push
python -m tools.release check TAG                 compares the tag with the version in each file and the changelog
python -m tools.release notes VERSION             prints the version's section of CHANGELOG.md
python -m tools.release outputs TAG OWNER/NAME    prints a workflow's outputs: version, image, registry of the charts
python -m tools.release chart IMAGE               makes this image the default of the Helm chart, before it is packaged

Exit code 1: refused, with each reason on stderr. The module needs only Python and git, so that a workflow can run it
without an environment.
"""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]

BRANCH = "main"
CHANGELOG = ROOT / "CHANGELOG.md"
CITATION = ROOT / "CITATION.cff"

_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
"""Semantic Versioning without pre-releases: PEP 440 spells those in another way, and wheel, image and chart have one
version."""

_UNRELEASED = "## [Unreleased]\n"
_SECTION = re.compile(r"^## \[([^\]]+)\](?: - (\d{4}-\d\d-\d\d))?$", re.MULTILINE)
_DATED = re.compile(r'^(version: .*\n)(?:date-released: "(.*)"\n)?', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Place:
    """A line with a text that a release replaces, such as the project's version: the pattern's group."""

    file: str
    pattern: str

    def read(self) -> str:
        """Return the text in this place."""
        return self._found()[1]

    def write(self, text: str) -> None:
        """Replace the text in this place."""
        found = self._found()
        start, end = found.span(1)
        (ROOT / self.file).write_text(found.string[:start] + text + found.string[end:], encoding="utf-8")

    def _found(self) -> re.Match[str]:
        found = re.search(self.pattern, (ROOT / self.file).read_text(encoding="utf-8"), re.MULTILINE)
        if found is None:
            raise ReleaseError(f"{self.file} has no line {self.pattern}.")
        return found


PLACES = (
    Place("app/__init__.py", r'^__version__ = "(.*)"$'),
    Place("Dockerfile", r"^ARG VERSION=(.*)$"),
    Place("CITATION.cff", r"^version: (.*)$"),
    Place("deploy/helm/Chart.yaml", r'^version: "?([^"\n]*)"?$'),
    Place("deploy/helm/Chart.yaml", r'^appVersion: "?([^"\n]*)"?$'),
)
"""Every place that has the version. The first is where Python reads it."""

OWN_FILES = sorted({*(place.file for place in PLACES), "CHANGELOG.md"})
"""The files that a release changes."""

IMAGES = (
    Place("deploy/helm/values.yaml", r"^image:\n  repository: (.*)$"),
    Place("deploy/helm/README.md", r"^\| `image\.repository` \| `(.*?)` \|"),
)
"""The places that have the image which the chart pulls by default."""


class ReleaseError(Exception):
    """The release is refused; the text says why, a reason a line."""


def cut(version: str, checks: Sequence[str]) -> None:
    """Write the version, run the checks, commit and tag. If anything fails, the tree is as before.

    Raises:
        ReleaseError: The release is refused, or a check failed.
    """
    if faults := list(_faults(version)):
        raise ReleaseError("\n".join(faults))
    try:
        _write(version, date=datetime.now(UTC).date().isoformat())
        for target in checks:
            _make(target)
        _git("commit", "--quiet", "--message", f"Release {version}", "--", *OWN_FILES)
    except BaseException:
        _git("checkout", "--quiet", "HEAD", "--", *OWN_FILES)  # other files may have been edited meanwhile
        raise
    _git("tag", "--annotate", f"v{version}", "--message", f"sdxl-turbo-server {version}")
    print(f"Committed and tagged. To publish it:\n  git push --atomic origin {BRANCH} v{version}")


def _faults(version: str) -> Iterator[str]:
    """Yield each reason why this version cannot be released now."""
    if branch := _git("branch", "--show-current"):
        if branch != BRANCH:
            yield f"The branch is {branch}. Releases are made on {BRANCH}."
    else:
        yield f"No branch is checked out. Releases are made on {BRANCH}."
    if changes := _git("status", "--porcelain"):
        yield f"The tree has changes that are not committed:\n{changes}"
    text = CHANGELOG.read_text(encoding="utf-8")
    if not _has_lines(_section(text, "Unreleased")):
        yield "The section [Unreleased] of CHANGELOG.md is empty. There is nothing to release."
    if not _VERSION.fullmatch(version):
        yield f"{version!r} is not a version of three numbers, such as 1.2.3 (Semantic Versioning, no pre-release)."
        return
    if _git("tag", "--list", f"v{version}"):
        yield f"The tag v{version} exists already."
        return
    released = [tag.removeprefix("v") for tag in _git("tag", "--list", "v*").split()]
    released += [name for name, _ in _SECTION.findall(text)]
    newest = max((_numbers(name) for name in released if _VERSION.fullmatch(name)), default=None)
    if newest is not None and _numbers(version) <= newest:
        yield f"{version} is not greater than {'.'.join(map(str, newest))}, which is released."
    elif _numbers(version) < _numbers(now := PLACES[0].read()):
        yield f"{version} is less than {now}, the version in {PLACES[0].file}."


def _write(version: str, *, date: str) -> None:
    for place in PLACES:
        place.write(version)
    citation = CITATION.read_text(encoding="utf-8")
    CITATION.write_text(_DATED.sub(rf'\g<1>date-released: "{date}"\n', citation), encoding="utf-8")
    text = CHANGELOG.read_text(encoding="utf-8")
    CHANGELOG.write_text(text.replace(_UNRELEASED, f"{_UNRELEASED}\n## [{version}] - {date}\n", 1), encoding="utf-8")


def check(tag: str) -> None:
    """Compare a tag with the version in every place, and the date of its changelog with that of the citation.

    Raises:
        ReleaseError: They differ.
    """
    version = _version_of(tag)
    found = {f"{place.file} ({place.pattern.partition('(')[0].strip('^')})": place.read() for place in PLACES}
    faults = [f"{where} has {other}, and the tag is {tag}." for where, other in found.items() if other != version]
    text = CHANGELOG.read_text(encoding="utf-8")
    if (date := dict(_SECTION.findall(text)).get(version)) is None:
        faults.append(f"CHANGELOG.md has no section [{version}].")
    elif not date or not _has_lines(_section(text, version)):
        faults.append(f"The section [{version}] of CHANGELOG.md has no date or no lines.")
    elif (dated := _DATED.search(CITATION.read_text(encoding="utf-8"))) is None or dated[2] != date:
        faults.append(f"The date of CITATION.cff is not {date}, that of CHANGELOG.md.")
    if faults:
        raise ReleaseError("\n".join(faults))


def notes(version: str) -> str:
    """Return the version's section of the changelog, without its heading.

    Raises:
        ReleaseError: There is no such section.
    """
    section = _section(CHANGELOG.read_text(encoding="utf-8"), version)
    if not section:
        raise ReleaseError(f"CHANGELOG.md has no section [{version}].")
    return section


def outputs(tag: str, repository: str) -> str:
    """Return a workflow's outputs as lines. Registries require lower case, which names on GitHub need not have.

    Raises:
        ReleaseError: The tag is not a version's.
    """
    owner, _, name = repository.lower().partition("/")
    return f"version={_version_of(tag)}\nimage=ghcr.io/{owner}/{name}\ncharts=oci://ghcr.io/{owner}/charts"


def chart(image: str) -> None:
    """Make an image the default of the chart. The repository's own default is the name of an image built from it.

    Raises:
        ReleaseError: The chart has no such line.
    """
    for place in IMAGES:
        place.write(image)


def _version_of(tag: str) -> str:
    version = tag.removeprefix("v")
    if version == tag or not _VERSION.fullmatch(version):
        raise ReleaseError(f"The tag {tag} is not that of a version, such as v1.2.3.")
    return version


def _section(text: str, name: str) -> str:
    """Return the lines between the heading of this name and the next one of its level; an empty text without it."""
    headings = list(_SECTION.finditer(text))
    for heading, following in zip(headings, [*headings[1:], None], strict=False):
        if heading[1] == name:
            return text[heading.end() : following.start() if following else None].strip()
    return ""


def _has_lines(section: str) -> bool:
    return any(line and not line.startswith("#") for line in section.splitlines())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _make(target: str) -> None:
    print(f"==> make {target}", flush=True)
    if subprocess.run(["make", "--no-print-directory", target], cwd=ROOT, check=False).returncode:  # noqa: S603, S607 - the caller's targets
        raise ReleaseError(f"make {target} failed. Nothing was committed, and the files are as before.")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603, S607 - git
    if done.returncode:
        raise ReleaseError(f"git {arguments[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def main(arguments: Sequence[str]) -> int:
    """Run a command and return the exit code."""
    try:
        match arguments:
            case ["cut", version, *checks]:
                cut(version, checks)
            case ["check", tag]:
                check(tag)
            case ["notes", version]:
                print(notes(version))
            case ["outputs", tag, repository]:
                print(outputs(tag, repository))
            case ["chart", image]:
                chart(image)
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. Nothing was committed, and the files are as before.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal also restores the files
        signal.signal(number, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
