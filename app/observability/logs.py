"""Logging: every line of the process through structlog to stderr."""

import logging
import os
import sys
from typing import Any

import structlog


def configure_logging(*, log_format: str, level: str) -> None:
    """Send every log line of the process, uvicorn's and the libraries' included, through structlog to stderr.

    Args:
        log_format: `json`, `console`, or `auto` for console on a terminal and json elsewhere.
        level: Least severe level that is logged.
    """
    if log_format == "auto":
        log_format = "console" if sys.stderr.isatty() else "json"
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(allow=()),
    ]
    last: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,  # rich's shows variables, and prompts with them
            )
        ]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("httpx", "httpx2", "httpcore", "urllib3", "asyncio", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")  # read at import; both log past the root logger
    logging.captureWarnings(capture=True)
    logging.getLogger("uvicorn.error").addFilter(_is_no_start_traceback)


def _is_no_start_traceback(record: logging.LogRecord) -> bool:
    """Drop the traceback that Starlette hands uvicorn as the text of a failed start; the start logs its own line."""
    return not str(record.msg).startswith("Traceback (most recent call last)")


def get_logger(name: str) -> Any:
    """Return a structlog logger; a lazy proxy, so that it may be made before logging is configured."""
    return structlog.stdlib.get_logger(name)
