"""Logging: every line of the process through structlog to stderr."""

import logging
import os
import sys

import structlog


def configure_logging(*, log_format: str, level: str) -> None:
    """Send every log line of the process, of uvicorn and libraries too, through structlog to stderr.

    `log_format` is `json`, `console`, or `auto`, which is console on a terminal and json elsewhere.
    """
    if log_format == "auto":
        log_format = "console" if sys.stderr.isatty() else "json"
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(allow=()),
    ]
    last: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    if log_format == "console":
        plain = structlog.dev.plain_traceback  # rich's traceback would show variables, such as prompts
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    formatter = structlog.stdlib.ProcessorFormatter
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, formatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(foreign_pre_chain=shared, processors=[formatter.remove_processors_meta, *last]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("httpx", "httpx2", "httpcore", "urllib3", "asyncio", "PIL", "mcp"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")  # both have handlers of their own
    logging.captureWarnings(capture=True)
    logging.getLogger("uvicorn.error").addFilter(_is_no_start_traceback)


def _is_no_start_traceback(record: logging.LogRecord) -> bool:
    """Drop Starlette's traceback of a failed start, as the start logs its own line."""
    return not str(record.msg).startswith("Traceback (most recent call last)")
