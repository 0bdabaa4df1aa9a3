"""Run a program's script in its environment, and return its report."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.clients.own_routes import Drawing, Service, seed_of
from tests.conftest import lacks

Report = dict[str, Any]

SCRIPTS = Path(__file__).parent
INSTALLED = SCRIPTS.parent.parent / "build" / "clients"
NODE = INSTALLED / "node"

_TIMEOUT_S = 100

WITHOUT_NETWORK = {"HF_HUB_DISABLE_TELEMETRY": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""LiteLLM otherwise downloads its price list when it is imported."""


def installed(path: Path) -> Path:
    """Return the path of an installed program. If it is missing, skip the test, but fail in CI."""
    if not path.exists():
        lacks(f"{path} is not installed; `make test-clients` installs it")
    return path


def python_program(environment: str, name: str) -> Path:
    """Return the path of a command in a Python environment."""
    return installed(INSTALLED / environment / "bin" / name)


def run_python(
    script: str,
    case: str,
    service: Service,
    picture: Path,
    *,
    environment: str = "programs",
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Report:
    """Run a case of a script in `python/`, with additional environment variables."""
    interpreter = python_program(environment, "python")
    return _run(interpreter, SCRIPTS / "python" / f"{script}.py", service, picture, case, variables=variables)


def run_node(script: str, case: str, service: Service, picture: Path) -> Report:
    """Run a case of a script in `node/`. Node finds packages beside the script, so it is copied to them."""
    interpreter = node_program("node")
    for file in (SCRIPTS / "node").glob("*.m[jt]s"):
        shutil.copy(file, NODE)
    return _run(interpreter, NODE / script, service, picture, case)


def node_program(name: str) -> Path:
    """Return the path of a command of a Node package."""
    return installed(NODE / "node_modules" / ".bin" / name)


def finished(
    *command: str | Path, folder: Path | None = None, variables: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Run a command with additional environment variables, and return its output."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, **WITHOUT_NETWORK, **variables},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def _run(
    interpreter: Path,
    script: Path,
    service: Service,
    picture: Path,
    case: str,
    *,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Report:
    output = finished(interpreter, script, service.url, service.key, picture, case, variables=variables)
    report: Report = json.loads(output.splitlines()[-1])
    return report


def files(report: Report) -> list[bytes]:
    """Return the files of a report's pictures."""
    assert "error" not in report, report
    return [base64.b64decode(picture) for picture in report["pictures"]]


def drawn(report: Report) -> list[Drawing]:
    """Decode the pictures of a report."""
    return [Drawing.of(file) for file in files(report)]


def seeds(report: Report) -> list[int]:
    """Return the seeds that the service chose for the pictures of a report. Programs keep the files' metadata."""
    return [seed_of(file) for file in files(report)]
