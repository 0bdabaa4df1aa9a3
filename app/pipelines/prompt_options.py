"""How a prompt is read: what happens to a long one, and whether brackets mean emphasis. Needs no torch."""

from dataclasses import dataclass
from typing import Literal

PromptMode = Literal["cut", "chunked"]
"""`cut`: one window. `chunked`: up to `MAX_PROMPT_WINDOWS` windows. Both cut the tokens beyond."""

PromptSyntax = Literal["plain", "webui"]
"""`plain`: every character is text. `webui`: the brackets and BREAK of Stable Diffusion WebUI."""

WINDOW_TOKENS = 75
"""A prompt's tokens in one call of CLIP's text encoders, beside the start and end marks."""

MAX_PROMPT_WINDOWS = 8
"""Windows of a prompt that are used: 600 tokens. Each takes one more call of both text encoders."""

MAX_WINDOWED_TOKENS = MAX_PROMPT_WINDOWS * (WINDOW_TOKENS + 2)
"""The most tokens that are used of a prompt, with the start and end marks of each window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """How a prompt is read. The defaults read it as diffusers does."""

    mode: PromptMode = "cut"
    syntax: PromptSyntax = "plain"


DEFAULT_PROMPT_OPTIONS = PromptOptions()
