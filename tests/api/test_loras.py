"""How clients are told of the LoRAs that are fused into the model."""

import io
import json
from base64 import b64decode
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from PIL import Image

from app.main import create_app
from app.pipelines.base import Lora
from app.pipelines.fake import load_fake
from app.settings import Settings
from tests.conftest import running

LORAS = [Lora("style", 0.8), Lora("line art", -1.0)]


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(model="fake"), load_pipelines=lambda: replace(load_fake(), loras=LORAS))
    async with running(app) as client:
        yield client


async def test_health_models_and_sdapi_list_the_loras_with_their_weights(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz/ready")).json()["loras"] == ["style:0.8", "line art:-1"]
    (served, *_) = (await client.get("/v1/models")).json()["data"]
    assert served["loras"] == ["style:0.8", "line art:-1"]
    listed = (await client.get("/sdapi/v1/loras")).json()
    assert [(lora["name"], lora["alias"], lora["weight"]) for lora in listed] == [
        ("style", "style", 0.8),
        ("line art", "line art", -1.0),
    ]


async def test_without_loras_the_lists_are_empty() -> None:
    async with running(create_app(Settings(model="fake"))) as client:
        assert (await client.get("/healthz/ready")).json()["loras"] == []
        assert "loras" not in (await client.get("/v1/models")).json()["data"][0]
        assert (await client.get("/sdapi/v1/loras")).json() == []


async def test_a_picture_s_parameters_name_the_loras(client: httpx.AsyncClient) -> None:
    data = (await client.post("/txt2img", json={"prompt": "a cat", "width": 64, "height": 64})).content
    assert Image.open(io.BytesIO(data)).info["parameters"].endswith("Model: fake, Lora: style:0.8 line art:-1")


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("a cat <lora:style:0.5>", "Fused into the model already, with this weight: style:0.8."),
        ("a cat <lora:other:1>", "No further networks can be loaded."),
        (
            "a <lora:style:1> cat <lora:other:1>",
            "Fused into the model already, with this weight: style:0.8. No further networks can be loaded.",
        ),
    ],
)
async def test_a_tag_in_a_prompt_is_taken_out_and_the_answer_says_whether_its_lora_is_fused(
    client: httpx.AsyncClient, prompt: str, reason: str
) -> None:
    response = await client.post("/sdapi/v1/txt2img", json={"prompt": prompt, "width": 64, "height": 64})
    answer: dict[str, Any] = response.raise_for_status().json()
    assert any(reason in warning for warning in json.loads(answer["info"])["warnings"])
    drawn = Image.open(io.BytesIO(b64decode(answer["images"][0]))).info["parameters"]
    assert "lora:" not in drawn.partition("\n")[0]
