"""`python -m app mcp`: the tools over stdin and stdout, through the official SDK's client."""

import base64
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from tests.conftest import opened, png

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def started(model: str = "fake", **options: Any) -> AsyncIterator[Client]:
    environment = {"TURBO_MODEL": model, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = StdioServerParameters(command=sys.executable, args=["-m", "app", "mcp"], env=environment)
    async with Client(command, **options) as client:
        yield client


def pictures_of(result: Any) -> list[bytes]:
    return [base64.b64decode(part.data) for part in result.content if part.type == "image"]


def detail_of(result: Any) -> str:
    (part,) = result.content
    return str(json.loads(part.text)["detail"])


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_all_tools_draw_and_a_picture_may_be_a_local_file(mode: Any, tmp_path: Path) -> None:
    file = tmp_path / "a fox.png"
    file.write_bytes(png((320, 160)))
    encoded = base64.b64encode(file.read_bytes()).decode()
    async with started(mode=mode, env={"HOME": str(tmp_path)}) as client:
        drawn = await client.call_tool("text_to_image", {"prompt": "a cat", "seed": 7})
        assert opened(pictures_of(drawn)[0]).size == (512, 512)
        results = [
            await client.call_tool("image_to_image", {"prompt": "a cat", "seed": 7, "image": image})
            for image in (encoded, str(file), file.as_uri(), f"~/{file.name}", "\n".join(textwrap.wrap(encoded, 76)))
        ]
        assert len({pictures_of(result)[0] for result in results}) == 1
        assert opened(pictures_of(results[0])[0]).size == (728, 360)
        mask = tmp_path / "mask.png"
        mask.write_bytes(png((320, 160), "white"))
        changed = await client.call_tool("inpaint", {"prompt": "a cat", "image": str(file), "mask": str(mask)})
        assert opened(pictures_of(changed)[0]).size == (320, 160)
        missing = await client.call_tool("inpaint", {"prompt": "a cat", "image": str(file), "mask": "/no.png"})
        assert detail_of(missing).startswith("mask: There is no such file on this machine")


async def test_what_is_wrong_with_a_call_is_told(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(bytes(2000))
    async with started(env={"TURBO_MAX_BODY_BYTES": "1024"}) as client:
        for image, reason in (
            (
                str(tmp_path / "missing.png"),
                "image: There is no such file on this machine, and the text is not base64.",
            ),
            (str(tmp_path), "image: There is no such file on this machine"),
            ("/dev/zero", "image: There is no such file on this machine"),
            ("\0", "image: "),
            (str(large), "image: The file has more than 1024 bytes."),
            ("a" * 5000, "image: The file is not a PNG, JPEG or WebP picture."),
            ("R0lGODdhAQABAIAAAP", "image: "),
            ("iVBORw0KGgo*", "not base64"),
        ):
            result = await client.call_tool("image_to_image", {"prompt": "a cat", "image": image})
            assert result.is_error
            assert reason in detail_of(result)
        refused = await client.call_tool("text_to_image", {"prompt": "a cat", "num_inference_steps": 20})
        assert "less than or equal to 4" in detail_of(refused)


async def test_a_model_that_cannot_be_loaded_is_told_by_every_call(tmp_path: Path) -> None:
    async with started(model=str(tmp_path / "nothing")) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        assert tools == ["text_to_image", "image_to_image", "inpaint"]
        for _ in range(2):
            result = await client.call_tool("text_to_image", {"prompt": "a cat"})
            assert result.is_error
            assert "nothing" in detail_of(result)


async def test_a_cancelled_call_leaves_the_queue() -> None:
    async with started(model="fake:0.5") as client:
        with anyio.move_on_after(0.1):
            await client.call_tool("text_to_image", {"prompt": "a cat", "num_images": 4})
        result = await client.call_tool("text_to_image", {"prompt": "a dog"})
        assert not result.is_error


def test_it_ends_when_its_client_closes_stdin_and_stdout_has_the_protocol_alone() -> None:
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}},
    }
    done = subprocess.run(
        [sys.executable, "-m", "app", "mcp"],
        input=json.dumps(hello) + "\n",
        env={**os.environ, "TURBO_MODEL": "fake"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["result"]["serverInfo"]["name"] == "sdxl-turbo-server"


def test_without_the_extra_it_says_what_to_install() -> None:
    block = "import sys; sys.modules['mcp'] = sys.modules['mcp_types'] = None"
    code = f"{block}; from app.cli.commands import main; main(['mcp'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert "Install 'sdxl-turbo-server[mcp]'" in done.stderr
