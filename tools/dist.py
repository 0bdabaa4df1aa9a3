"""Builds the wheel and the source distribution in build/dist, and checks them: `make dist`.

The builds are reproducible: the same commit gives the same bytes, with the time of the commit in the archives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

from app import __version__

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build/dist"

LICENCES = ("LICENSE", "THIRD_PARTY.md")
"""Files that the wheel must carry as its licences."""

NEEDED = ("app/py.typed", "app/weights/demo/model_index.json", "app/api/playground/static/index.html")
"""Files that a wheel could lack unnoticed, because no import fails without them."""

_BIN = Path(sys.executable).parent


def build(folder: Path) -> list[Path]:
    """Write the source distribution to a folder, and the wheel that is built from it; return both, the wheel first.

    Needs no network: the environment has the build backend.

    Raises:
        subprocess.CalledProcessError: The build failed; its output is on stderr.
    """
    committed = ["git", "log", "-1", "--format=%ct"]
    epoch = subprocess.check_output(committed, cwd=ROOT, text=True).strip()  # noqa: S603 - git of the PATH
    command: list[str | Path] = [_BIN / "uv", "build", "--quiet", "--no-build-isolation", "--python", sys.executable]
    variables = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
    subprocess.run([*command, "--out-dir", folder, ROOT], check=True, env=variables)  # noqa: S603 - the environment's uv
    return [*folder.glob("*.whl"), *folder.glob("*.tar.gz")]


def faults(wheel: Path) -> Iterator[str]:
    """Yield what is wrong with a wheel's contents, beyond what check-wheel-contents and twine find."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        information = f"sdxl_turbo_server-{__version__}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{information}/METADATA").decode())
        scripts = archive.read(f"{information}/entry_points.txt").decode()
    yield from (f"{name} is missing" for name in NEEDED if name not in names)
    for name in LICENCES:
        if name not in metadata.get_all("License-File", []) or f"{information}/licenses/{name}" not in names:
            yield f"the licence file {name} is missing"
    if metadata["License-Expression"] != "Apache-2.0":
        yield f"the licence is {metadata['License-Expression']}"
    if "sdxl-turbo-server = app.__main__:run" not in scripts:
        yield "the program sdxl-turbo-server is missing"
    packages = {name.partition("/")[0] for name in names} - {information}
    if packages != {"app", "sdxl_turbo_ray"}:
        yield f"the top-level packages are {', '.join(sorted(packages))}"
    yield from (f"{name} is not for users" for name in names if "/tests/" in name or name.endswith((".pyc", ".map")))


def main() -> int:
    """Build twice, compare, check and print the files; return the exit code."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    built = build(FOLDER)
    with tempfile.TemporaryDirectory() as folder:
        again = build(Path(folder))
        pairs = zip(built, again, strict=True)
        wrong = [f"two builds of {one.name} differ" for one, other in pairs if one.read_bytes() != other.read_bytes()]
    wrong += faults(built[0])
    for line in wrong:
        print(line, file=sys.stderr)
    checks: list[list[str | Path]] = [
        [_BIN / "twine", "check", "--strict", *built],
        [_BIN / "check-wheel-contents", built[0]],
    ]
    codes = [subprocess.run(command, check=False, cwd=ROOT).returncode for command in checks]  # noqa: S603 - the environment's
    if not wrong and not any(codes):
        print(*(one.relative_to(ROOT) for one in built), sep="\n")
    return int(bool(wrong) or any(codes))


if __name__ == "__main__":
    sys.exit(main())
