"""The table of OpenAI's parameters in docs/clients.md matches the SDK and the service."""

import re
from pathlib import Path
from typing import get_type_hints

import httpx
import pytest
from openai.types import image_edit_params, image_generate_params

from app.api.openai.schemas import EditsForm, GenerationsRequest

ROOT = Path(__file__).parents[2]
RULES = dict(
    re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs" / "clients.md").read_text(encoding="utf-8"), re.MULTILINE)
)
SDKS = get_type_hints(image_generate_params.ImageGenerateParamsBase) | get_type_hints(
    image_edit_params.ImageEditParamsBase
)


def test_every_parameter_of_the_sdk_and_of_the_service_has_its_rule() -> None:
    fields = GenerationsRequest.model_fields.keys() | EditsForm.model_fields.keys()
    assert RULES.keys() == SDKS.keys() | {"stream"} | fields


@pytest.mark.parametrize("name", sorted(name for name, rule in RULES.items() if rule.startswith("rejected")))
async def test_a_parameter_that_is_said_to_be_refused_is_refused_with_a_reason_of_its_own(
    client: httpx.AsyncClient, name: str
) -> None:
    refused = await client.post("/v1/images/generations", json={"prompt": "a cat", name: "high"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, name)
    assert "not permitted" not in refused.json()["detail"]


@pytest.mark.parametrize("name", sorted(SDKS.keys() - {"image", "prompt"}))
async def test_a_parameter_that_is_null_is_as_if_left_out(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post("/v1/images/generations", json={"prompt": "a cat", name: None})
    assert answer.status_code == 200
