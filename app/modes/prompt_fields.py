"""The fields that say how a prompt is read, for every API and the command line."""

from typing import Annotated

from pydantic import Field
from pydantic_core import PydanticCustomError

from app.pipelines.prompt_options import MAX_PROMPT_WINDOWS, WINDOW_TOKENS, PromptMode, PromptSyntax
from app.pipelines.prompt_syntax import EmphasisError, sections_of

PromptModeField = Annotated[
    PromptMode,
    Field(
        description="What becomes of a prompt over 77 CLIP tokens. `cut`: the rest is cut. `chunked`: the prompt is "
        f"read in windows of {WINDOW_TOKENS} tokens, at most {MAX_PROMPT_WINDOWS} "
        f"({MAX_PROMPT_WINDOWS * WINDOW_TOKENS} tokens), and what lies beyond is cut. The answer reports a cut."
    ),
]
PromptSyntaxField = Annotated[
    PromptSyntax,
    Field(
        description="`plain`: every character of the prompt is text. `webui`, as in Stable Diffusion WebUI: `(word)`, "
        "`(word:1.3)` and `[word]` change the weight of words, a backslash makes a bracket text, and BREAK begins a "
        "new window."
    ),
]


def check_emphasis(prompt: str, syntax: PromptSyntax) -> None:
    """Check the weights in a prompt.

    Raises:
        PydanticCustomError: A weight is too large.
    """
    try:
        sections_of(prompt, syntax)
    except EmphasisError as error:
        raise PydanticCustomError(
            "emphasis_too_strong", "{reason}", {"reason": str(error), "param": "prompt"}
        ) from error
