"""The documents' tables and numbers match the code. A failure prints the correct table."""

# ruff: noqa: SLF001 - the documents give numbers that are private in the code

import re
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from app import errors
from app.api.gate import body_limits as limits
from app.api.native.routes import Img2ImgForm, InpaintForm
from app.api.openai.schemas import EditsForm, GenerationsRequest
from app.cli import commands as command_line
from app.cli import generate
from app.errors import StartError, TurboError
from app.images import encoding
from app.main import create_app
from app.modes.fields import MAX_PROMPT_CHARACTERS
from app.modes.txt2img import Txt2ImgRequest
from app.pipelines.base import MAX_PROMPT_TOKENS
from app.server import connections, process
from app.settings import DEFAULT_MAX_STEPS, MAX_SIDE, MIN_SIDE, MOST_STEPS, PREFIX, SIDE_MULTIPLE, Settings

ROOT = Path(__file__).parents[2]
README, OPERATING, PROMISES = "README.md", "docs/operating.md", "docs/promises.md"


def table(document: str, head: str) -> list[str]:
    """The rows of the document's table that has this head."""
    _, found, rest = (ROOT / document).read_text(encoding="utf-8").partition(f"{head}\n")
    assert found, f"{document} has no table {head}"
    rows = []
    for line in rest.splitlines()[1:]:
        if not line.startswith("|"):
            break
        rows.append(line)
    return rows


def assert_table_is(document: str, head: str, expected: list[str]) -> None:
    assert table(document, head) == expected, f"the table of {document} must be:\n" + "\n".join(expected)


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
    assert any("/sdapi/v1/" in route for route in routes)
    routes = {route for route in routes if "/sdapi/v1/" not in route} | {"/sdapi/v1/..."}
    # The OpenAPI document lists only the routes for programs, and MCP has a protocol of its own.
    routes |= {"GET /docs", "GET /openapi.json", "GET /metrics", "POST /mcp"}
    assert {re.findall(r"`([^`]+)`", row)[0] for row in table(README, "| route | what it does |")} == routes


@pytest.mark.parametrize("row", table(PROMISES, "| promise | checked by |"))
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


# Numbers in sentences.

BOUNDS = ("multipleOf", "minimum", "exclusiveMinimum", "maximum", "maxLength")


def numbers(text: str) -> list[float]:
    """The numbers of a row or a sentence in order, without those in code."""
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", re.sub(r"`[^`]*`", "", text))]


def bounds(field: dict[str, Any]) -> list[float]:
    """The bounds of a field of a JSON schema, in the order of the documents."""
    field = field["anyOf"][0] if "anyOf" in field else field
    return [field[bound] for bound in BOUNDS if bound in field]


@pytest.mark.parametrize(
    ("document", "head"),
    [
        (README, "| field | `/txt2img` | `/img2img` | `/inpaint` | |"),
        ("README.zh-CN.md", "| 字段 | `/txt2img` | `/img2img` | `/inpaint` | |"),
    ],
)
def test_the_table_of_fields_has_the_defaults_and_bounds_of_the_wire_models(document: str, head: str) -> None:
    schemas = [model.model_json_schema()["properties"] for model in (Txt2ImgRequest, Img2ImgForm, InpaintForm)]
    rows = {re.findall(r"`(\w+)`", row)[0]: row for row in table(document, head)}
    assert rows.keys() | {"height", "guidance_scale", "negative_prompt"} == set().union(*schemas)
    # For `width`: the largest aspect ratio that the service can keep, and the default size.
    others = {"prompt": [MAX_PROMPT_TOKENS], "width": [MAX_SIDE // MIN_SIDE, 1, 512, 512]}
    for schema in schemas:
        schema["num_inference_steps"]["maximum"] = DEFAULT_MAX_STEPS
    others["num_inference_steps"] = [MOST_STEPS]
    for name, row in rows.items():
        fields = [schema[name] for schema in schemas if name in schema]
        defaults = [field["default"] for field in fields if isinstance(field.get("default"), int | float)]
        assert numbers(row) == [*defaults, *bounds(fields[0]), *others.get(name, [])], row


def test_the_guide_of_clients_has_the_bounds_of_the_wire_models() -> None:
    described = table("docs/clients.md", "| parameter | what becomes of it |")
    rows = {re.findall(r"`(\w+)`", row)[0]: row for row in described}
    fields = {**GenerationsRequest.model_json_schema()["properties"], **EditsForm.model_json_schema()["properties"]}
    for name in ("prompt", "n", "partial_images", "num_inference_steps"):
        assert numbers(rows[name]) == bounds(fields[name]), rows[name]
    assert numbers(rows["output_compression"]) == [*bounds(fields["output_compression"]), encoding.LOSSY_QUALITY]
    assert numbers(rows["size"]) == [SIDE_MULTIPLE, MIN_SIDE, MAX_SIDE, 512, 512]


def test_security_has_the_bounds_of_the_code() -> None:
    text = " ".join((ROOT / "SECURITY.md").read_text(encoding="utf-8").split())
    for phrase in (
        f"{connections.MAX_HEADER_BYTES // 1024} KiB and {connections.MAX_HEADER_FIELDS} fields of header",
        f"{limits.MAX_JSON_BYTES // 1024} KiB of JSON",
        f"{limits.MAX_JSON_BYTES // 1024} KiB beside its pictures",
        f"({limits._LARGE_BODIES} + `TURBO_MAX_QUEUE`",
        f"after {connections._SEND_STALL_S} s without progress",
        f"at most {MAX_PROMPT_CHARACTERS} characters",
    ):
        assert phrase in text


def test_the_tables_of_exit_codes_are_the_code_s() -> None:
    codes = [row.split("|")[1].strip() for row in table(OPERATING, "| code | when |")]
    named = {0, process.GAVE_UP, command_line._USAGE_ERROR, process.START_FAILED, process.DEVICE_LOST}
    assert codes == [*map(str, sorted(named)), "128 + N"]
    codes = [row.split("|")[1].strip() for row in table("docs/command-line.md", "| exit code | when |")]
    ends = ", ".join(str(128 + number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    assert codes == ["0", *map(str, (generate._FAILED, generate._REFUSED, generate._CANNOT_START)), ends]
