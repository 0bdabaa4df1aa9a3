"""JSON as RFC 8259 has it, and nothing that Python's parser takes beside it: no NaN, no name that is sent twice."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

from app.api.error_handlers import MAX_NAME_CHARACTERS
from app.errors import InvalidRequestError, MalformedBodyError

_MAX_DIGITS = sys.int_info.default_max_str_digits
"""Digits of an integer that Python reads: 4300, as it takes the square of their number."""

_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*+"|(NaN|-?Infinity|-?[0-9]{MANY,}+(?![.eE]))|[-+.eE0-9]+'.replace("MANY", str(_MAX_DIGITS + 1)),
    re.DOTALL,
)
"""A string, a value that is refused (the group), or another number."""


class _SentTwice:
    """An object that has a name twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def parse_json(body: bytes, *, place: Callable[[int], int] = lambda position: position) -> Any:
    """Return the value that the body is.

    Args:
        body: JSON in UTF-8; a byte order mark before it is overlooked.
        place: Where in what was sent a character stands, where the body is only a part of it.

    Raises:
        MalformedBodyError: It is not JSON; the text says where.
        InvalidRequestError: An object has a name twice, of which Python's parser would take the last.
    """
    unique = True

    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _SentTwice:
        nonlocal unique
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        unique = False
        return _SentTwice(pairs)

    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedBodyError(f"The body is not JSON: not UTF-8 at byte {place(error.start)}.") from error
    try:
        value = json.loads(text, object_pairs_hook=make_object, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at")
        raise MalformedBodyError(f"The body is not JSON: {reason} at character {place(error.pos)}.") from error
    except RecursionError as error:
        raise MalformedBodyError("The body is not JSON that can be read: it is nested too deeply.") from error
    except ValueError as error:  # Python does not say where
        found = next(token for token in _TOKEN.finditer(text) if token[1])
        reason = f"a number of more than {_MAX_DIGITS} digits" if found[1][-1].isdigit() else f"{found[1]} is no value,"
        raise MalformedBodyError(f"The body is not JSON: {reason} at character {place(found.start())}.") from error
    if not unique:
        name = _name_sent_twice(value)
        raise InvalidRequestError(f"{name} is sent twice.", param=name)
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _name_sent_twice(value: Any) -> str:
    """Return the first name that is sent twice, with those of the objects that it is in before it."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while True:
        path, within = waiting.pop()
        if isinstance(within, _SentTwice):
            counts = Counter(name for name, _ in within.pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            return f"{path}{twice}"[:MAX_NAME_CHARACTERS].encode(errors="replace").decode()
        parts = within.items() if isinstance(within, dict) else enumerate(within) if isinstance(within, list) else ()
        waiting += reversed([(f"{path}{name}."[:MAX_NAME_CHARACTERS], part) for name, part in parts])
