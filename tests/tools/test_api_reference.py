"""docs/api.md matches the OpenAPI document."""

from tools.api_reference import FILE, reference, service_document


def test_the_reference_is_that_of_the_service() -> None:
    assert FILE.read_text(encoding="utf-8") == reference(service_document()), "docs/api.md is outdated: run `make docs`"


def test_a_route_is_written_with_its_parameters_every_body_it_takes_and_the_shapes_that_these_name() -> None:
    document = {
        "info": {},
        "paths": {
            "/things/{id}": {
                "put": {
                    "description": "Change a thing.",
                    "parameters": [
                        {"name": "id", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}}
                    ],
                    "requestBody": {
                        "content": {
                            "application/json": {"schema": {"$ref": "#/components/schemas/Thing"}},
                            "multipart/form-data": {
                                "schema": {
                                    "required": ["file"],
                                    "properties": {
                                        "file": {"type": "string", "contentMediaType": "application/octet-stream"}
                                    },
                                }
                            },
                        }
                    },
                    "responses": {"204": {"description": "Done."}, "409": {"description": "Somebody else was first."}},
                }
            }
        },
        "components": {
            "schemas": {
                "Thing": {
                    "properties": {
                        "parts": {"type": "array", "maxItems": 3, "items": {"$ref": "#/components/schemas/Part"}},
                        "kind": {"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}], "default": "a"},
                    }
                },
                "Part": {"description": "A part.", "properties": {"weight": {"type": "number", "exclusiveMinimum": 0}}},
            }
        },
    }
    lines = reference(document).splitlines()
    for line in (
        "| `id` | path | integer, at least 1 | required |  |",
        "**Takes** `application/json`:",
        "| `parts` | array of [Part](#part), at most 3 |  |  |",
        '| `kind` | `"a"`, `"b"`, or null | `"a"` |  |',
        "**Takes** `multipart/form-data`:",
        "| `file` | file | required |  |",
        "| 409 |  | Somebody else was first. |",
        "### Part",
        "| `weight` | number, above 0 |  |  |",
    ):
        assert line in lines
