"""The command line: `python -m app [serve|pull] [--flags]`."""

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import pydantic
import uvicorn

from app.errors import TurboError
from app.inference.engine import Engine
from app.main import create_app, pull_weights
from app.settings import PREFIX, Settings, settings_from_command_line, unknown_variables
from app.telemetry import configure_logging

_log = logging.getLogger("app")

_COMMANDS = {
    "serve": "Serve the model over HTTP (the default command). The weights must be on this disk: see pull.",
    "pull": "Download the weights, or build the demo model, and verify them; then exit.",
}

_USAGE_ERROR = 2
_START_FAILED = 3
_GAVE_UP = 1


class DrainingServer(uvicorn.Server):
    """A uvicorn server that keeps listening while it finishes what it has accepted.

    uvicorn closes its listener at the first signal, which a load balancer sees as refused connections until its next
    probe. Here new requests get 503 and `Connection: close` meanwhile, and probes an answer.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine, *, drain_s: float) -> None:
        super().__init__(config)
        self._engine = engine
        self._drain_s = drain_s
        self._drain_until: float | None = None
        self.gave_up = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to drain at the first signal; stop at once at the second, or when the service is still starting."""
        del frame
        if not self.started:
            # The thread that loads the model cannot be interrupted, and a normal exit would wait for it.
            _log.warning("stopped by %s during start", signal.Signals(sig).name)
            _exit_now(128 + sig)
        if self._drain_until is not None:
            _log.warning("second %s: stopping at once", signal.Signals(sig).name)
            _exit_now(128 + sig)
        self._drain_until = time.monotonic() + self._drain_s
        self._engine.drain()
        _log.info("%s: draining, %d requests in flight", signal.Signals(sig).name, self._engine.in_flight)

    async def on_tick(self, counter: int) -> bool:
        """Stop when the last accepted request is answered; when the time to drain is over, with an error."""
        if self._drain_until is not None:
            left_s = self._drain_until - time.monotonic()
            if not self._engine.in_flight:
                self.config.timeout_graceful_shutdown = max(1, round(left_s))  # for bytes that are under way
                self.should_exit = True
            elif left_s <= 0 and not self.gave_up:
                _log.error("drain time is over: giving up on %d requests", self._engine.in_flight)
                self.gave_up = True
                self._engine.give_up()
        return await super().on_tick(counter)


def _exit_now(code: int) -> NoReturn:
    """End the process without joining the device thread, which may be in a call for minutes or for ever."""
    logging.shutdown()
    os._exit(code)


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the process's exit code."""
    command, flags = ("serve", arguments)
    if arguments and not arguments[0].startswith("-"):
        command, flags = arguments[0], arguments[1:]
    if command not in _COMMANDS:
        print(f"There is no command {command!r}. Commands: {', '.join(_COMMANDS)}.", file=sys.stderr)  # noqa: T201
        return _USAGE_ERROR
    try:
        settings = settings_from_command_line(flags, program=f"python -m app {command}", description=_help(command))
    except pydantic.ValidationError as error:
        for fault in error.errors():
            name = PREFIX + "_".join(str(part) for part in fault["loc"]).upper()
            print(f"{name}={fault['input']}: {fault['msg']}", file=sys.stderr)  # noqa: T201
        return _USAGE_ERROR
    configure_logging(log_format=settings.log_format, level=settings.log_level)
    for name, nearest in unknown_variables(os.environ):
        _log.warning("%s is no setting%s", name, f"; did you mean {nearest}?" if nearest else "")
    return _serve(settings) if command == "serve" else _pull(settings)


def _help(command: str) -> str:
    others = "; ".join(f"`python -m app {name}`: {text}" for name, text in _COMMANDS.items() if name != command)
    return f"{_COMMANDS[command]} Each flag is also a variable: --max-queue is {PREFIX}MAX_QUEUE. Also there: {others}"


def _serve(settings: Settings) -> int:
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http="h11",  # httptools, which uvicorn prefers when it is installed, takes headers of any size
        lifespan="on",
        log_config=None,
        access_log=False,
    )
    server = DrainingServer(config, app.state.context.engine, drain_s=settings.drain_s)
    server.run()
    if not server.started:
        return _START_FAILED
    _exit_now(_GAVE_UP if server.gave_up else 0)


def _pull(settings: Settings) -> int:
    try:
        folder = pull_weights(settings)
    except TurboError as error:
        _log.critical("cannot pull: %s", error)
        return _START_FAILED
    _log.info("%s is ready in %s", settings.model, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
