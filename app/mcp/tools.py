"""The MCP server with its three tools, whose results are pictures.

Built on the low-level server of the official SDK (mcp 2.3): its decorated functions would ignore unknown arguments,
accept "7" as a number, and put addresses of Pydantic's documentation into errors.
"""

import base64
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, Protocol

import mcp_types as types
from mcp import MCPError
from mcp.server.lowlevel import Server
from pydantic import BaseModel, Field, ValidationError

from app import __version__
from app.errors import InvalidRequestError, TurboError
from app.images.encoding import MediaType
from app.inference.field_names import unknown_reason
from app.inference.generation import Encoding, Generated, Generation
from app.modes.fields import Uploads, context_of, describe_max_steps
from app.modes.img2img import Img2ImgRequest
from app.modes.inpaint import InpaintRequest
from app.modes.txt2img import Txt2ImgRequest

_log = logging.getLogger(__name__)

Make = Callable[..., Awaitable[Generated]]
"""Makes the pictures of a call; takes `encoding` and `observer`."""

_MAX_REASONS = 20

_Format = Annotated[
    Literal["webp", "png", "jpeg"],
    Field(
        description="Format of the files. Some clients refuse results over 1 MB: ask for few pictures of a moderate "
        "size, and not for PNG."
    ),
]


class _TextToImage(Txt2ImgRequest):
    """The arguments of `text_to_image`."""

    format: _Format = "webp"


class _ImageToImage(Img2ImgRequest):
    """The arguments of `image_to_image`."""

    image: Annotated[str, Field(description="The picture to start from: a PNG, JPEG or WebP file")]
    format: _Format = "webp"


class _Inpaint(InpaintRequest):
    """The arguments of `inpaint`."""

    image: Annotated[str, Field(description="The picture to change: a PNG, JPEG or WebP file")]
    mask: Annotated[
        str | None,
        Field(
            description="A picture of the same aspect, white where the picture is drawn anew. If omitted, its "
            "transparent parts and what `extend` adds are drawn. A file"
        ),
    ] = None
    format: _Format = "webp"


_TOOLS: Mapping[str, tuple[str, str, type[_TextToImage | _ImageToImage | _Inpaint]]] = {
    "text_to_image": ("Text to image", "Draw pictures from a prompt.", _TextToImage),
    "image_to_image": ("Image to image", "Draw pictures from a prompt and a picture.", _ImageToImage),
    "inpaint": (
        "Inpainting",
        "Draw a part of a picture anew from a prompt, or extend it. The rest keeps its pixels.",
        _Inpaint,
    ),
}
"""Title, description and arguments of each tool."""

_PICTURES = ("image", "mask")
"""The arguments that are pictures."""


class Transport(Protocol):
    """What HTTP and stdio do differently. `context` is the SDK's request context."""

    @property
    def picture_forms(self) -> str:
        """How a picture may be given, in words."""

    async def begin(self, context: Any) -> None:
        """Count a call, and check that it may be served.

        Raises:
            TurboError: It may not.
        """

    async def run(self, make: Make, encoding: Encoding, context: Any) -> Generated:
        """Make the pictures of a call."""

    def uploads(self, pictures: Mapping[str, str], context: Any) -> Uploads:
        """Return functions that read the pictures of arguments. They block, and are called once each, in a thread."""

    def on_refused(self, code: str, context: Any) -> None:
        """Note the machine code of a call that was refused or failed."""


_HINTS = types.ToolAnnotations(read_only_hint=True, open_world_hint=False)
_MUST_BE_EMPTY = ("guidance_scale", "negative_prompt")


def make_server(generation: Generation, transport: Transport) -> Server[Any]:
    """Return a server with the tools."""
    max_steps = generation.settings.max_steps
    limit = f" width x height may be at most {generation.settings.max_pixels}."
    tools = [
        _tool(
            name,
            title,
            f"{description}{limit}",
            _schema_of(model, max_steps=max_steps, picture_forms=transport.picture_forms),
        )
        for name, (title, description, model) in _TOOLS.items()
    ]

    async def list_tools(_: Any, __: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=tools)

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            await transport.begin(context)
            fields, make = _request(generation, transport, params, context)
            made = await transport.run(make, Encoding(media_type=MediaType(f"image/{fields.format}")), context)
        except MCPError:
            raise
        except ValidationError as error:
            problem: dict[str, Any] = {"code": InvalidRequestError.code, "detail": _reasons(error, params.name)}
        except TurboError as error:
            again = {} if error.retry_after_s is None else {"retry_after_s": error.retry_after_s}
            where = "" if error.param is None else f"{error.param}: "
            problem = {"code": error.code, "detail": f"{where}{error.detail}", **again}
        except Exception:  # noqa: BLE001 - the SDK would send its text
            _log.exception("a tool failed")
            problem = {"code": TurboError.code, "detail": "The service failed on this request."}
        else:
            return _result(made)
        transport.on_refused(problem["code"], context)
        return types.CallToolResult(content=[types.TextContent(text=json.dumps(problem))], is_error=True)

    server: Server[Any] = Server(
        "sdxl-turbo-server",
        version=__version__,
        title="SDXL-Turbo server",
        instructions="Makes pictures from a prompt, or from a prompt and a picture, or changes a part of a picture. "
        "512x512 is best.",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        get_tool_input_schema={tool.name: tool.input_schema for tool in tools}.get,
    )
    server.middleware.clear()  # the SDK's traces; the service has its own
    return server


def _tool(name: str, title: str, description: str, input_schema: dict[str, Any]) -> types.Tool:
    description += " Answers with the pictures and their seeds. The same arguments with a seed give the same picture."
    return types.Tool(name=name, title=title, description=description, input_schema=input_schema, annotations=_HINTS)


def _schema_of(model: type[BaseModel], *, max_steps: int, picture_forms: str) -> dict[str, Any]:
    """Return the flat schema that language models read best: without null, titles and fields that must be empty."""
    schema = model.model_json_schema()
    describe_max_steps(schema, max_steps)
    properties: dict[str, Any] = {}
    for name, described in schema["properties"].items():
        if name in _MUST_BE_EMPTY:
            continue
        options = [option for option in described.pop("anyOf", ()) if option != {"type": "null"}]
        properties[name] = {key: value for part in (*options, described) for key, value in part.items()}
        if properties[name].get("default", 0) is None:
            del properties[name]["default"]
        properties[name].pop("title", None)
    for name in properties.keys() & _PICTURES:
        properties[name]["description"] += f", as {picture_forms}."
    return {
        "type": "object",
        "properties": properties,
        "required": schema["required"],
        "additionalProperties": False,
    }


def _request(
    generation: Generation, transport: Transport, params: types.CallToolRequestParams, context: Any
) -> tuple[_TextToImage | _ImageToImage | _Inpaint, Make]:
    if params.name not in _TOOLS:
        raise MCPError(types.INVALID_PARAMS, f"There is no tool {params.name[:100]}.")
    _, _, model = _TOOLS[params.name]
    limits = context_of(generation.settings.max_steps)
    fields = model.model_validate(params.arguments or {}, strict=True, context=limits)
    if isinstance(fields, _TextToImage):
        return fields, partial(generation.from_text, fields)
    pictures = {name: text for name in _PICTURES if (text := getattr(fields, name, None)) is not None}
    return fields, partial(generation.from_uploads, fields, transport.uploads(pictures, context))


def _reasons(error: ValidationError, tool: str) -> str:
    _, _, model = _TOOLS[tool]
    reasons = []
    for fault in error.errors(include_url=False, include_input=False)[:_MAX_REASONS]:
        name = fault.get("ctx", {}).get("param") or ".".join(map(str, fault["loc"]))[:100]
        text = unknown_reason(name, model) if fault["type"] == "extra_forbidden" else fault["msg"]
        reasons.append(f"{name}: {text}" if name else text)
    return "; ".join(reasons)


def _result(made: Generated) -> types.CallToolResult:
    encoded = [base64.b64encode(file).decode("ascii") for file in made.files]
    pictures = [types.ImageContent(data=file, mime_type=made.media_type) for file in encoded]
    facts = {"seeds": list(made.seeds), **made.used.model_dump(mode="json", exclude_none=True, exclude={"prompt"})}
    return types.CallToolResult(content=[*pictures, types.TextContent(text=json.dumps(facts))])
