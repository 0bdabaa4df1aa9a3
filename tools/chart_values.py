"""Writes what deploy/helm says about its values: the settings in values.schema.json, and the table in README.md."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ByteSize

from app.settings import PREFIX, Settings

CHART = Path(__file__).parents[1] / "deploy/helm"
SCHEMA, README = CHART / "values.schema.json", CHART / "README.md"

OWNED = {
    "host": "probes and clients connect from other hosts",
    "port": "the pods listen on 8000, and service.port is the clients'",
    "device": "target sets it",
    "weights_dir": "the image and the volume have one folder",
    "api_keys_file": "apiKeys sets it",
}
"""Settings that are not in `settings`, each with the reason."""

_WITH_UNIT = r"^[0-9]+(\.[0-9]+)? ?[KkMmGgTt][Ii]?[Bb]$"
"""Bytes as text, which have a unit. Bounds apply only to numbers."""

HEAD = "| value | default | meaning |"

Json = dict[str, Any]


def schema() -> str:
    """Return the text of values.schema.json, with the settings of the service."""
    text: Json = json.loads(SCHEMA.read_text(encoding="utf-8"))
    text["properties"]["settings"] = {
        "description": "The service's [settings](../../docs/operating.md#settings), such as `TURBO_MAX_BATCH: 4`. "
        "A change replaces the pods.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            f"{PREFIX}{name.upper()}": _setting(name) for name in Settings.model_fields if name not in OWNED
        },
    }
    return json.dumps(text, indent=2, ensure_ascii=False) + "\n"


def _setting(name: str) -> Json:
    """Return the schema of a setting. null, which the chart drops, lets a file of values unset what another sets."""
    field: Json = Settings.model_json_schema()["properties"][name]
    field |= next((one for one in field.pop("anyOf", ()) if one["type"] != "null"), {})
    described = {"description": " ".join(field["description"].split())}
    bounds = {key: value for key, value in field.items() if key not in ("title", "default", "description", "format")}
    if Settings.model_fields[name].annotation is ByteSize:
        bounds["minimum"] = bounds.pop("ge")  # Pydantic knows no keyword for the bound of a ByteSize
        return described | bounds | {"type": ["integer", "string", "null"], "pattern": _WITH_UNIT}
    if field["type"] == "boolean":
        return described | {"enum": [True, False, "true", "false", None]}
    if "enum" in field:
        return described | {"enum": [*field["enum"], None]}
    return described | bounds | {"type": [field["type"], "null"]}


def table() -> list[str]:
    """Return the rows of the README's table of values."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    return list(_rows(json.loads(SCHEMA.read_text(encoding="utf-8")), values, ""))


def _rows(group: Json, values: Json, prefix: str) -> Iterator[str]:
    for name, described in group["properties"].items():
        if name not in values:  # for charts that have this one as a subchart
            continue
        if "properties" in described and name != "settings":
            yield from _rows(described, values[name], f"{prefix}{name}.")
            continue
        yield f"| `{prefix}{name}` | {_shown(values[name])} | {described['description'].replace('|', chr(92) + '|')} |"


def _shown(default: Any) -> str:
    """Return a default as Markdown: empty values are blank, and objects too long for a table."""
    if default in (None, "", [], {}):
        return ""
    if isinstance(default, dict):
        return "[values.yaml](values.yaml)"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def readme() -> str:
    """Return the text of the chart's README, with the table."""
    before, found, after = README.read_text(encoding="utf-8").partition(f"{HEAD}\n| --- | --- | --- |\n")
    assert found, f"{README} has no table {HEAD}"  # noqa: S101 - a fault of the README
    rest = after.splitlines(keepends=True)
    while rest and rest[0].startswith("|"):
        del rest[0]
    return "".join([before, found, *(f"{row}\n" for row in table()), *rest])


if __name__ == "__main__":
    SCHEMA.write_text(schema(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")
