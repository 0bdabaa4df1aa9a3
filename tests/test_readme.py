"""The documents' tables against the code. A failure prints the table as it has to be."""

import re
from pathlib import Path

import pytest
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from app import errors
from app.errors import StartError, TurboError
from app.main import create_app
from app.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
README, OPERATING = "README.md", "docs/operating.md"


def table(document: str, head: str) -> list[str]:
    """The rows of the document's table with this head."""
    _, found, rest = (ROOT / document).read_text(encoding="utf-8").partition(f"{head}\n")
    assert found, f"{document} has no table {head}"
    rows = []
    for line in rest.splitlines()[1:]:
        if not line.startswith("|"):
            break
        rows.append(line)
    return rows


def assert_table_is(document: str, head: str, expected: list[str]) -> None:
    assert table(document, head) == expected, f"the table of {document} has to be:\n" + "\n".join(expected)


def setting_row(name: str, field: FieldInfo) -> str:
    default = field.default
    if isinstance(default, ByteSize):
        default = default.human_readable().replace(".0", "")
    if isinstance(default, bool):
        default = str(default).lower()
    shown = "" if field.default_factory or default in (None, "") else f"`{default}`"
    meaning = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{PREFIX}{name.upper()}` | {shown} | {meaning} |"


def test_the_table_of_settings_is_the_settings_class() -> None:
    rows = [setting_row(name, field) for name, field in Settings.model_fields.items()]
    assert_table_is(OPERATING, "| variable | default | meaning |", rows)


def test_the_table_of_errors_is_the_error_tree() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, TurboError) and not issubclass(kind, StartError)
    ]
    rows = [
        f"| {kind.status} | `{kind.code}` | {(kind.__doc__ or '').strip()} |"
        for kind in sorted(kinds, key=lambda kind: kind.status)
    ]
    assert_table_is(OPERATING, "| status | code | when |", rows)


def test_the_table_of_routes_is_the_app_s() -> None:
    document = create_app(Settings(model="fake")).openapi()
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    routes |= {"GET /docs", "GET /openapi.json", "GET /metrics"}  # the document is of what programs use
    assert {re.findall(r"`([^`]+)`", row)[0] for row in table(README, "| route | what it does |")} == routes


@pytest.mark.parametrize("row", table(README, "| promise | held by |"))
def test_what_holds_a_promise_is_there(row: str) -> None:
    (named,) = re.findall(r"`([\w/]+\.py(?:::\w+)?)`", row)
    file, _, name = named.partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not name or re.search(rf"^(async )?def {name}\(", text, re.MULTILINE)


@pytest.mark.parametrize("target", ["run", "test"])
def test_the_commands_of_the_first_screen_are_in_the_makefile(target: str) -> None:
    first_screen = "\n".join((ROOT / README).read_text(encoding="utf-8").splitlines()[:20])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"\nmake {target} " in first_screen
    assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE)
