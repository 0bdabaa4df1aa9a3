"""A prompt's tokens to the windows that CLIP's text encoders read. Needs no torch.

Stable Diffusion WebUI's rule: a window has 75 tokens. If a comma is among the last 20 of a full window, the window ends
after it, so that a phrase stays together. A section, which BREAK ends, begins a window. An empty section is an empty
window, except the last one. Source: `tokenize_line` of AUTOMATIC1111/stable-diffusion-webui (modules/
sd_hijack_clip.py) and of lllyasviel/stable-diffusion-webui-forge (backend/text_processing/classic_engine.py).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.pipelines.prompt_options import MAX_PROMPT_WINDOWS, WINDOW_TOKENS, PromptMode

Id = TypeVar("Id", bound=Hashable)

_COMMA_BACKTRACK = 20
"""The default of that server's setting `comma_padding_backtrack`."""

MARKS = 2
"""The start and end mark of a window."""


@dataclass(frozen=True, slots=True)
class Token(Generic[Id]):
    """A token and its weight."""

    id: Id
    weight: float = 1.0


Window = Sequence[Token[Id]]
"""At most 75 tokens, without marks and padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows(Generic[Id]):
    """The windows to use, at least one; and the number of the prompt's tokens beyond them, without marks."""

    used: Sequence[Window[Id]]
    dropped_tokens: int

    @property
    def tokens(self) -> int:
        """The used tokens, with the marks of each window."""
        return sum(len(window) + MARKS for window in self.used)


def windows_of(sections: Sequence[Sequence[Token[Id]]], mode: PromptMode, *, comma: Id | None) -> Windows[Id]:
    """Return the windows of a prompt's sections, of which there is at least one.

    In the mode `cut`, there is one window: the first 75 tokens of the first section. `comma` is the comma's token.
    """
    total = sum(map(len, sections))
    if mode == "cut":
        used: list[Window[Id]] = [sections[0][:WINDOW_TOKENS]]
    else:
        used = [window for section in sections[:-1] for window in _split(section, comma)]
        if sections[-1] or not used:
            used += _split(sections[-1], comma)
        del used[MAX_PROMPT_WINDOWS:]
    return Windows(used=used, dropped_tokens=total - sum(map(len, used)))


def _split(section: Sequence[Token[Id]], comma: Id | None) -> list[Window[Id]]:
    """Return a section's windows, at least one."""
    windows = []
    while len(section) > WINDOW_TOKENS:
        end = _end_of_window(section, comma)
        windows.append(section[:end])
        section = section[end:]
    return [*windows, section]


def _end_of_window(section: Sequence[Token[Id]], comma: Id | None) -> int:
    """Return how many tokens of a longer section its first window has."""
    if comma is None or section[WINDOW_TOKENS].id == comma:
        return WINDOW_TOKENS
    latest = range(WINDOW_TOKENS - 1, WINDOW_TOKENS - 1 - _COMMA_BACKTRACK, -1)
    return next((place + 1 for place in latest if section[place].id == comma), WINDOW_TOKENS)
