"""The page in Firefox, by the scenarios of `node/firefox.mjs`; all other tests here use Chromium."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import lacks, program

_SCENARIOS = Path(__file__).parent / "node" / "firefox.mjs"


@pytest.mark.timeout(300)  # for the sum of the scenarios' own time limits, whose messages say more
def test_the_page_works_in_firefox(fake_service: str, tmp_path: Path) -> None:
    node, firefox = program("node"), program("firefox-esr")
    if not (_SCENARIOS.parent / "node_modules" / "puppeteer-core").exists():
        lacks("puppeteer-core is not installed; `make lint` installs it")
    done = subprocess.run(
        [node, "--test-reporter=spec", _SCENARIOS, fake_service],
        env={**os.environ, "FIREFOX": firefox, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
