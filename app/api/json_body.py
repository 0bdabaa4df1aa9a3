"""JSON as RFC 8259 has it, and nothing that Python's parser takes beside it: no NaN, no name that is sent twice."""

import codecs
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

from app.api.errors import MAX_NAME_CHARACTERS
from app.errors import InvalidRequestError, MalformedBodyError

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|(NaN|-?Infinity|-?[0-9]++(?![.eE]))|[-+.eE0-9]+', re.DOTALL)
"""A string, a value that may be refused (the group), or another number."""

_LONGEST_WORD = len("-Infinity")


class _SentTwice:
    """An object that has a name twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def parse_json(body: bytes) -> Any:
    """Return the value that the body is.

    Args:
        body: JSON in UTF-8; a byte order mark before it is overlooked.

    Raises:
        MalformedBodyError: It is not JSON; the text says where.
        InvalidRequestError: An object has a name twice, of which Python's parser would take the last.
    """
    return parse_text(decode_text(body, encoding="utf-8-sig"))


def decode_text(part: bytes, *, encoding: str = "utf-8", start: int = 0) -> str:
    """Return a part of a body, which begins with the body's byte `start`, as text.

    Raises:
        MalformedBodyError: It is not UTF-8.
    """
    try:
        return part.decode(encoding)
    except UnicodeDecodeError as error:
        raise not_utf8(start + error.start) from error


def not_utf8(position: int) -> MalformedBodyError:
    """Return what is raised for a body that is not UTF-8."""
    return MalformedBodyError(f"The body is not JSON: not UTF-8 at byte {position}.")


def not_json(error: json.JSONDecodeError, position: int) -> MalformedBodyError:
    """Return what is raised for a body that is not JSON at this character."""
    return MalformedBodyError(f"The body is not JSON: {error.msg.removesuffix(' at')} at character {position}.")


def check_begin(begin: bytes) -> None:
    """Check that JSON can begin like this. What is wrong only if nothing follows is overlooked.

    Raises:
        MalformedBodyError: It cannot.
    """
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(begin)
    except UnicodeDecodeError as error:
        raise not_utf8(error.start) from error
    try:
        json.loads(text, parse_int=str, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        if error.pos < len(text) - _LONGEST_WORD and not error.msg.startswith("Unterminated string"):
            raise not_json(error, error.pos) from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise _refused(text) from error


def parse_text(text: str, *, place: Callable[[int], int] = lambda position: position) -> Any:
    """Return the value that the text is; `parse_json` says what is raised.

    Args:
        text: JSON.
        place: Where in what was sent a character stands, if the text is only a part of it.
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
        value = json.loads(text, object_pairs_hook=make_object, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise not_json(error, place(error.pos)) from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # Python does not say where
        raise _refused(text, place) from error
    if not unique:
        name = _name_sent_twice(value)
        raise InvalidRequestError(f"{name} is sent twice.", param=name)
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _too_deep() -> MalformedBodyError:
    return MalformedBodyError("The body is not JSON that can be read: it is nested too deeply.")


def _refused(text: str, place: Callable[[int], int] = lambda position: position) -> MalformedBodyError:
    """Find the value that Python refuses: a constant of its own, or an integer of more digits than it reads."""
    max_digits = sys.get_int_max_str_digits() or math.inf  # as the environment or the interpreter's options have it
    for token in _TOKEN.finditer(text):
        word = token[1]
        if word is None or (word[-1].isdigit() and len(word.removeprefix("-")) <= max_digits):
            continue
        reason = f"a number of more than {max_digits} digits" if word[-1].isdigit() else f"{word} is no value,"
        return MalformedBodyError(f"The body is not JSON: {reason} at character {place(token.start())}.")
    return MalformedBodyError("The body is not JSON: it has a value that cannot be read.")


def _name_sent_twice(value: Any) -> str:
    """Return the first name that is sent twice, with those of the objects that it is in before it."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while True:
        path, within = waiting.pop()
        if isinstance(within, _SentTwice):
            counts = Counter(name for name, _ in within.pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            return _shown(path, twice)
        parts = within.items() if isinstance(within, dict) else enumerate(within) if isinstance(within, list) else ()
        waiting += reversed([(f"{path}{name}."[-MAX_NAME_CHARACTERS:], part) for name, part in parts])


def _shown(path: str, name: str) -> str:
    """Return a name behind the end of its path, in as many characters as are repeated."""
    shown = name[:MAX_NAME_CHARACTERS] or "(an empty name)"
    left = MAX_NAME_CHARACTERS - len(shown)
    path = path[-left:] if left > 0 else ""
    return f"{path}{shown}".encode(errors="replace").decode()


def check_not_blank(body: bytes, field: str) -> None:
    """Check that there is something to parse; `field` is the one that has to be in it.

    Raises:
        InvalidRequestError: The body is empty: what is required is missing.
        MalformedBodyError: It has nothing but blanks, which are no JSON.
    """
    if not body:
        raise InvalidRequestError(f"The body is empty; send a JSON object with `{field}`.")
    if not body.strip():
        raise MalformedBodyError(f"The body has nothing but blanks; send a JSON object with `{field}`.")
