"""The ids that the service gives to the text encoders, compared with open_clip's SimpleTokenizer."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from app.pipelines.prompts import PromptEncoder
from tests.full_size.tokens import CLEANED, MARKED, PROMPTS, original_input, original_tokens


def ids(model: Path, prompt: str, name: str) -> tuple[list[int], int]:
    """The 77 ids that a text encoder gets with one of the tokenizers, and the number of the prompt's tokens."""
    given: list[list[int]] = []

    def encode(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        given.extend(tokens.tolist())
        return torch.zeros(1, 77, 1), torch.zeros(1, 1)

    tokenizer = CLIPTokenizer.from_pretrained(model / name)
    encoder = PromptEncoder([tokenizer], [encode], lambda ids: ids, cache_bytes=0)
    tokens = encoder(prompt).tokens
    (only,) = given
    return only, tokens


@pytest.mark.parametrize("prompt", PROMPTS)
def test_both_text_encoders_get_the_ids_of_the_original_tokenizer_cut_at_77(model: Path, prompt: str) -> None:
    expected, tokens = original_input(prompt), len(original_tokens(prompt))
    assert ids(model, prompt, "tokenizer_2") == (expected, tokens)
    end = expected.index(49407)
    # The first encoder's padding is the end mark.
    assert ids(model, prompt, "tokenizer") == (expected[: end + 1] + [49407] * (76 - end), tokens)


@pytest.mark.parametrize("prompt", sorted(CLEANED))
def test_text_that_open_clip_repairs_first_has_other_ids_as_in_diffusers(model: Path, prompt: str) -> None:
    assert ids(model, prompt, "tokenizer_2")[0] != original_input(prompt)


@pytest.mark.parametrize("prompt", MARKED)
def test_an_exclamation_mark_is_the_padding_token_of_the_second_tokenizer_alone_as_in_diffusers(
    model: Path, prompt: str
) -> None:
    expected = original_tokens(prompt)
    assert ids(model, prompt, "tokenizer")[0][: len(expected)] == expected
    given, tokens = ids(model, prompt, "tokenizer_2")
    assert given[1:tokens].count(0) == prompt.count("!")
    assert original_tokens(prompt).count(0) == 0
