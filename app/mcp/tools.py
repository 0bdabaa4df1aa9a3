"""The MCP server with its two tools, whose results are pictures.

Built on the low-level server of the official SDK (mcp 2.3): its decorated functions would ignore unknown arguments,
accept "7" as a number, and put addresses of Pydantic's documentation into errors.
"""

import base64
import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import mcp_types as types
from mcp import MCPError
from mcp.server.lowlevel import Server
from pydantic import BaseModel, Field, ValidationError

from app import __version__
from app.errors import InvalidImageError, InvalidRequestError, TurboError
from app.images.encoding import MediaType
from app.inference.generation import Encoding, Generated, Generation
from app.inference.request_validation import Img2ImgRequest, Txt2ImgRequest

_log = logging.getLogger(__name__)

Make = Callable[..., Awaitable[Generated]]
"""Makes the pictures of a call; takes `observer`."""

Run = Callable[[Make, Encoding, Any], Awaitable[Generated]]
"""Runs `make` with an encoding for a request context of the SDK."""

_Format = Annotated[
    Literal["webp", "png", "jpeg"],
    Field(description="Format of the files. Some clients refuse results over 1 MB, which WebP and JPEG stay under."),
]


class _TextToImage(Txt2ImgRequest):
    """The arguments of `text_to_image`."""

    format: _Format = "webp"


class _ImageToImage(Img2ImgRequest):
    """The arguments of `image_to_image`."""

    image: Annotated[str, Field(description="The picture to start from: a PNG, JPEG or WebP file.")]
    format: _Format = "webp"


_HINTS = types.ToolAnnotations(read_only_hint=True, open_world_hint=False)
_MUST_BE_EMPTY = ("guidance_scale", "negative_prompt")


def make_server(generation: Generation, run: Run, *, read_file: Callable[[str], bytes] | None = None) -> Server[Any]:
    """Return a server with the tools.

    Pictures to start from come as base64 or a data URL. If `read_file` is given, they may also be paths of local files,
    which it reads; it raises InvalidRequestError.
    """
    how = "a path on this machine, base64 or a data URL" if read_file else "base64 or a data URL"
    tools = [
        _tool("text_to_image", "Text to image", "Draw pictures from a prompt with SDXL-Turbo.", _TextToImage),
        _tool(
            "image_to_image",
            "Image to image",
            f"Draw pictures from a prompt and a picture ({how}) with SDXL-Turbo.",
            _ImageToImage,
        ),
    ]

    async def list_tools(_: Any, __: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=tools)

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            fields, make = _request(generation, params.name, params.arguments or {}, read_file)
            made = await run(make, Encoding(media_type=MediaType(f"image/{fields.format}")), context)
        except MCPError:
            raise
        except ValidationError as error:
            return _failed({"code": InvalidRequestError.code, "detail": _reasons(error)})
        except TurboError as error:
            again = {} if error.retry_after_s is None else {"retry_after_s": error.retry_after_s}
            where = "" if error.param is None else f"{error.param}: "
            return _failed({"code": error.code, "detail": f"{where}{error}", **again})
        except Exception:  # noqa: BLE001 - the SDK would send its text
            _log.exception("a tool failed")
            return _failed({"code": TurboError.code, "detail": "The service failed on this request."})
        return _result(made)

    server: Server[Any] = Server(
        "sdxl-turbo-server",
        version=__version__,
        title="SDXL-Turbo server",
        instructions="Makes pictures from a prompt, or from a prompt and a picture. 512x512 is best.",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        get_tool_input_schema={tool.name: tool.input_schema for tool in tools}.get,
    )
    server.middleware.clear()  # the SDK's traces; the service has its own
    return server


def _tool(name: str, title: str, description: str, model: type[BaseModel]) -> types.Tool:
    description += " Answers with the pictures and their seeds. The same arguments with a seed give the same picture."
    return types.Tool(
        name=name, title=title, description=description, input_schema=_schema_of(model), annotations=_HINTS
    )


def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the flat schema that language models read best: without null, titles and fields that must be empty."""
    schema = model.model_json_schema()
    properties: dict[str, Any] = {}
    for name, described in schema["properties"].items():
        if name in _MUST_BE_EMPTY:
            continue
        options = [option for option in described.pop("anyOf", ()) if option != {"type": "null"}]
        properties[name] = {key: value for part in (*options, described) for key, value in part.items()}
        if properties[name].get("default", 0) is None:
            del properties[name]["default"]
        properties[name].pop("title", None)
    return {
        "type": "object",
        "properties": properties,
        "required": schema["required"],
        "additionalProperties": False,
    }


def _request(
    generation: Generation, name: str, arguments: dict[str, Any], read_file: Callable[[str], bytes] | None
) -> tuple[_TextToImage | _ImageToImage, Make]:
    if name == "text_to_image":
        text = _TextToImage.model_validate(arguments)
        return text, partial(generation.from_text, text)
    if name != "image_to_image":
        raise MCPError(types.INVALID_PARAMS, f"There is no tool {name[:100]}.")
    picture = _ImageToImage.model_validate(arguments, strict=True)
    return picture, partial(generation.from_picture, picture, lambda: _file_of(picture.image, read_file))


def _file_of(text: str, read_file: Callable[[str], bytes] | None) -> bytes:
    """Return the file that an argument has or names. Blocks; called on a codec thread."""
    text = text.strip()
    try:
        if text.startswith("data:"):
            return base64.b64decode(text.partition(",")[2], validate=True)
        if read_file is not None and not text.startswith(_BASE64_STARTS):
            return read_file(text)
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidImageError("The picture is not base64.", param="image") from error


_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "UklGR")
"""How PNG, JPEG and WebP files begin in base64."""


def local_file(max_bytes: int) -> Callable[[str], bytes]:
    """Return a reader of local files of at most `max_bytes`."""

    def read(path: str) -> bytes:
        file = Path(path.removeprefix("file://"))
        try:
            if not file.is_file():  # a pipe would never end
                raise InvalidRequestError("There is no such file.", param="image")
            with file.open("rb") as opened:
                data = opened.read(max_bytes + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InvalidRequestError(f"The file cannot be read: {reason}.", param="image") from error
        if len(data) > max_bytes:
            raise InvalidRequestError(f"The file has more than {max_bytes} bytes.", param="image")
        return data

    return read


def _reasons(error: ValidationError) -> str:
    faults = [
        (fault.get("ctx", {}).get("param") or ".".join(map(str, fault["loc"])), fault["msg"])
        for fault in error.errors()
    ]
    return "; ".join(f"{name}: {reason}" if name else reason for name, reason in faults)


def _result(made: Generated) -> types.CallToolResult:
    pictures = [
        types.ImageContent(data=base64.b64encode(file).decode("ascii"), mime_type=made.media_type)
        for file in made.files
    ]
    facts = {"seeds": list(made.seeds), **made.used.model_dump(mode="json", exclude_none=True, exclude={"prompt"})}
    return types.CallToolResult(content=[*pictures, types.TextContent(text=json.dumps(facts))])


def _failed(problem: dict[str, Any]) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=json.dumps(problem))], is_error=True)
