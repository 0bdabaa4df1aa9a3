"""Locks the packages of the Makefile's environments, and checks that every extra can be installed where it should be.

python -m tools.pins lock     writes requirements/*.txt, and keeps the versions there that pyproject.toml allows
python -m tools.pins upgrade  writes them with the newest versions
python -m tools.pins check    fails if an extra cannot be installed, or if the locks do not match pyproject.toml

Each command asks the package index. Nothing is installed.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools.dependencies import PROJECT, ROOT

LOCKS = ROOT / "requirements"

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
OLDEST_GLIBC = 28
"""The minor version of glibc 2 that torch's wheels need: Debian 10, Ubuntu 18.10 or later."""

_OWN_TORCH = ("npu",)
"""Extras that cannot be installed beside the others, because they need another version of torch."""

_LOCKED = {
    "test": (
        "--extra=cpu",
        "--extra=mcp",
        "--extra=ray",
        "--extra=training",
        "--extra=watermark",
        "--group=dev",
        "--group=vocabulary",
    ),
    "run": ("--extra=cpu", f"--constraint={LOCKS.name}/test.txt"),
}
"""The environments of the Makefile, with uv's options for each; `run` gets the same versions as `test`."""


_HASH = re.compile(r" \\\n    --hash=\S+")
"""A hash of a pin, with the end of the line before it."""


class PinsError(Exception):
    """An index lacks packages, or a lock is out of date; the text is for people."""


# Locks.


def lock(name: str, *options: str) -> str:
    """Return the lock of an environment: the versions and hashes of its packages for all Pythons and machines.

    The present lock's versions are kept while pyproject.toml allows them. Hashes are read from the index again. torch
    is not included, because its builds for CPU are in an index of their own.

    Raises:
        PinsError: The index has no suitable versions, or does not answer.
    """
    header = f"make lock (the packages of `make {name}`)"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lock.txt"
        present = LOCKS / f"{name}.txt"
        if present.exists():  # uv would keep the hashes of versions that it keeps
            file.write_text(_HASH.sub("", present.read_text(encoding="utf-8")), encoding="utf-8")
        _uv(
            "--universal", f"--python-version={PYTHONS[0]}",
            "--generate-hashes", "--no-annotate", "--no-emit-package=torch",
            f"--excludes={LOCKS.name}/excluded.txt", f"--custom-compile-command={header}", f"--output-file={file}",
            *_LOCKED[name], *options,
        )  # fmt: skip
        return file.read_text(encoding="utf-8")


def stale(name: str) -> bool:
    """Return whether a lock does not match pyproject.toml or the index any more.

    Files that were uploaded after the lock was written do not count.

    Raises:
        PinsError: As `lock`.
    """
    current, fresh = (LOCKS / f"{name}.txt").read_text(encoding="utf-8"), lock(name)
    hashes = {*_HASH.findall(current)} - {*_HASH.findall(fresh)}
    return bool(hashes) or _HASH.sub("", current) != _HASH.sub("", fresh)


def locked(name: str) -> list[Requirement]:
    """Return the pins of a lock, for all Pythons and machines."""
    text = _HASH.sub("", (LOCKS / f"{name}.txt").read_text(encoding="utf-8"))
    return [Requirement(line) for line in text.splitlines() if not line.startswith("#")]


# Extras.


def resolve(extras: Sequence[str], python: str, machine: str) -> list[str]:
    """Return the pins, as `name==version`, of the wheels that the extras need on Linux.

    Raises:
        PinsError: There are no such wheels.
    """
    platform = f"{machine}-manylinux_2_{OLDEST_GLIBC}"
    text = _uv(
        "--no-annotate", "--no-header", "--only-binary=:all:", f"--python-version={python}",
        f"--python-platform={platform}", *(f"--extra={extra}" for extra in extras),
    )  # fmt: skip
    return [line.partition(";")[0].strip() for line in text.splitlines() if "==" in line]


def requires_python(pins: Sequence[str], python: str, machine: str) -> dict[str, str]:
    """Return what the pins' wheels for a Python and a machine say in Requires-Python, by pin; it may be empty.

    uv ignores upper bounds of Requires-Python, and pip honours them. pip only reads the packages' metadata here.

    Raises:
        PinsError: pip finds no wheel of a pin.
    """
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in range(17, OLDEST_GLIBC + 1)]
    old = [f"--platform=manylinux{name}_{machine}" for name in ("1", "2010", "2014")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(  # noqa: S603 - this Python's pip
            [
                sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-requires-python",
                "--only-binary=:all:", f"--python-version={python}", *platforms, *old, f"--target={folder}/packages",
                f"--report={report}", *pins,
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise PinsError(done.stderr.strip())
        packages = [entry["metadata"] for entry in json.loads(report.read_text(encoding="utf-8"))["install"]]
    bounds = {canonicalize_name(package["name"]): package.get("requires_python", "") for package in packages}
    return {pin: bounds[canonicalize_name(Requirement(pin).name)] for pin in pins}


def combinations() -> Iterator[tuple[list[str], str, str]]:
    """Yield all extras that can be installed together, each with every Python and machine."""
    extras = PROJECT["optional-dependencies"]
    together = [extra for extra in extras if extra not in _OWN_TORCH]
    yield from product((together, *([extra] for extra in _OWN_TORCH)), PYTHONS, MACHINES)


def check() -> int:
    """Print what can be installed where, or why not, and return the exit code."""
    failed = False
    known: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        stales = [(name, pool.submit(stale, name)) for name in _LOCKED]
        resolutions = [(combination, pool.submit(resolve, *combination)) for combination in combinations()]
        for (extras, python, machine), resolution in resolutions:
            where = f"Python {python}, {machine} [{','.join(extras)}]"
            try:
                pins = resolution.result()
                if new := [pin for pin in pins if pin not in known]:
                    known |= requires_python(new, python, machine)
            except PinsError as error:
                failed = True
                print(f"{where}: {error}")
                continue
            wrong = [pin for pin in pins if not SpecifierSet(known[pin]).contains(python)]
            rejecting = [f"{pin} supports Python {known[pin]}" for pin in wrong]
            failed |= bool(rejecting)
            torch = [pin for pin in pins if Requirement(pin).name in ("torch", "torch-npu")]
            print(f"{where}: {', '.join(rejecting or torch)}")
        for name, future in stales:
            try:
                if future.result():
                    failed = True
                    print(f"requirements/{name}.txt does not match pyproject.toml or the index. Run make lock.")
            except PinsError as error:
                failed = True
                print(f"requirements/{name}.txt: {error}")
    return int(failed)


def _uv(*options: str) -> str:
    done = subprocess.run(  # noqa: S603 - the environment's uv
        [Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", *options, "pyproject.toml"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise PinsError(done.stderr.strip())
    return done.stdout


def main(arguments: Sequence[str]) -> int:
    """Run a command; return the exit code."""
    if list(arguments) == ["check"]:
        return check()
    if list(arguments) not in (["lock"], ["upgrade"]):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        for name in _LOCKED:
            text = lock(name, *(["--upgrade"] if arguments[0] == "upgrade" else []))
            (LOCKS / f"{name}.txt").write_text(text, encoding="utf-8")
    except PinsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
