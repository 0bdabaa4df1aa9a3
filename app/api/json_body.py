"""Strict JSON (RFC 8259): rejects the NaN, the Infinity and the duplicate names that Python's parser accepts."""

import json
import sys
from collections import Counter
from typing import Any, NoReturn

from fastapi import Request

from app.api.errors import MAX_NAME_CHARACTERS
from app.errors import InvalidRequestError, MalformedBodyError
from app.modes.fields import MAX_PROMPT_CHARACTERS


def parse_json(body: bytes, *, shortened: bool = False) -> Any:
    """Return the value of a JSON body in UTF-8. If it is `shortened`, the client sent more: errors state no position.

    Raises:
        MalformedBodyError: The body is not JSON.
        InvalidRequestError: An object has two fields of the same name.
    """
    where = "" if shortened else " at {} {}"
    try:
        return json.loads(body.decode("utf-8-sig"), object_pairs_hook=_make_object, parse_constant=_reject_constant)
    except UnicodeDecodeError as error:
        raise _not_json("not UTF-8" + where.format("byte", error.start)) from error
    except json.JSONDecodeError as error:
        raise _not_json(error.msg.removesuffix(" at") + where.format("character", error.pos)) from error
    except RecursionError as error:
        raise MalformedBodyError("The body's JSON is nested too deeply.") from error
    except ValueError as error:  # int() limits the digits, as its time grows with their square
        limit = sys.get_int_max_str_digits()
        raise MalformedBodyError(f"The body's JSON has an integer of more than {limit} digits.") from error


def _not_json(reason: str) -> MalformedBodyError:
    return MalformedBodyError(f"The body is not JSON: {reason}.")


def _reject_constant(constant: str) -> NoReturn:
    raise _not_json(f"{constant} is not a JSON value")


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # A name with half of a surrogate pair could not be named in an answer.
    pairs = [(name if name.isascii() else name.encode(errors="replace").decode(), value) for name, value in pairs]
    made = dict(pairs)
    if len(made) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        shown = name[:MAX_NAME_CHARACTERS] or "(an empty name)"
        raise InvalidRequestError(f"{shown} is sent twice.", param=shown)
    return made


FILLER = "." * (MAX_PROMPT_CHARACTERS + 1)
"""In the stand-in of a long text (see `app.api.large_json`). It makes that too long for every field but a picture's."""


async def read_json(request: Request, *, required: str) -> Any:
    """Read a request's JSON. `required` is a field that the body must have.

    Raises:
        InvalidRequestError: The body is empty, so the required field is missing; or as `parse_json`.
        MalformedBodyError: As `parse_json`.
    """
    body = await request.body()
    check_not_blank(body, required)
    return parse_json(body)


async def read_object(request: Request, *, required: str) -> dict[str, Any]:
    """Read a request's JSON object; the contract is `read_json`.

    Raises:
        InvalidRequestError: The body is JSON, but not an object; or as `read_json`.
    """
    return as_object(await read_json(request, required=required))


def as_object(value: Any) -> dict[str, Any]:
    """Return a JSON value that must be an object.

    Raises:
        InvalidRequestError: It is not.
    """
    if not isinstance(value, dict):
        raise InvalidRequestError("The body must be a JSON object.")
    return value


def check_not_blank(body: bytes, field: str) -> None:
    """Check that the body has content. `field` is its required field.

    Raises:
        InvalidRequestError: The body is empty, so its required field is missing.
        MalformedBodyError: The body has only white space, which is not JSON.
    """
    if not body:
        raise InvalidRequestError(f"The body is empty; send a JSON object with `{field}`.")
    if not body.strip():
        raise MalformedBodyError(f"The body has only white space; send a JSON object with `{field}`.")
