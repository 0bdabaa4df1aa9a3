"""Writes the API reference, docs/api.md, from the service's OpenAPI document.

python -m tools.api_reference
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.main import create_app
from app.settings import Settings

FILE = Path(__file__).parents[1] / "docs" / "api.md"

Json = Mapping[str, Any]

_INTRODUCTION = """# API reference

Written by `make docs` from the service's OpenAPI document. A running service has it at `/openapi.json`, and at `/docs`
a page to read it and try it. The [README](../README.md#asking-for-pictures) says what the fields mean together."""

_REFERENCE = "#/components/schemas/"


def reference(document: Json) -> str:
    """Return an OpenAPI 3.1 document as Markdown."""
    return "\n".join(_Writer(document).lines()).rstrip() + "\n"


def service_document() -> Json:
    """Return the service's document with API keys and otherwise default settings."""
    settings = Settings.model_construct(api_keys_file=Path("keys"))  # reads neither the environment nor the file
    return create_app(settings).openapi()


class _Writer:
    """Writes the routes, and then the schemas that they name, in the order of their first use."""

    def __init__(self, document: Json) -> None:
        self._document = document
        self._schemas: Json = document.get("components", {}).get("schemas", {})
        self._named: list[str] = []

    def lines(self) -> Iterator[str]:
        operations = [
            (f"`{method.upper()} {path}`", operation)
            for path, methods in self._document["paths"].items()
            for method, operation in methods.items()
        ]
        yield from (_INTRODUCTION, "", self._document["info"].get("description", "").strip(), "")
        yield from _table(
            ["route", ""],
            [[f"[{name}](#{_slug(name)})", _first_line(operation)] for name, operation in operations],
        )
        for name, operation in operations:
            yield from (f"## {name}", "", operation.get("description", "").strip(), "")
            yield from self._security(operation)
            yield from self._parameters(operation.get("parameters", []))
            yield from self._bodies(operation.get("requestBody"))
            yield from self._answers(operation["responses"])
        yield from ("## Shapes", "", "What bodies in JSON are made of.", "")
        for name in self._named:  # the list grows during the loop
            schema = self._schemas[name]
            yield from (f"### {name}", "", schema.get("description", "").strip(), "")
            yield from self._fields(schema)

    def _security(self, operation: Json) -> Iterator[str]:
        schemes = self._document.get("components", {}).get("securitySchemes", {})
        ways = [_way_to_send(schemes[name]) for option in operation.get("security", []) for name in option]
        if ways:
            yield from (f"Where API keys are set it takes one, as {' or '.join(ways)}.", "")

    def _parameters(self, parameters: Sequence[Json]) -> Iterator[str]:
        if parameters:
            rows = [
                [f"`{one['name']}`", one["in"], *self._row(one["schema"], required=one.get("required", False), of=one)]
                for one in parameters
            ]
            yield from _table(["parameter", "in", "type", "default", ""], rows)

    def _bodies(self, body: Json | None) -> Iterator[str]:
        contents = (body or {}).get("content", {})
        plain = {media_type for media_type in contents if "properties" not in self._schema_of(contents[media_type])}
        for media_type in contents:
            if media_type not in plain:
                yield from (f"**Takes** `{media_type}`:", "")
                yield from self._fields(self._schema_of(contents[media_type]), contents[media_type].get("encoding", {}))
        if plain:
            yield from (
                f"**Takes** {self._contents({name: contents[name] for name in contents if name in plain})}.",
                "",
            )

    def _schema_of(self, content: Json) -> Json:
        """Return the schema of a body's content, inline or by reference."""
        name = content["schema"].get("$ref", "").removeprefix(_REFERENCE)
        schema: Json = self._schemas[name] if name else content["schema"]
        return schema

    def _answers(self, answers: Json) -> Iterator[str]:
        """Write the answers with their bodies, the errors by their codes, and the headers."""
        codes = {status: _CODE.findall(answer["description"]) for status, answer in answers.items()}
        rows = [
            [
                status,
                self._contents(answer.get("content", {})),
                _cell(answer["description"]).removesuffix(_NOTHING_SAID),
            ]
            for status, answer in answers.items()
            if not codes[status]
        ]
        yield from ("**Answers**", "")
        yield from _table(["status", "body", ""], rows)
        if any(codes.values()):
            shapes = {self._contents(answers[status]["content"]): None for status in answers if codes[status]}
            named = [
                f"{status} {', '.join(f'`{code}`' for code in codes[status])}" for status in answers if codes[status]
            ]
            yield from (f"**Errors**, as {' or '.join(shapes)}: {'; '.join(named)}.", _ERRORS_LINK, "")
        yield from self._headers(answers)

    def _headers(self, answers: Json) -> Iterator[str]:
        headers: dict[str, Json] = {}
        statuses: dict[str, list[str]] = {}
        for status, answer in answers.items():
            for name, header in answer.get("headers", {}).items():
                headers[name] = header
                statuses.setdefault(name, []).append(status)
        if headers:
            rows = [
                [
                    f"`{name}`",
                    "all" if len(statuses[name]) == len(answers) else ", ".join(statuses[name]),
                    self._type(header["schema"]),
                    _cell(header.get("description", "")),
                ]
                for name, header in headers.items()
            ]
            yield from _table(["header", "of", "type", ""], rows)

    def _contents(self, contents: Json) -> str:
        by_shape: dict[str, list[str]] = {}
        for media_type, content in contents.items():
            by_shape.setdefault(self._type(content["schema"]) if "schema" in content else "", []).append(media_type)
        return "; ".join(
            f"{', '.join(f'`{one}`' for one in media_types)}{shape and f': {shape}'}"
            for shape, media_types in by_shape.items()
        )

    def _fields(self, schema: Json, encoding: Json | None = None) -> Iterator[str]:
        """Write a table of an object's fields, or the type of another schema."""
        if "properties" not in schema:
            yield from (self._type(schema), "")
            return
        required = schema.get("required", [])
        rows = []
        for name, field in schema["properties"].items():
            kind, default, text = self._row(field, required=name in required, of=field)
            media_types = (encoding or {}).get(name, {}).get("contentType", "")
            kind += f": {', '.join(f'`{one}`' for one in media_types.split(', '))}" if media_types else ""
            rows.append([f"`{name}`", kind, default, text])
        yield from _table(["field", "type", "default", ""], rows)
        needs = schema.get("dependentRequired", {})
        if needs:
            rules = [f"`{name}` needs {', '.join(f'`{other}`' for other in others)}" for name, others in needs.items()]
            yield from (f"{'; '.join(rules)}.", "")

    def _row(self, schema: Json, *, required: bool, of: Json) -> list[str]:
        """Return the type, the default and the description of a field or parameter."""
        default = "required" if required else ""
        if schema.get("default") is not None:
            default = f"`{json.dumps(schema['default'])}`"
        said = [of, *schema.get("anyOf", [])]
        text = next((one["description"] for one in said if "description" in one), "")
        for example in next((one["examples"] for one in said if "examples" in one), [])[:1]:
            text += f" Such as `{json.dumps(example, ensure_ascii=False)}`."
        return [self._type(schema), default, _cell(text.strip())]

    def _type(self, schema: Json) -> str:
        """Return a schema's type and bounds in words."""
        if "$ref" in schema:
            name = schema["$ref"].removeprefix(_REFERENCE)
            if name not in self._named:
                self._named.append(name)
            return f"[{name}](#{_slug(name)})"
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema:
                return ", or ".join(dict.fromkeys(self._type(option) for option in schema[key]))
        if schema.get("type") == "array":
            return _bounded(f"array of {self._type(schema.get('items', {}))}", schema)
        return _plain_type(schema)


def _plain_type(schema: Json) -> str:
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("format") == "binary" or "contentMediaType" in schema:
        return "file"
    if schema.get("maxLength") == 0:
        return "empty string"
    kind = schema.get("type", "anything")
    return _bounded(" or ".join(kind) if isinstance(kind, list) else kind, schema)


_CODE = re.compile(r"`([a-z_]+)`: ")
"""The error codes in the description of an answer, one for each error with that status."""

_ERRORS_LINK = "The [operating guide](operating.md#errors) says when."

_NOTHING_SAID = "Successful Response"
"""FastAPI's default description of an answer."""

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "contentEncoding": "{}",
    "format": "{}",
    "pattern": "`{}`",
}
"""A schema's constraints in words."""


def _bounded(kind: str, schema: Json) -> str:
    words = [kind]
    if "minimum" in schema and "maximum" in schema:
        words.append(f"{_number(schema['minimum'])} to {_number(schema['maximum'])}")
        schema = {key: value for key, value in schema.items() if key not in ("minimum", "maximum")}
    for key, text in _BOUNDS.items():
        if key in schema:
            bound = schema[key]
            words.append(text.format(bound if isinstance(bound, str) else _number(bound)).replace("|", "\\|"))
    return ", ".join(words)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _way_to_send(scheme: Json) -> str:
    if scheme["type"] == "apiKey":
        return f"`{scheme['name']}: KEY`"
    return f"`Authorization: {scheme['scheme'].capitalize()} KEY`"


def _first_line(operation: Json) -> str:
    text: str = operation.get("description") or operation.get("summary", "")
    return _cell(text.strip().splitlines()[0] if text else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _slug(heading: str) -> str:
    """Return a heading's anchor on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from (f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}")
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


if __name__ == "__main__":
    FILE.write_text(reference(service_document()), encoding="utf-8")
