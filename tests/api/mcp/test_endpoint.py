"""The tools for agents at /mcp, through the official SDK's client, over real sockets, in both eras of the protocol."""

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import httpx
import httpx2
import numpy as np
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from PIL import Image
from structlog.testing import capture_logs

from app.errors import InferenceError
from app.main import create_app
from app.settings import Settings
from tests.conftest import opened, png, running, serving, until
from tests.support.gated_pipeline import GatedPipeline

CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "text_to_image", "arguments": {"prompt": "a cat", "seed": 7}},
}
PICTURE = base64.b64encode(png((64, 64))).decode()
HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(create_app(Settings(model="fake"))) as url:
        yield url


@pytest.fixture(params=["auto", "legacy"])
def mode(request: pytest.FixtureRequest) -> Literal["auto", "legacy"]:
    """The newest protocol, and the one with a handshake."""
    chosen: Literal["auto", "legacy"] = request.param
    return chosen


@asynccontextmanager
async def connected(url: str, key: str | None = None, **options: Any) -> AsyncIterator[Client]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), **options) as client,
    ):
        yield client


async def post(url: str, **request: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60) as client:
        return await client.post(url, **request)


def pictures_of(result: Any) -> list[bytes]:
    return [base64.b64decode(part.data) for part in result.content if part.type == "image"]


def text_of(result: Any) -> dict[str, Any]:
    (part,) = [part for part in result.content if part.type == "text"]
    value: dict[str, Any] = json.loads(part.text)
    return value


async def test_a_prompt_becomes_the_picture_of_the_other_routes(url: str, mode: Any) -> None:
    arguments = {"prompt": "a cat", "seed": 7, "width": 256, "height": 128, "num_inference_steps": 2}
    async with connected(url, mode=mode) as client:
        result = await client.call_tool("text_to_image", {**arguments, "format": "png"})
    assert not result.is_error
    assert pictures_of(result) == [(await post(f"{url}/txt2img", json=arguments)).content]
    facts = text_of(result)
    assert (facts["seeds"], facts["model"], facts["width"], facts["effective_steps"]) == ([7], "fake", 256, 2)


async def test_a_picture_becomes_a_picture(url: str, mode: Any) -> None:
    encoded = base64.b64encode(png((320, 160))).decode()
    form = {"prompt": "a cat", "seed": "7", "strength": "0.75", "num_inference_steps": "4"}
    expected = (await post(f"{url}/img2img", data=form, files={"image": png((320, 160))})).content
    arguments = {"prompt": "a cat", "seed": 7, "strength": 0.75, "num_inference_steps": 4, "format": "png"}
    async with connected(url, mode=mode) as client:
        for image in (encoded, f"data:image/png;base64,{encoded}", f" {encoded}\n"):
            result = await client.call_tool("image_to_image", {**arguments, "image": image})
            assert pictures_of(result) == [expected]


async def test_a_part_of_a_picture_is_drawn_anew(url: str, mode: Any) -> None:
    image, mask = png((320, 160)), png((320, 160), "white")
    form = {"prompt": "a cat", "seed": "7", "padding": "8"}
    files = {"image": image, "mask": mask}
    expected = (await post(f"{url}/inpaint", data=form, files=files)).content
    encoded = {name: base64.b64encode(file).decode() for name, file in files.items()}
    arguments = {"prompt": "a cat", "seed": 7, "padding": 8, "format": "png", **encoded}
    async with connected(url, mode=mode) as client:
        assert pictures_of(await client.call_tool("inpaint", arguments)) == [expected]
        extended = await client.call_tool("inpaint", {"prompt": "a", "image": encoded["image"], "extend": "0,64"})
        assert extended.is_error
        extended = await client.call_tool("inpaint", {"prompt": "a", "image": encoded["image"], "extend": "0,64,0,64"})
        assert opened(pictures_of(extended)[0]).size == (448, 160)


async def test_pictures_are_webp_unless_another_format_is_asked_for(url: str) -> None:
    async with connected(url) as client:
        for arguments, found in (({}, "webp"), ({"format": "png"}, "png"), ({"format": "jpeg"}, "jpeg")):
            result = await client.call_tool("text_to_image", {"prompt": "a cat", "num_images": 2, **arguments})
            images = [part for part in result.content if part.type == "image"]
            assert [part.mime_type for part in images] == [f"image/{found}"] * 2
            assert [opened(file).format for file in pictures_of(result)] == [found.upper()] * 2


async def test_the_tools_say_what_they_take(url: str, mode: Any) -> None:
    async with connected(url, mode=mode) as client:
        text, picture, part = (await client.list_tools()).tools
    assert (text.name, picture.name, part.name) == ("text_to_image", "image_to_image", "inpaint")
    properties = text.input_schema["properties"]
    assert properties["num_inference_steps"] == {
        "default": 1,
        "description": "Denoising steps. One is enough, four are better.",
        "maximum": 4,
        "minimum": 1,
        "type": "integer",
    }
    assert "negative_prompt" not in properties
    assert text.input_schema["required"] == ["prompt"]
    assert set(picture.input_schema["required"]) == {"prompt", "image"}
    assert set(part.input_schema["required"]) == {"prompt", "image"}
    for name in ("image", "mask"):
        assert "base64" in part.input_schema["properties"][name]["description"]
    assert "anyOf" not in json.dumps([text.input_schema, picture.input_schema, part.input_schema])
    assert text.annotations is not None
    assert text.annotations.read_only_hint


@pytest.mark.parametrize(
    ("tool", "arguments", "reason"),
    [
        ("text_to_image", {"prompt": "a", "width": 100_000}, "width: Input should be less than or equal to 2048"),
        (
            "text_to_image",
            {"prompt": "a", "seed": "7", "steps": 2},
            "seed: Input should be a valid integer; steps: There is no such parameter here; say num_inference_steps.",
        ),
        ("text_to_image", {}, "prompt: Field required"),
        ("text_to_image", {"prompt": "a", "width": 2048, "height": 2048}, "width: width x height is 4194304 pixels"),
        ("text_to_image", {"prompt": "a", "negative_prompt": "b"}, "needs guidance"),
        ("image_to_image", {"prompt": "a", "image": "no"}, "image: The picture is not base64."),
        ("image_to_image", {"prompt": "a", "image": "/etc/hostname"}, "image: The "),
        ("image_to_image", {"prompt": "a", "image": "AAAA"}, "image: The file is not a PNG, JPEG or WebP picture."),
        ("image_to_image", {"prompt": "a", "image": "AAAA", "strength": 0.1}, "strength: "),
        ("inpaint", {"prompt": "a", "image": PICTURE}, "mask: Send a mask whose white parts are drawn anew"),
        ("inpaint", {"prompt": "a", "image": PICTURE, "mask": "no"}, "mask: The picture is not base64."),
        ("inpaint", {"prompt": "a", "image": PICTURE, "feather": "2"}, "feather: Input should be a valid integer"),
    ],
)
async def test_a_call_that_is_refused_tells_the_agent_why(
    url: str, mode: Any, tool: str, arguments: dict[str, Any], reason: str
) -> None:
    async with connected(url, mode=mode) as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert reason in text_of(result)["detail"]
    assert "pydantic" not in text_of(result)["detail"]


async def test_a_tool_that_does_not_exist_is_an_error_of_the_protocol(url: str, mode: Any) -> None:
    async with connected(url, mode=mode) as client:
        with pytest.raises(MCPError, match="There is no tool draw"):
            await client.call_tool("draw", {})


async def test_many_calls_share_the_device_and_each_gets_its_own_picture(url: str) -> None:
    async with connected(url) as client:
        calls = [client.call_tool("text_to_image", {"prompt": "a cat", "seed": seed}) for seed in range(8)]
        results = await asyncio.gather(*calls)
    assert [text_of(result)["seeds"] for result in results] == [[seed] for seed in range(8)]
    assert len({pictures_of(result)[0] for result in results}) == 8


async def test_a_failure_of_the_model_is_told_without_its_cause(pipeline: GatedPipeline) -> None:
    app = create_app(Settings(model="fake"), load_pipelines=pipeline.load)
    with serving(app) as url:
        for error, code in (
            (InferenceError("The reason."), "inference_failed"),
            (KeyError("secret"), "inference_failed"),
        ):
            pipeline.error = error
            async with connected(url) as client:
                result = await client.call_tool("text_to_image", {"prompt": "a"})
            assert result.is_error
            assert text_of(result)["code"] == code
            assert "secret" not in str(result)
        metrics = (await asyncio.to_thread(httpx.get, f"{url}/metrics")).text
        assert 'turbo_errors_total{code="inference_failed"} 2.0' in metrics


# The checks of the other routes.


async def test_keys_rates_and_origins_count_as_on_the_other_routes(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("team: 0123456789abcdef")
    with serving(create_app(Settings(model="fake", api_keys_file=keys, rate_limit="2/hour"))) as url:
        async with connected(url, "0123456789abcdef") as client:
            results = [await client.call_tool("text_to_image", {"prompt": "a"}) for _ in range(3)]
        assert [result.is_error for result in results] == [False, False, True]
        assert text_of(results[2])["code"] == "rate_limited"
        assert text_of(results[2])["retry_after_s"] > 0
        key = {"Authorization": "Bearer 0123456789abcdef"}
        for headers, status, code in (
            ({}, 401, "invalid_api_key"),
            ({"Authorization": "Bearer wrong"}, 401, "invalid_api_key"),
            ({**key, "Origin": "https://evil.example"}, 403, "origin_not_allowed"),
        ):
            refused = await post(f"{url}/mcp", json=CALL, headers={**HEADERS, **headers})
            assert (refused.status_code, refused.json()["error"]["data"]["code"]) == (status, code)
            assert refused.json()["error"]["message"] == refused.json()["error"]["data"]["detail"]


async def test_the_client_shows_why_its_key_is_refused(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("team: 0123456789abcdef")
    with (
        serving(create_app(Settings(model="fake", api_keys_file=keys))) as url,
        pytest.RaisesGroup(MCPError, flatten_subgroups=True, allow_unwrapped=True) as refused,
    ):
        async with connected(url, "wrong-key-wrong-key"):
            pass
    assert "does not know this API key" in repr(refused.value)


async def test_a_call_takes_its_place_in_the_queue(pipeline: GatedPipeline) -> None:
    app = create_app(Settings(model="fake", max_queue=0), load_pipelines=pipeline.load)
    with serving(app) as url:
        pipeline.close()
        async with connected(url) as client:
            first = asyncio.create_task(client.call_tool("text_to_image", {"prompt": "first"}))
            await until(lambda: pipeline.calls)
            full = await client.call_tool("text_to_image", {"prompt": "second"})
            assert text_of(full)["code"] == "queue_full"
            pipeline.gate.set()
            assert not (await first).is_error


async def test_a_call_whose_client_leaves_while_it_waits_never_reaches_the_device(pipeline: GatedPipeline) -> None:
    app = create_app(Settings(model="fake"), load_pipelines=pipeline.load)
    engine = app.state.context.engine
    with serving(app) as url:
        pipeline.close()
        async with httpx.AsyncClient(timeout=60) as other:
            first = asyncio.create_task(other.post(f"{url}/txt2img", json={"prompt": "first"}))
            await until(lambda: pipeline.calls)
            async with httpx.AsyncClient(timeout=60) as leaver:
                gone = asyncio.create_task(leaver.post(f"{url}/mcp", json=CALL, headers=HEADERS))
                await until(lambda: engine.admission.waiting == 1)
                gone.cancel()
            await until(lambda: engine.admission.waiting == 0)
            pipeline.gate.set()
            assert (await first).status_code == 200
        assert pipeline.prompts == ["first"]


# The transport.


def test_without_a_session_one_post_is_a_whole_conversation(url: str) -> None:
    answer = httpx.post(f"{url}/mcp", json=CALL, headers=HEADERS)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"]
    content = answer.json()["result"]["content"]
    assert opened(base64.b64decode(content[0]["data"])).size == (512, 512)


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
def test_other_methods_are_405_and_options_says_so(url: str, method: str) -> None:
    refused = httpx.request(method, f"{url}/mcp", headers={"Accept": "text/event-stream"})
    assert (refused.status_code, refused.headers["allow"]) == (405, "OPTIONS, POST")
    assert httpx.options(f"{url}/mcp").status_code == 204


def call_with(arguments: str) -> bytes:
    message = json.dumps({**CALL, "params": {"name": "image_to_image", "arguments": {}}})
    return message.replace('"arguments": {}', f'"arguments": {arguments}').encode()


def test_a_picture_of_megabytes_is_taken(url: str) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (1400, 1400, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG", compress_level=1)
    encoded = base64.b64encode(file.getvalue()).decode()
    assert len(encoded) > 5 << 20
    body = call_with(f'{{"prompt": "a cat", "seed": 1, "format": "png", "image": "{encoded}"}}')
    headers = {**HEADERS, "Content-Type": "application/json"}
    answer = httpx.post(f"{url}/mcp", content=body, headers=headers, timeout=60)
    form, files = {"prompt": "a cat", "seed": "1"}, {"image": file.getvalue()}
    expected = httpx.post(f"{url}/img2img", data=form, files=files, timeout=60)
    assert base64.b64decode(answer.json()["result"]["content"][0]["data"]) == expected.content


@pytest.mark.parametrize(
    "arguments",
    ["{" + ",".join(f'"{number}":1' for number in range(20_000)) + "}", '{"x":[' + "[]," * 40_000 + "[]]}"],
)
def test_of_what_is_no_picture_64_kib_are_enough(url: str, arguments: str) -> None:
    refused = httpx.post(
        f"{url}/mcp", content=call_with(arguments), headers={**HEADERS, "Content-Type": "application/json"}
    )
    assert (refused.status_code, refused.json()["error"]["data"]["code"]) == (413, "body_too_large")


def test_many_wrong_arguments_are_told_in_few_words(url: str) -> None:
    arguments = "{" + ",".join(f'"{number}":1' for number in range(3000)) + "}"
    answer = httpx.post(
        f"{url}/mcp", content=call_with(arguments), headers={**HEADERS, "Content-Type": "application/json"}
    )
    assert answer.json()["result"]["isError"]
    assert len(answer.content) < 4000


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"[]", 422),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', 422),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}', 422),
        (b'{"jsonrpc": "2.0", "id": 1.5, "method": "ping", "params": {"prompt": "secret"}}', 422),
        (b'{"jsonrpc": "2.0"}', 400),
        (b"\xff", 400),
    ],
)
def test_what_is_no_message_is_refused_without_repeating_it(url: str, body: bytes, status: int) -> None:
    refused = httpx.post(f"{url}/mcp", content=body, headers={**HEADERS, "Content-Type": "application/json"})
    assert refused.status_code == status
    assert refused.json()["error"]["message"]
    assert "secret" not in refused.text


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_media_type_is_refused(url: str, media_type: str) -> None:
    headers = {**HEADERS, "Content-Type": media_type}
    refused = httpx.post(f"{url}/mcp", content=json.dumps(CALL), headers=headers)
    assert (refused.status_code, refused.json()["error"]["message"]) == (415, "Send application/json.")


# What operators see.


async def test_calls_and_refusals_are_in_metrics_and_log_without_prompts(caplog: pytest.LogCaptureFixture) -> None:
    with capture_logs() as logs, serving(create_app(Settings(model="fake"))) as url:
        async with connected(url, mode="legacy") as client:
            await client.call_tool("text_to_image", {"prompt": "my secret", "seed": 7})
            await client.call_tool("text_to_image", {"prompt": "my secret", "steps": 2})
        metrics = (await asyncio.to_thread(httpx.get, f"{url}/metrics")).text
    assert 'turbo_requests_total{method="POST",route="/mcp",status="200"}' in metrics
    assert 'route="unmatched"' not in metrics
    assert 'turbo_errors_total{code="invalid_request"} 1.0' in metrics
    assert [line["seed"] for line in logs if line.get("path") == "/mcp" and "seed" in line] == [7]
    assert "my secret" not in str(logs) + caplog.text


async def test_a_client_that_leaves_during_its_call_is_logged_as_one(pipeline: GatedPipeline) -> None:
    app = create_app(Settings(model="fake"), load_pipelines=pipeline.load)
    with capture_logs() as logs, serving(app) as url:
        pipeline.close()
        async with httpx.AsyncClient(timeout=60) as leaver:
            gone = asyncio.create_task(leaver.post(f"{url}/mcp", json=CALL, headers=HEADERS))
            await until(lambda: pipeline.calls)
            gone.cancel()
        await until(lambda: [line for line in logs if line.get("path") == "/mcp"])
        pipeline.gate.set()
    (line,) = (line for line in logs if line.get("path") == "/mcp")
    assert line["status"] == 499


def test_a_package_with_the_sdk_s_name_does_not_stop_the_service(tmp_path: Path) -> None:
    (tmp_path / "mcp").mkdir()
    (tmp_path / "mcp" / "__init__.py").touch()
    code = "from app.main import create_app; from app.settings import Settings; create_app(Settings(model='fake'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "/mcp is not served: No module named 'mcp.server'" in done.stderr


async def test_mcp_can_be_switched_off() -> None:
    async with running(create_app(Settings(model="fake", mcp=False))) as client:
        assert (await client.post("/mcp", json=CALL, headers=HEADERS)).status_code == 404


def test_the_sdk_is_of_the_line_whose_low_level_server_this_uses() -> None:
    assert version("mcp").startswith("2.3.")
