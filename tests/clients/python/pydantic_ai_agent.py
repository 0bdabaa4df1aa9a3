"""A Pydantic AI agent with the service's MCP server as its tools. A script replaces the language model."""

from pathlib import Path

from mcp import MCPError
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from report import Report, Service, encoded, main


def draw(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Call the tool first, and say something when its result is there."""
    if len(messages) > 1:
        return ModelResponse(parts=[TextPart("Here is the fox.")])
    arguments = {"prompt": "a fox", "width": 256, "height": 384, "num_inference_steps": 3, "seed": 7}
    return ModelResponse(parts=[ToolCallPart("text_to_image", arguments)])


def binaries(value: object) -> list[BinaryContent]:
    """Find the pictures wherever in the messages the agent keeps them."""
    if isinstance(value, BinaryContent):
        return [value]
    if isinstance(value, (list, tuple)):
        return [found for item in value for found in binaries(item)]
    return [found for item in getattr(value, "__dict__", {}).values() for found in binaries(item)]


def text_to_image(service: Service, picture: Path) -> Report:
    tools = MCPToolset(f"{service.url}/mcp", headers={"Authorization": f"Bearer {service.key}"})
    result = Agent(FunctionModel(draw), toolsets=[tools]).run_sync("Draw a fox.")
    images = binaries(result.all_messages())
    return {
        "pictures": [encoded(image.data) for image in images],
        "types": [image.media_type for image in images],
        "output": result.output,
    }


main(text_to_image, refusal=MCPError)
