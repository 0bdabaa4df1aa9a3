"""The command line: `python -m app [serve|pull|doctor|bench] [--flags]`."""

import logging
import os
import sys
from collections.abc import Sequence

import pydantic

from app.bench import bench
from app.doctor import examine, report
from app.errors import TurboError
from app.main import create_app, pull_weights
from app.server import START_FAILED, exit_now, serve
from app.settings import PREFIX, Settings, settings_from_command_line, unknown_variables
from app.telemetry import configure_logging

_log = logging.getLogger(__name__)

_COMMANDS = {
    "serve": "Serve the model over HTTP (the default command). The weights must be on this disk: see pull.",
    "pull": "Download the weights and verify them; then exit.",
    "doctor": "Look at everything that serving needs, and say what is wrong and what helps; --json for programs.",
    "bench": "Measure what pictures take on this hardware, and how many are worth making at once; --json for programs.",
}

_WITH_JSON = ("doctor", "bench")

_USAGE_ERROR = 2


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the process's exit code."""
    command, flags = ("serve", arguments)
    if arguments and not arguments[0].startswith("-"):
        command, flags = arguments[0], arguments[1:]
    if command not in _COMMANDS:
        print(f"There is no command {command!r}. Commands: {', '.join(_COMMANDS)}.", file=sys.stderr)  # noqa: T201
        return _USAGE_ERROR
    as_json = command in _WITH_JSON and "--json" in flags
    if as_json:
        flags = [flag for flag in flags if flag != "--json"]
    try:
        settings = settings_from_command_line(flags, program=f"python -m app {command}", description=_help(command))
    except pydantic.ValidationError as error:
        for fault in error.errors():
            name = PREFIX + "_".join(str(part) for part in fault["loc"]).upper()
            where = f"{name}={fault['input']}: " if fault["loc"] else ""
            print(f"{where}{fault['msg']}", file=sys.stderr)  # noqa: T201
        return _USAGE_ERROR
    configure_logging(log_format=settings.log_format, level=settings.log_level)
    if command == "doctor":
        exit_now(report(examine(settings), as_json=as_json))  # a device that is ill can hang a normal end
    for name, nearest in unknown_variables(os.environ):
        _log.warning("%s is no setting%s", name, f"; did you mean {nearest}?" if nearest else "")
    if command == "serve":
        serve(create_app, settings)
    if command == "bench":
        return bench(settings, as_json=as_json)
    return _pull(settings)


def _help(command: str) -> str:
    others = "; ".join(f"`python -m app {name}`: {text}" for name, text in _COMMANDS.items() if name != command)
    return f"{_COMMANDS[command]} Each flag is also a variable: --max-queue is {PREFIX}MAX_QUEUE. Also there: {others}"


def _pull(settings: Settings) -> int:
    try:
        folder = pull_weights(settings)
    except TurboError as error:
        _log.critical("cannot pull: %s", error)
        return START_FAILED
    _log.info("%s is ready in %s", settings.model, folder)
    return 0
