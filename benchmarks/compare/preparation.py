"""Makes what the measurements need: the peers' environments, and the model in OpenVINO's format."""

import datetime as dt
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.compare.environments import make_environment
from benchmarks.support.contestants import PEERS, ROOT, Contestant, environment, interpreter

CACHE = ROOT / "build" / "bench"


def environment_of(contestant: Contestant) -> Path:
    """Return the contestant's interpreter. A peer's environment is made if it is missing.

    Raises:
        InstallError: The environment cannot be made.
    """
    if contestant.peer is None:
        return interpreter()
    requirements = PEERS / contestant.peer / "requirements.txt"
    return make_environment(
        CACHE / "environments" / contestant.peer, requirements, like_service=contestant.like_service
    )


def convert(python: Path, script: str, source: Path, folder: Path, *options: str) -> None:
    """Convert a model with a script of OpenVINO's peer, unless the folder has a converted model.

    Raises:
        subprocess.CalledProcessError: The conversion failed.
    """
    if not (folder / "done").exists():
        say(f"converting the model to {folder.name}")
        shutil.rmtree(folder, ignore_errors=True)
        command = [str(python), str(PEERS / "openvino_genai" / script), str(source), str(folder), *options]
        run(command, environment(source, {}))
        (folder / "done").touch()


def run(command: Sequence[str], env: Mapping[str, str]) -> None:
    """Run a command to its end.

    Raises:
        subprocess.CalledProcessError: It failed; `stderr` has its output.
    """
    subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True, text=True)


def say(what: str) -> None:
    """Print a line of progress."""
    print(f"{dt.datetime.now().astimezone():%H:%M:%S}  {what}", flush=True)
