"""The table of OpenAI's parameters in docs/clients.md matches the SDK and the service."""

from typing import get_type_hints

import httpx
import pytest
from openai.types import image_edit_params, image_generate_params

from app.api.openai.schemas import EditsForm, GenerationsRequest
from tests.documents.markdown import document

(_SECTION,) = [section for section in document("docs/clients.md").sections if section.title == "OpenAI's SDKs"]
RULES = {name.code[0]: rule.text for name, rule in _SECTION.tables[0][1:]}
SDKS = get_type_hints(image_generate_params.ImageGenerateParamsBase) | get_type_hints(
    image_edit_params.ImageEditParamsBase
)


def rows(beginning: str) -> list[str]:
    """Return the parameters whose rule begins with this word."""
    return sorted(name for name, rule in RULES.items() if rule.startswith(beginning))


def test_every_parameter_of_the_sdk_and_of_the_service_has_its_rule() -> None:
    schemas = [model.model_json_schema() for model in (GenerationsRequest, EditsForm)]
    fields = schemas[0]["properties"].keys() | schemas[1]["properties"].keys()
    assert RULES.keys() == SDKS.keys() | {"stream"} | fields


@pytest.mark.parametrize("name", rows("ignored"))
async def test_a_parameter_that_is_said_to_be_ignored_is_ignored_and_named_in_the_answer(
    client: httpx.AsyncClient, name: str
) -> None:
    answer = await client.post("/v1/images/generations", json={"prompt": "a cat", name: "high"})
    assert (answer.status_code, answer.headers["X-Ignored-Parameters"]) == (200, name)
    (warning,) = answer.json()["warnings"]
    assert warning.startswith(f"{name} is ignored: ")
    assert "no such parameter" not in warning


@pytest.mark.parametrize("name", rows("refused"))
async def test_a_parameter_that_is_said_to_be_refused_is_refused_with_a_reason_of_its_own(
    client: httpx.AsyncClient, name: str
) -> None:
    refused = await client.post("/v1/images/generations", json={"prompt": "a cat", name: "high"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, name)
    assert "no such parameter" not in refused.json()["detail"]


@pytest.mark.parametrize(
    ("name", "value"), [("background", "transparent"), ("output_format", "gif"), ("output_format", "svg")]
)
async def test_a_value_that_is_said_to_be_refused_is_refused(client: httpx.AsyncClient, name: str, value: str) -> None:
    assert f"`{value}`" in RULES[name]
    refused = await client.post("/v1/images/generations", json={"prompt": "a cat", name: value})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, name)


@pytest.mark.parametrize("name", sorted(SDKS.keys() - {"image", "prompt"}))
async def test_a_parameter_that_is_null_is_as_if_left_out(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post("/v1/images/generations", json={"prompt": "a cat", name: None})
    assert answer.status_code == 200
