"""Shared by the scripts: run the case that the command line names, and print its report as one line of JSON.

Each script is called with the service's URL, a key, the path of a picture and the name of a case. Beside the picture
are masks of one part of it: clear.png is transparent there, as OpenAI's API wants it, and white.png is white.
"""

import base64
import json
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Report = dict[str, Any]


class Service(NamedTuple):
    """The service to call."""

    url: str
    key: str


def main(
    *cases: Callable[[Service, Path], Report],
    refusal: type[Exception] | tuple[type[Exception], ...],
    told: Callable[[Any], Report] = lambda error: {"error": str(error)},
) -> None:
    """Run one of the cases. If it raises a `refusal`, report what that tells the user."""
    url, key, picture, name = sys.argv[1:]
    case = {case.__name__: case for case in cases}[name]
    try:
        report = case(Service(url, key), Path(picture))
    except refusal as error:
        report = told(error)
    print(json.dumps(report))


def encoded(file: bytes) -> str:
    """Return the bytes of a picture's file as the test decodes them."""
    return base64.b64encode(file).decode("ascii")


def downloaded(url: str) -> str:
    """Read a picture from its URL as a program does; `urllib` reads data URLs too."""
    with urllib.request.urlopen(url) as answer:
        return encoded(answer.read())
