"""The file that `tune` writes: the measured table as comments, then the variables of the winning settings."""

import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from app.settings import PREFIX

_FIRST_LINE = "# Written by `python -m app tune`."
_TABLE, _END = "# Table:", "# End of the table."

_PLAIN = re.compile(r"[\w.,:/@+-]*", re.ASCII)
"""Values that python-dotenv and docker read alike without quotation marks."""


def is_tuned(path: Path) -> bool:
    """Tell whether `tune` wrote this file. False if it is missing or cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().rstrip("\n") == _FIRST_LINE
    except OSError:
        return False


def read_table(path: Path) -> str | None:
    """Return the measured table in a file that `tune` wrote, as text for people; None if `tune` did not write it.

    Raises:
        OSError: The file cannot be read.
    """
    if not is_tuned(path):
        return None
    _, _, rest = path.read_text(encoding="utf-8").partition(f"{_TABLE}\n")
    table, _, _ = rest.partition(f"{_END}\n")
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in table.splitlines())


def write_tuned(
    path: Path,
    *,
    facts: Iterable[str],
    table: Iterable[str],
    settings: Mapping[str, str],
    runtime: Mapping[str, str] | None = None,
) -> None:
    """Write the file as a whole or not at all; an existing file is replaced and keeps its permissions.

    `settings` has the names of settings with their texts; an empty text is a default, and is left out. `runtime` has
    other variables that the trials ran with.

    Raises:
        OSError: The file cannot be written, and nothing is left of it.
    """
    comments = [*map(_comment, facts), "#", _TABLE, *map(_comment, table), _END]
    path = path.resolve()  # write the target of a link, not the link
    scratch = path.with_name(f".{secrets.token_hex(8)}")
    try:
        with scratch.open("x", encoding="utf-8") as file:
            with suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            others = [f"{name}={text}" for name, text in (runtime or {}).items()]
            file.write("\n".join([_FIRST_LINE, *comments, *variables(settings), *others, ""]))
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def variables(settings: Mapping[str, str]) -> list[str]:
    """Return the lines of variables for names of settings with their texts, without those of an empty text."""
    return [f"{PREFIX}{name.upper()}={_quoted(text)}" for name, text in settings.items() if text]


def _comment(line: str) -> str:
    return f"# {line}".rstrip()


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
