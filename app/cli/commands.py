"""The command line: `python -m app [serve|generate|pull|doctor|bench|tune|mcp] [OPTIONS]`.

Each command imports what it needs when it runs, so that help and most errors appear before any large import.
"""

# ruff: noqa: PLC0415 - imports inside functions, for that reason

import argparse
import difflib
import inspect
import logging
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal, NoReturn, get_args, get_origin

import pydantic
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from app import __version__
from app.errors import SCRIPT, TurboError, first_line, program
from app.server.process import START_FAILED, exit_now
from app.settings import PREFIX, Settings, read_env_file, warn_of_unknown_variables

_log = logging.getLogger(__name__)

_USAGE_ERROR = 2
_PROPAGATORS = "OTEL_PROPAGATORS"

_HEADINGS = {
    "env_file": "where to listen",
    "model": "the model and its device",
    "batching": "batching and warm-up",
    "max_queue": "queue and shutdown",
    "max_pixels": "sizes and connections",
    "trusted_proxies": "access",
    "strict": "other programs' clients",
    "metrics": "pages and files",
    "log_format": "the log",
}
"""The headings of the help, each with the first setting under it."""

_METAVARS = {int: "N", float: "N", ByteSize: "BYTES", Path: "PATH"}

_REQUEST_OPTIONS = {
    "strength": "How much of --image may change, up to 1. int(steps x strength) steps run, at least 1. (default: 0.5; "
    "with --mask 1)",
    "num_inference_steps": "Denoising steps, 1 to 4; more steps give better pictures. (default: 1; with --image 2; "
    "with --mask 4)",
    "seed": "Seed of the first picture; the others have seed + 1, ... (default: random)",
    "width": "Pixels, a multiple of 8. (default: 512; with --image, its aspect ratio is kept)",
    "height": "Pixels, as for --width.",
    "num_images": "Number of pictures to make, 1 to 4. (default: 1)",
    "padding": "Draw only the masked part and N pixels around it, at full resolution. (default: the whole picture)",
    "feather": "Pixels around the mask over which the drawn part fades into the picture. (default: 16)",
    "fill": "What the masked part starts from, below strength 1: original or noise. (default: original)",
    "extend": "Pixels to add to --image and to draw: N, or TOP,RIGHT,BOTTOM,LEFT. (default: 0)",
    "prompt_mode": "A prompt over 77 tokens is cut, or is chunked: read in up to 8 windows of 75. (default: cut)",
    "prompt_syntax": "(word:1.3) and [word] are plain text, or change weights as in webui. (default: plain)",
}
"""Optional fields of a request, by their names on the wire, with their help. The wire models validate them."""


def main(arguments: Sequence[str]) -> int:
    """Run a command and return the process's exit code.

    Raises:
        SystemExit: The help of a command was printed, or an option is wrong.
    """
    _open_standard_streams()
    if arguments[:1] == ["--version"]:
        print(f"{SCRIPT} {__version__}")  # noqa: T201
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
    if path := getattr(options, "env_file", ""):
        os.environ[f"{PREFIX}ENV_FILE"] = path
    if path := os.environ.get(f"{PREFIX}ENV_FILE"):
        try:
            _read_env_file(Path(path).expanduser(), name)
        except (OSError, ValueError, RuntimeError) as error:  # the last: ~USER of a user who does not exist
            parser.error(f"{PREFIX}ENV_FILE={path} cannot be read: {error}")
    settings = _settings(options, parser)
    _configure_logging(settings, for_people=name in ("generate", "tune"))
    if name != "doctor":  # the doctor reports unknown variables as findings
        warn_of_unknown_variables(os.environ)
    _drop_unknown_propagators()
    return _COMMANDS[name](settings, options)


def _read_env_file(path: Path, command: str) -> None:
    """Read the variables of a file, unless `tune` is to replace a file of its own: it would not vary what that sets."""
    if command == "tune":
        from app.cli.tuning.tuned_file import is_tuned

        if is_tuned(path):
            return
    read_env_file(path)


def _drop_unknown_propagators() -> None:
    """Remove propagators that are not installed: OpenTelemetry, which FastAPI imports, fails on them.

    Some platforms set the variable for every process.
    """
    if not os.environ.get(_PROPAGATORS):
        return
    requested = [word.strip() for word in os.environ[_PROPAGATORS].split(",")]
    installed = {"none", *entry_points(group="opentelemetry_propagator").names}
    if not installed.issuperset(requested):
        _log.warning("%s=%s: propagators that are not installed are ignored", _PROPAGATORS, os.environ[_PROPAGATORS])
        os.environ[_PROPAGATORS] = ",".join(word for word in requested if word in installed)


def _open_standard_streams() -> None:
    """Open the standard streams that the process started without; else another file would get their numbers."""
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")


class _Parser(ArgumentParser):
    """argparse's parser with errors of one line, without argparse's usage, which would list every setting."""

    def parse(self, flags: Sequence[str]) -> Namespace:
        options, unknown = self.parse_known_args(flags)
        if unknown:
            known = re.findall(r"--[a-z-]+", self.format_help())
            near = "".join(f"; did you mean {near}?" for near in difflib.get_close_matches(unknown[0], known, n=1))
            quotes = "" if unknown[0].startswith("-") else " (put a value of several words in quotes)"
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}{quotes}")
        return options

    def error(self, message: str) -> NoReturn:
        self.exit(_USAGE_ERROR, f"{message}\n`{self.prog} --help` lists the options.\n")


def _parser(name: str) -> _Parser:
    description, examples = _help(name)
    command = f"{program()} {name}"
    own = "PROMPT [-o FILE] [--image FILE] " if name == "generate" else ""
    parser = _Parser(
        prog=command,
        usage=f"{command} {own}[OPTIONS]",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if name == "generate":
        _add_request(parser)
    if name == "tune":
        _add_tuning(parser)
    if name in ("generate", "doctor", "bench", "tune"):
        parser.add_argument("--json", action="store_true", help="Print JSON for programs.")
    if name == "doctor":
        text = "ZIP file to write for a bug report: checks, versions, settings, tune's table, a picture of each mode."
        parser.add_argument("--report", metavar="FILE", type=Path, help=text)
    _add_settings(parser)
    return parser


def _help(name: str) -> tuple[str, str]:
    """Return a command's description, and its examples: its docstring from the first line with PROGRAM on."""
    text = re.sub("^PROGRAM", f"  {program()}", inspect.cleandoc(_COMMANDS[name].__doc__ or ""), flags=re.MULTILINE)
    description, _, examples = text.partition("\n\n  ")
    return description, f"  {examples}"


def _add_settings(parser: _Parser) -> None:
    """Give every setting a flag without a default: the environment decides about flags that are not given."""
    text = f"Each is also a variable: --max-queue 8 is {PREFIX}MAX_QUEUE=8. A flag overrides its variable."
    parser.add_argument_group("settings", text)
    group: argparse._ArgumentGroup | _Parser = parser
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
    """Make the settings from flags and environment; an empty flag is ignored, as an empty variable is."""
    given = {name: value for name, value in vars(options).items() if name in Settings.model_fields and value != ""}
    try:
        return Settings(**given)
    except pydantic.ValidationError as error:
        for fault in error.errors():
            name = "_".join(str(part) for part in fault["loc"])
            where = f"{_flag(name)} " if name in given else f"{PREFIX}{name.upper()}="
            reason = fault["msg"].removeprefix("Value error, ")  # Pydantic's prefix of our own messages
            print(f"{where}{fault['input']}: {reason}" if name else reason, file=sys.stderr)  # noqa: T201
        parser.exit(_USAGE_ERROR)


def _configure_logging(settings: Settings, *, for_people: bool) -> None:
    """Set up the log; for people at a command line, with readable warnings only, unless the settings say otherwise."""
    from app.observability.logs import configure_logging

    log_format, level = settings.log_format, settings.log_level
    if for_people and log_format == "auto":
        log_format = "console"
    if for_people and "log_level" not in settings.model_fields_set:
        level = "warning"
    configure_logging(log_format=log_format, level=level)


def _overview() -> str:
    name = program()
    helps = {name: _help(name) for name in _COMMANDS}
    firsts = {name: description.partition("\n")[0] for name, (description, _) in helps.items()}
    commands = "\n".join(f"  {name:<10}{first}" for name, first in firsts.items())
    examples = "\n".join(examples.partition("\n")[0] for _, examples in helps.values())
    return f"""usage: {name} [COMMAND] [OPTIONS]

SDXL-Turbo makes pictures from a prompt, or from a prompt and a picture.

commands:
{commands}

examples:
{examples}

`{name} COMMAND --help` lists the options of a command, and the settings, which all commands share.
`{name} --version` prints the version."""


def _add_request(parser: _Parser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="What to draw; - reads it from stdin.")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="File to write or replace: .png, .webp, .jpg or .jpeg. Several pictures become FILE-1, FILE-2, ... "
        "- writes a PNG to stdout. (default: a new file in this folder, named by mode and seed: txt2img-42.png)",
    )
    parser.add_argument("--image", metavar="FILE", help="Picture to start from: PNG, JPEG or WebP; - reads stdin.")
    parser.add_argument(
        "--mask",
        metavar="FILE",
        help="What of --image is drawn anew: white is drawn, black stays. Without it, --padding, --feather, --fill and "
        "--extend draw the picture's transparent parts.",
    )
    for name, text in _REQUEST_OPTIONS.items():
        flags = [_flag(name), *(["--steps"] if name == "num_inference_steps" else [])]
        parser.add_argument(
            *flags, metavar="NAME" if name in ("fill", "prompt_mode", "prompt_syntax") else "N", help=text
        )


def _add_tuning(parser: _Parser) -> None:
    parser.add_argument(
        "--budget",
        metavar="SECONDS",
        type=_positive,
        default=1800.0,
        help="Seconds after which no more trial begins. (default: 1800)",
    )
    parser.add_argument(
        "--max-difference",
        metavar="LEVELS",
        type=_positive,
        default=2.0,
        help="Bound of the mean difference from the reference's pictures, in levels of 255; twice as much for the "
        "worst picture. The demo model in bf16 differs by 1.4 to 1.6 from fp32. (default: 2)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="File to write; an earlier one of tune is replaced. (default: TURBO_ENV_FILE if set, else turbo.env)",
    )
    parser.add_argument("--force", action="store_true", help="Replace a file that tune did not write.")


def _positive(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError(text)
    return number


# The commands; their docstrings are their help.


def _serve(settings: Settings, _: Namespace) -> NoReturn:
    """Serve the model over HTTP (the default command).

    The weights must be on this disk: see pull.

    PROGRAM serve --port 8000
    PROGRAM serve --model hf:stabilityai/sdxl-turbo --device cuda:1
    """
    from app.main import create_app
    from app.server.serve import serve

    serve(create_app, settings)


def _generate(settings: Settings, options: Namespace) -> NoReturn:
    """Make pictures from a prompt, or from a picture, without a server.

    The same request with the same seed gives the same bytes as the server.
    The names of the files go to stdout, all other output to stderr.

    PROGRAM generate "a fox with a scarf" -o fox.png
    PROGRAM generate "a fox with a scarf" --num-images 4 --seed 42 --steps 4 -o fox.webp
    PROGRAM generate "an oil painting of a fox" --image fox.png --strength 0.7 -o painting.png
    PROGRAM generate "a red hat" --image fox.png --mask hat.png -o fox-with-a-hat.png
    PROGRAM generate - -o - < prompt.txt > picture.png

    exit codes:
      0  the pictures are written
      1  the pictures could not be made or written
      2  wrong usage, or a request that the service would reject
      3  the weights or the device cannot be used
      130 after Ctrl-C, 143 after SIGTERM: no unfinished file is left
    """
    from app.cli.generate import Order, generate

    fields = {name: value for name in ("prompt", *_REQUEST_OPTIONS) if (value := getattr(options, name)) is not None}
    order = Order(fields=fields, image=options.image, mask=options.mask, output=options.output, as_json=options.json)
    exit_now(generate(order, settings))  # a faulty device can block a normal exit


def _pull(settings: Settings, _: Namespace) -> int:
    """Download and verify the weights, then exit.

    PROGRAM pull --model hf:stabilityai/sdxl-turbo
    PROGRAM pull --model hf:stabilityai/sdxl-turbo:sd_xl_turbo_1.0_fp16.safetensors
    PROGRAM pull --model hf:stabilityai/sdxl-turbo --vae hf:madebyollin/taesdxl
    PROGRAM pull --model hf:stabilityai/sdxl-turbo --lora hf:OWNER/NAME:FILE.safetensors:0.8
    """
    from app.weights.layout import VAE, model_layout
    from app.weights.lora import LORA, parse_loras
    from app.weights.source import FakeSource, parse_source, parse_vae
    from app.weights.store import pull

    try:
        source, vae, loras = parse_source(settings.model), parse_vae(settings.vae), parse_loras(settings.lora)
        if isinstance(source, FakeSource):
            _log.info("%s needs no weights", settings.model)
            return 0
        if vae is not None:  # first, because it is the smaller download
            _log.info("%s is ready in %s", settings.vae, pull(vae, settings.weights_dir, VAE))
        for lora in loras:
            _log.info("the LoRA %s is ready in %s", lora.name, pull(lora.source, settings.weights_dir, LORA))
        place = pull(source, settings.weights_dir, model_layout(settings.scheduler))
        _log.info("%s is ready in %s", settings.model, place)
    except TurboError as error:
        _log.critical("cannot pull: %s", error)
        exit_now(START_FAILED)  # a slow connection can block a normal exit
    return 0


def _doctor(settings: Settings, options: Namespace) -> NoReturn:
    """Check everything that serving needs, and name each fault with its remedy.

    PROGRAM doctor --device npu:0
    PROGRAM doctor --json
    PROGRAM doctor --report report.zip
    """
    if options.report is not None:
        from app.cli.bug_report import diagnose

        exit_now(diagnose(settings, options.report, as_json=options.json))
    from app.cli.doctor import examine, report

    exit_now(report(examine(settings), as_json=options.json))


def _bench(settings: Settings, options: Namespace) -> NoReturn:
    """Measure the time of pictures on this hardware, and which batch size pays off.

    PROGRAM bench --warm-up-sizes 512x512,768x768
    PROGRAM bench --json
    """
    from app.cli.bench import bench

    exit_now(bench(settings, as_json=options.json))


def _tune(settings: Settings, options: Namespace) -> NoReturn:
    """Find the fastest settings on this device, and write them to a file that `serve` reads.

    Each trial is a process of its own, so a crash costs one trial. A setting whose pictures differ too much from those
    of the reference settings is never chosen. Settings that you set, as a flag or a variable, are not varied.
    Progress goes to stderr, the table to stdout, the settings and the table to the file.

    PROGRAM tune --model hf:stabilityai/sdxl-turbo --budget 3600
    PROGRAM tune -o npu.env
    PROGRAM serve --env-file npu.env

    exit codes:
      0  the file is written
      1  the reference settings cannot be measured, or the file cannot be written
      2  wrong usage, or the file is not one of tune
      130 after Ctrl-C, 143 after SIGTERM: the file has what was found so far
    """
    from app.cli.tuning.tune import Options, tune

    output = Path(options.output or settings.env_file or "turbo.env").expanduser()
    chosen = Options(
        output=output,
        budget_s=options.budget,
        max_difference=options.max_difference,
        force=options.force,
        as_json=options.json,
    )
    exit_now(tune(settings, chosen))


def _mcp(settings: Settings, _: Namespace) -> NoReturn:
    """Serve tools for agents over stdin and stdout (Model Context Protocol).

    An agent's program starts this command. The service has the same tools at /mcp. Requires the extra `mcp`.

    PROGRAM mcp --model hf:stabilityai/sdxl-turbo
    """
    try:
        from app.cli.mcp import serve_stdio
    except ImportError as error:  # none, or another version
        _log.critical("cannot start: %s. Install 'sdxl-turbo-server[mcp]'.", first_line(error))
        exit_now(START_FAILED)
    exit_now(serve_stdio(settings))


_COMMANDS: Mapping[str, Callable[[Settings, Namespace], int]] = {
    "serve": _serve,
    "generate": _generate,
    "pull": _pull,
    "doctor": _doctor,
    "bench": _bench,
    "tune": _tune,
    "mcp": _mcp,
}
