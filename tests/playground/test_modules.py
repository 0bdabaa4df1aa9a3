"""The page's modules, tested in Node with the clock under control: `node/*.test.mjs`."""

import subprocess
from pathlib import Path

from tests.conftest import lacks, program

_TESTS = Path(__file__).parent / "node"
_OLDEST = (20, 19)
"""The first version of Node that recognises modules by their syntax: the page's folder has no package.json."""


def test_the_modules_pass_their_own_tests() -> None:
    node = program("node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(int(part) for part in version.removeprefix("v").split(".")[:2]) < _OLDEST:
        lacks(f"Node is {version}; the modules' tests need {'.'.join(map(str, _OLDEST))} or later")
    without_warnings = [f"--disable-warning={name}" for name in ("ExperimentalWarning", "MODULE_TYPELESS_PACKAGE_JSON")]
    done = subprocess.run(
        [node, *without_warnings, "--test", "--test-reporter=spec", *sorted(_TESTS.glob("*.test.mjs"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
