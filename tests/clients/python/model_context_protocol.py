"""The Model Context Protocol's own SDK for Python, over streamable HTTP."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import mcp
from report import Report, main


async def call(url: str, name: str, arguments: dict[str, Any]) -> Report:
    async with mcp.Client(f"{url}/mcp") as client:
        result = await client.call_tool(name, arguments)
    images = [part for part in result.content if part.type == "image"]
    return {
        "pictures": [part.data for part in images],
        "types": [part.mime_type for part in images],
        "texts": [part.text for part in result.content if part.type == "text"],
        "is_error": bool(result.is_error),
    }


async def tools(url: str) -> Report:
    async with mcp.Client(f"{url}/mcp") as client:
        return {"tools": [tool.name for tool in (await client.list_tools()).tools]}


def list_tools(url: str, picture: Path) -> Report:
    return asyncio.run(tools(url))


def text_to_image(url: str, picture: Path) -> Report:
    return asyncio.run(call(url, "text_to_image", {"prompt": "a fox", "width": 256, "height": 384}))


def image_to_image(url: str, picture: Path) -> Report:
    image = base64.b64encode(picture.read_bytes()).decode()
    return asyncio.run(call(url, "image_to_image", {"prompt": "a fox", "image": image}))


def wrong_size(url: str, picture: Path) -> Report:
    return asyncio.run(call(url, "text_to_image", {"prompt": "a fox", "width": 100000, "height": 64}))


main(list_tools, text_to_image, image_to_image, wrong_size)
