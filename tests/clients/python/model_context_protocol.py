"""The Model Context Protocol's own SDK for Python, over streamable HTTP."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import mcp
from mcp.client.streamable_http import streamable_http_client
from report import Report, Service, main


@asynccontextmanager
async def connected(service: Service) -> AsyncIterator[mcp.Client]:
    headers = {"Authorization": f"Bearer {service.key}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        mcp.Client(streamable_http_client(f"{service.url}/mcp", http_client=http)) as client,
    ):
        yield client


async def call(service: Service, name: str, arguments: dict[str, Any]) -> Report:
    async with connected(service) as client:
        result = await client.call_tool(name, arguments)
    images = [part for part in result.content if part.type == "image"]
    return {
        "pictures": [part.data for part in images],
        "types": [part.mime_type for part in images],
        "texts": [part.text for part in result.content if part.type == "text"],
        "is_error": bool(result.is_error),
    }


async def tools(service: Service) -> Report:
    async with connected(service) as client:
        return {"tools": [tool.name for tool in (await client.list_tools()).tools]}


def list_tools(service: Service, picture: Path) -> Report:
    return asyncio.run(tools(service))


def text_to_image(service: Service, picture: Path) -> Report:
    arguments = {"prompt": "a fox", "width": 256, "height": 384, "num_inference_steps": 3, "seed": 7}
    return asyncio.run(call(service, "text_to_image", arguments))


def text_to_png(service: Service, picture: Path) -> Report:
    return asyncio.run(call(service, "text_to_image", {"prompt": "a fox", "seed": 7, "format": "png"}))


def image_to_image(service: Service, picture: Path) -> Report:
    image = base64.b64encode(picture.read_bytes()).decode()
    arguments = {"prompt": "a fox", "image": image, "num_inference_steps": 3, "strength": 0.75, "seed": 7}
    return asyncio.run(call(service, "image_to_image", arguments))


def wrong_size(service: Service, picture: Path) -> Report:
    return asyncio.run(call(service, "text_to_image", {"prompt": "a fox", "width": 100000, "height": 64}))


def told(group: BaseExceptionGroup) -> Report:
    """Report the server's error, which the SDK puts into groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, mcp.MCPError)
    return {"error": error.message}


main(list_tools, text_to_image, text_to_png, image_to_image, wrong_size, refusal=ExceptionGroup, told=told)
