"""The systemd unit: systemd verifies it, and the tests run its command as systemd does."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from app.server.process import START_FAILED
from app.settings import Settings, unknown_variables
from tests.conftest import program

UNIT = Path(__file__).parents[2] / "deploy/systemd/sdxl-turbo-server@.service"

PYTHON = "/opt/sdxl-turbo-server/bin/python"

STAND_IN = """#!/bin/sh
echo "$@" $ASCEND_RT_VISIBLE_DEVICES $CUDA_VISIBLE_DEVICES $$
[ $3 != pull ] || exit $PULLED
"""

USAGE_ERROR, DEVICE_LOST = 2, 4


def values(text: str, name: str) -> list[str]:
    """The values of a directive, with continued lines joined."""
    return re.findall(rf"^{name}=(.*)$", text.replace("\\\n", " "), re.MULTILINE)


def command(instance: int, python: Path) -> tuple[list[str], dict[str, str]]:
    """An instance's command, with another interpreter, and its environment."""
    text = UNIT.read_text(encoding="utf-8").replace("%i", str(instance))
    (line,) = values(text, "ExecStart")
    variables = dict(one.split("=", 1) for line in values(text, "Environment") for one in shlex.split(line))
    return shlex.split(line.replace("$$", "$").replace(PYTHON, str(python))), variables


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A stand-in for Python that prints how it was called."""
    file = tmp_path / "python"
    file.write_text(STAND_IN, encoding="utf-8")
    file.chmod(0o755)
    return file


def verified(unit: str, folder: Path) -> str:
    """systemd's complaints about an instance's unit."""
    file = folder / UNIT.name.replace("@", "@7")
    file.write_text(unit, encoding="utf-8")
    done = subprocess.run([program("systemd-analyze"), "verify", file], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr + (f"exit code {done.returncode}" if done.returncode else "")


def test_systemd_has_nothing_to_say_against_the_unit_but_would_say_so(tmp_path: Path) -> None:
    text = UNIT.read_text(encoding="utf-8")
    assert not verified(text, tmp_path)
    assert "RestartSex" in verified(text.replace("RestartSec", "RestartSex"), tmp_path)


@pytest.mark.parametrize("device", [0, 7, 15])
def test_an_instance_pulls_and_then_is_the_service_on_its_device_and_port(stand_in: Path, device: int) -> None:
    words, variables = command(device, stand_in)
    process = subprocess.Popen(words, env={**variables, "PULLED": "0"}, stdout=subprocess.PIPE, text=True)
    pulled, served = process.communicate()[0].splitlines()
    assert pulled.startswith(f"-m app pull {device} {device} ")
    assert served == f"-m app serve --port {8000 + device} {device} {device} {process.pid}", (
        "signals do not reach the service"
    )
    assert not unknown_variables(variables)
    Settings.model_validate(
        {name.removeprefix("TURBO_").lower(): value for name, value in variables.items() if name.startswith("TURBO_")}
    )


def test_what_cannot_be_pulled_is_not_served(stand_in: Path) -> None:
    words, variables = command(0, stand_in)
    done = subprocess.run(words, env={**variables, "PULLED": "3"}, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == START_FAILED
    assert "serve" not in done.stdout


def test_a_wrong_setting_ends_it_for_good_and_a_failure_does_not() -> None:
    words, variables = command(0, Path(sys.executable))
    environment = {**os.environ, **variables, "TURBO_MAX_QUEUE": "many"}
    done = subprocess.run(words, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "TURBO_MAX_QUEUE" in done.stderr) == (USAGE_ERROR, True)
    text = UNIT.read_text(encoding="utf-8")
    assert values(text, "Restart") == ["on-failure"]
    for_good = {int(code) for name in ("RestartPreventExitStatus", "SuccessExitStatus") for code in values(text, name)}
    assert USAGE_ERROR in for_good
    assert not for_good & {1, START_FAILED, DEVICE_LOST, 128 + 9}


def test_the_settings_of_one_process_come_after_those_of_all() -> None:
    files = values(UNIT.read_text(encoding="utf-8"), "EnvironmentFile")
    assert files == ["-/etc/sdxl-turbo-server.env", "-/etc/sdxl-turbo-server@%i.env"]
