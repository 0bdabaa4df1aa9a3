"""The command line: `python -m app [serve|generate|pull|doctor|bench] [OPTIONS]`.

What a command needs is imported when it runs: the help, and most errors, are there before anything large is.
"""

# ruff: noqa: PLC0415 - as just said

import argparse
import difflib
import logging
import os
import re
import sys
import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import pydantic
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from app import __version__
from app.errors import TurboError
from app.settings import PREFIX, Settings, warn_of_unknown_variables

_log = logging.getLogger(__name__)

_USAGE_ERROR = 2

_PROPAGATORS = "OTEL_PROPAGATORS"

_SCRIPT = "sdxl-turbo-server"

_HEADINGS = {
    "model": "the model and its device",
    "batching": "pictures at once, and warm-up",
    "max_queue": "waiting and ending",
    "max_pixels": "sizes and connections",
    "trusted_proxies": "who may ask",
    "metrics": "pages and files",
    "log_format": "the log",
}
"""The help's headings, each by the first setting under it."""

_METAVARS = {int: "N", float: "N", ByteSize: "BYTES", Path: "PATH"}

_REQUEST_FIELDS = ("prompt", "strength", "num_inference_steps", "seed", "width", "height", "num_images")
"""Fields of a request that are options of `generate`, by the names that they have on the wire."""

_COLUMNS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class _Command:
    """A command: its line in the list, what its own help says beyond that, and what it does."""

    summary: str
    run: Callable[[Settings, Namespace], int]
    details: Sequence[str] = ()
    usage: str = ""
    notes: Sequence[str] = ()
    add_options: Callable[["_Parser"], None] = lambda _: None
    examples: Sequence[str]


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the process's exit code.

    Raises:
        SystemExit: After a command's help, or on an unknown option.
    """
    _fill_descriptors()
    if arguments[:1] == ["--version"]:
        print(f"{_SCRIPT} {__version__}")  # noqa: T201
        return 0
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if arguments[:1] in (["-h"], ["--help"]):
        print(_overview())  # noqa: T201
        return 0
    name, flags = ("serve", arguments)
    if arguments and not arguments[0].startswith("-"):
        name, flags = arguments[0], arguments[1:]
    if name not in _COMMANDS:
        nearest = "".join(f" Did you mean {near}?" for near in difflib.get_close_matches(name, _COMMANDS, n=1))
        print(f"There is no command {name!r}.{nearest} Commands: {', '.join(_COMMANDS)}.", file=sys.stderr)  # noqa: T201
        return _USAGE_ERROR
    parser = _parser(name)
    options = parser.parse(flags)
    settings = _settings(options, parser)
    _configure_logging(settings, for_people=name == "generate")
    if name != "doctor":  # whose findings they are
        warn_of_unknown_variables(os.environ)
    _drop_unknown_propagators()
    return _COMMANDS[name].run(settings, options)


def _drop_unknown_propagators() -> None:
    """Leave out propagators that are not installed: FastAPI imports OpenTelemetry, which fails on them, traces or not.

    Platforms set the variable for all that they run.
    """
    if not os.environ.get(_PROPAGATORS):
        return
    asked = [word.strip() for word in os.environ[_PROPAGATORS].split(",")]
    installed = {"none", *entry_points(group="opentelemetry_propagator").names}
    if not installed.issuperset(asked):
        _log.warning("%s=%s: what is not installed of it is left out", _PROPAGATORS, os.environ[_PROPAGATORS])
        os.environ[_PROPAGATORS] = ",".join(word for word in asked if word in installed)


def _fill_descriptors() -> None:
    """Open what the process began without, so that no other file gets its number and what is written there."""
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")


class _Parser(ArgumentParser):
    """argparse's parser, whose errors are one line each."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse(self, flags: Sequence[str]) -> Namespace:
        """Parse the flags, all of which have to be known."""
        options, unknown = self.parse_known_args(flags)
        if unknown:
            known = re.findall(r"--[a-z-]+", self.format_help())
            near = "".join(f"; did you mean {near}?" for near in difflib.get_close_matches(unknown[0], known, n=1))
            quotes = "" if unknown[0].startswith("-") else " (a value of several words stands in quotes)"
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}{quotes}")
        return options

    def error(self, message: str) -> NoReturn:
        """End the process with the reason, without argparse's usage, which has a screen of settings."""
        self.exit(_USAGE_ERROR, f"{message}\n`{self.prog} --help` lists the options.\n")


def _parser(name: str) -> _Parser:
    command = _COMMANDS[name]
    program = _program()
    parser = _Parser(
        prog=f"{program} {name}",
        usage=f"{program} {name} {command.usage}[OPTIONS]",
        description=textwrap.fill(" ".join([command.summary, *command.details]), _COLUMNS),
        epilog="\n".join(["examples:", *(f"  {program} {example}" for example in command.examples), *command.notes]),
    )
    command.add_options(parser)
    _add_settings(parser)
    return parser


def _add_settings(parser: _Parser) -> None:
    """Give every setting a flag. What is not given is left to the environment."""
    parser.add_argument_group("settings", f"Each is a variable, too: --max-queue 8 is {PREFIX}MAX_QUEUE=8. Flags win.")
    group = parser.add_argument_group("where to listen")
    for name, field in Settings.model_fields.items():
        if name in _HEADINGS:
            group = parser.add_argument_group(_HEADINGS[name])
        text = " ".join([*(field.description or "").split(), *_default(field)]).replace("%", "%%")
        if field.annotation is bool:
            group.add_argument(_flag(name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            group.add_argument(_flag(name), metavar=_metavar(field), default=argparse.SUPPRESS, help=text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default(field: FieldInfo) -> Sequence[str]:
    default = field.default
    if field.default_factory or default in (None, ""):
        return []
    if isinstance(default, ByteSize):
        default = default.human_readable().replace(".0", "")
    if isinstance(default, bool):
        default = "yes" if default else "no"
    return [f"(default: {default})"]


def _metavar(field: FieldInfo) -> str:
    kinds = (field.annotation, *get_args(field.annotation))
    if get_origin(field.annotation) is Literal:
        return f"{{{','.join(kinds[1:])}}}"
    return next((word for kind, word in _METAVARS.items() if kind in kinds), "TEXT")


def _settings(options: Namespace, parser: _Parser) -> Settings:
    """Make the settings from the flags that are given, and from the environment."""
    # An empty flag counts as none, as an empty variable does.
    given = {name: value for name, value in vars(options).items() if name in Settings.model_fields and value != ""}
    try:
        return Settings(**given)
    except pydantic.ValidationError as error:
        for fault in error.errors():
            name = "_".join(str(part) for part in fault["loc"])
            where = f"{_flag(name)} " if name in given else f"{PREFIX}{name.upper()}="
            reason = fault["msg"].removeprefix("Value error, ")  # Pydantic's, before what our own rules say
            print(f"{where}{fault['input']}: {reason}" if name else reason, file=sys.stderr)  # noqa: T201
        parser.exit(_USAGE_ERROR)


def _configure_logging(settings: Settings, *, for_people: bool) -> None:
    """Set up the log: all that the settings say, or what people at a command line have to know unless they say more."""
    from app.observability.logs import configure_logging

    log_format, level = settings.log_format, settings.log_level
    if for_people:
        log_format = "console" if log_format == "auto" else log_format
        level = level if "log_level" in settings.model_fields_set else "warning"
    configure_logging(log_format=log_format, level=level)


def _program() -> str:
    """Return what the commands follow, as it was typed: pip makes a script, too."""
    return _SCRIPT if Path(sys.argv[0]).name == _SCRIPT else "python -m app"


def _overview() -> str:
    program = _program()
    return "\n".join(
        [
            f"usage: {program} [COMMAND] [OPTIONS]",
            "",
            "SDXL-Turbo, which makes pictures from a prompt, or from a prompt and a picture.",
            "",
            "commands:",
            *(f"  {name:<10}{command.summary}" for name, command in _COMMANDS.items()),
            "",
            "examples:",
            *(f"  {program} {command.examples[0]}" for command in _COMMANDS.values()),
            "",
            f"`{program} COMMAND --help` lists a command's options, and the settings that all of them take.",
            f"`{program} --version` prints the version.",
        ]
    )


# The commands.


def _serve(settings: Settings, _: Namespace) -> NoReturn:
    from app.main import create_app
    from app.server.serve import serve

    serve(create_app, settings)


def _add_json(parser: _Parser) -> None:
    parser.add_argument("--json", action="store_true", help="Print JSON, for programs.")


def _add_request(parser: _Parser) -> None:
    """Add what one request says: the fields of the wire models, whose rules are checked by those."""
    parser.add_argument("prompt", metavar="PROMPT", help="What to draw; - reads it from stdin.")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="File to write, over one that is there: .png, .webp, .jpg or .jpeg. Of several pictures FILE-1, FILE-2, "
        "... are written. - writes a PNG to stdout. By default a new file in this folder, named by mode and seed: "
        "txt2img-42.png.",
    )
    parser.add_argument(
        "--image", metavar="FILE", help="Picture to start from, PNG, JPEG or WebP; - reads it from stdin."
    )
    parser.add_argument(
        "--strength",
        metavar="N",
        help="How much of --image may change, up to 1. int(steps x strength) steps run, at least 1. (default: 0.5)",
    )
    parser.add_argument(
        "--num-inference-steps",
        "--steps",
        metavar="N",
        help="Denoising steps, 1 to 4. One is enough, four are better. (default: 1; with --image 2)",
    )
    parser.add_argument(
        "--seed", metavar="N", help="Seed of the first picture, others have seed + 1, ... Drawn if left out."
    )
    parser.add_argument("--width", metavar="PIXELS", help="Multiple of 8. (default: 512; with --image, its aspect)")
    parser.add_argument("--height", metavar="PIXELS", help="Likewise.")
    parser.add_argument("--num-images", metavar="N", help="Pictures to make, 1 to 4. (default: 1)")
    _add_json(parser)


def _generate(settings: Settings, options: Namespace) -> NoReturn:
    from app.cli.generate import Order, generate
    from app.server.process import exit_now

    fields = {name: value for name in _REQUEST_FIELDS if (value := getattr(options, name)) is not None}
    order = Order(fields=fields, image=options.image, output=options.output, as_json=options.json)
    exit_now(generate(order, settings))  # a device that is ill can hang a normal end


def _pull(settings: Settings, _: Namespace) -> int:
    from app.main import pull_weights
    from app.server.process import START_FAILED

    try:
        folder = pull_weights(settings)
    except TurboError as error:
        _log.critical("cannot pull: %s", error)
        return START_FAILED
    if folder is None:
        _log.info("%s needs no weights", settings.model)
    else:
        _log.info("%s is ready in %s", settings.model, folder)
    return 0


def _doctor(settings: Settings, options: Namespace) -> NoReturn:
    from app.cli.doctor import examine, report
    from app.server.process import exit_now

    exit_now(report(examine(settings), as_json=options.json))  # as above


def _bench(settings: Settings, options: Namespace) -> NoReturn:
    from app.cli.bench import bench
    from app.server.process import exit_now

    exit_now(bench(settings, as_json=options.json))  # as above


_COMMANDS = {
    "serve": _Command(
        summary="Serve the model over HTTP (what runs without a command).",
        details=["The weights must be on this disk: see pull."],
        run=_serve,
        examples=("serve --port 8000", "serve --model hf:stabilityai/sdxl-turbo --device cuda:1"),
    ),
    "generate": _Command(
        summary="Make pictures from a prompt, or from a picture, without a server.",
        details=[
            "The same request with the same seed gives the bytes that the server answers with.",
            "The files' names go to stdout, all else to stderr.",
        ],
        usage="PROMPT [-o FILE] [--image FILE] ",
        add_options=_add_request,
        run=_generate,
        examples=(
            'generate "a fox with a scarf" -o fox.png',
            'generate "a fox with a scarf" --num-images 4 --seed 42 --steps 4 -o fox.webp',
            'generate "an oil painting of a fox" --image fox.png --strength 0.7 -o painting.png',
            "generate - -o - < prompt.txt > picture.png",
        ),
        notes=(
            "",
            "exit codes:",
            "  0  the pictures are written",
            "  1  they could not be made, or not written",
            "  2  wrong use, or a request that the service would refuse",
            "  3  the weights or the device cannot be used",
            "  130 after Ctrl-C, 143 after SIGTERM: no unfinished file is left",
        ),
    ),
    "pull": _Command(
        summary="Download the weights and verify them; then exit.",
        run=_pull,
        examples=("pull --model hf:stabilityai/sdxl-turbo",),
    ),
    "doctor": _Command(
        summary="Look at everything that serving needs, and say what is wrong and what helps.",
        add_options=_add_json,
        run=_doctor,
        examples=("doctor --device npu:0", "doctor --json"),
    ),
    "bench": _Command(
        summary="Measure what pictures take on this hardware, and how many are worth making at once.",
        add_options=_add_json,
        run=_bench,
        examples=("bench --warm-up-sizes 512x512,768x768", "bench --json"),
    ),
}
