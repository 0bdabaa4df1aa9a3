r"""The emphasis syntax of Stable Diffusion WebUI: a prompt to sections of text with weights. Needs no torch.

`(word)` multiplies the weight by 1.1, `[word]` divides it by 1.1, and `(word:1.3)` multiplies it by 1.3. Brackets nest.
An open bracket without its closing one lasts to the prompt's end. A closing one without an open one is text, and so is
a weight that is no number. A backslash makes `(`, `)`, `[`, `]` or `\` text, and disappears before other characters.
The word BREAK in capitals ends a section. Prompt editing (`[from:to:when]`, `[one|other]`) and AND are read as text.

Source: `parse_prompt_attention` of AUTOMATIC1111/stable-diffusion-webui (modules/prompt_parser.py) and of
lllyasviel/stable-diffusion-webui-forge (backend/text_processing/parsing.py), which allows spaces about the number. Only
BREAK inside of brackets differs: these servers then read it as a word with a negative weight.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.pipelines.prompt_options import PromptSyntax

MAX_WEIGHT = 10.0
"""Bound of a weight's size, with all its brackets. In fp16, far larger weights would overflow."""

_FACTORS = {"(": 1.1, "[": 1 / 1.1}
_OPENING = {")": "(", "]": "["}

_PIECE = re.compile(
    r"""
    \\ [()\[\]\\]?                                         # an escape
    | [()\[\]]
    | : \s*+ ([+-]?+ (?: [0-9]++ (?:\.[0-9]*+)?+ | \.[0-9]++ )) \s*+ \)  # a weight
    | [^\\()\[\]:]++
    | :
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")


class EmphasisError(ValueError):
    """A weight is larger than allowed."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of a prompt whose tokens have the same weight."""

    text: str
    weight: float = 1.0


Section = Sequence[Fragment]
"""The fragments up to a BREAK. Its tokens begin a window."""


def sections_of(prompt: str, syntax: PromptSyntax) -> Sequence[Section]:
    """Return a prompt's sections, at least one.

    Raises:
        EmphasisError: A weight's size exceeds `MAX_WEIGHT`.
    """
    if syntax == "plain":
        return [[Fragment(prompt)]]
    read = _Reader(prompt)
    sections: list[list[Fragment]] = [[]]
    for text, weight in zip(read.texts, read.weights, strict=True):
        if text is None:
            sections.append([])
            continue
        if text.strip() and not abs(weight) <= MAX_WEIGHT:  # NaN is not either
            raise EmphasisError(
                f"A weight is from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}, with all its brackets multiplied."
            )
        section = sections[-1]
        if section and section[-1].weight == weight:  # joined, so that a word may have escapes in it
            section[-1] = Fragment(section[-1].text + text, weight)
        else:
            section.append(Fragment(text, weight))
    return sections


class _Reader:
    """Reads a prompt into texts and their weights. The text None stands for BREAK."""

    def __init__(self, prompt: str) -> None:
        self.texts: list[str | None] = []
        self._weights = np.ones(2 * len(prompt) + 1)  # an array, because a closing bracket multiplies a range of it
        self._open_at: dict[str, list[int]] = {"(": [], "[": []}
        with np.errstate(all="ignore"):  # too large a weight is an error of its own
            for piece in _PIECE.finditer(prompt):
                self._take(piece.group(), piece.group(1))
            for bracket, places in self._open_at.items():
                while places:
                    self._close(bracket)

    @property
    def weights(self) -> list[float]:
        weights: list[float] = self._weights[: len(self.texts)].tolist()
        return weights

    def _take(self, piece: str, number: str | None) -> None:
        if piece in self._open_at:
            self._open_at[piece].append(len(self.texts))
        elif number is not None and self._open_at["("]:
            self._close("(", float(number))
        elif (bracket := _OPENING.get(piece)) and self._open_at[bracket]:
            self._close(bracket)
        elif piece.startswith("\\"):
            self.texts.append(piece[1:])
        else:
            first, *others = _BREAK.split(piece)
            self.texts.append(first)
            for other in others:
                self.texts += [None, other]

    def _close(self, bracket: str, factor: float | None = None) -> None:
        self._weights[self._open_at[bracket].pop() : len(self.texts)] *= _FACTORS[bracket] if factor is None else factor
