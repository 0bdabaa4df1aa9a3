import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoPipelineForText2Image

from app.main import create_app
from app.pipelines.prompts import PromptEncoder
from app.settings import Settings
from tests.conftest import running


class Encoders:
    """Two encoders that count their calls; what they make depends on every token."""

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        return ids.float()[..., None].expand(1, 77, 2), ids.float().sum(dim=1, keepdim=True)


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> AutoPipelineForText2Image:
    return AutoPipelineForText2Image.from_pretrained(tiny_folder, variant="fp16", dtype=torch.float32)


ONE_PROMPT_BYTES = 77 * 2 * 2 * 4 + 4
"""77 tokens, two encoders of width 2, fp32; and one pooled number."""


def encoder(pipe: AutoPipelineForText2Image, encoders: Encoders, *, cache_bytes: int) -> PromptEncoder:
    return PromptEncoder(
        (pipe.tokenizer, pipe.tokenizer_2),
        (encoders.encode, encoders.encode),
        lambda ids: ids,
        cache_bytes=cache_bytes,
    )


def test_a_prompt_that_is_kept_is_not_encoded_again(pipe: AutoPipelineForText2Image) -> None:
    encoders = Encoders()
    prompts = encoder(pipe, encoders, cache_bytes=10 * ONE_PROMPT_BYTES)
    first = prompts("a cat")
    assert prompts("a cat") is first
    assert encoders.calls == 2, "one call of each encoder"
    assert not torch.equal(prompts("a dog").embeds, first.embeds)
    assert (prompts.statistics.hits, prompts.statistics.misses) == (1, 2)
    assert prompts.statistics.size_bytes == 2 * ONE_PROMPT_BYTES


def test_the_cache_holds_no_more_bytes_than_it_may_and_forgets_what_was_not_asked_for_longest(
    pipe: AutoPipelineForText2Image,
) -> None:
    encoders = Encoders()
    prompts = encoder(pipe, encoders, cache_bytes=2 * ONE_PROMPT_BYTES)
    for prompt in ("a", "b", "a", "c"):
        prompts(prompt)
    assert prompts.statistics.size_bytes == 2 * ONE_PROMPT_BYTES
    calls = encoders.calls
    prompts("a")
    assert encoders.calls == calls
    prompts("b")
    assert encoders.calls == calls + 2


def test_a_cache_of_no_bytes_keeps_nothing(pipe: AutoPipelineForText2Image) -> None:
    encoders = Encoders()
    prompts = encoder(pipe, encoders, cache_bytes=0)
    prompts("a")
    prompts("a")
    assert encoders.calls == 4
    assert prompts.statistics.size_bytes == 0


@pytest.mark.parametrize("letters", [0, 5, 75, 76, 200])
def test_tokens_are_those_that_diffusers_gives_its_encoders(pipe: AutoPipelineForText2Image, letters: int) -> None:
    seen: list[torch.Tensor] = []

    def encode(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(ids)
        return torch.zeros(1, 77, 2), torch.zeros(1, 1)

    prompts = PromptEncoder((pipe.tokenizer, pipe.tokenizer_2), (encode, encode), lambda ids: ids, cache_bytes=0)
    prompts("x" * letters)
    for tokenizer, ids in zip((pipe.tokenizer, pipe.tokenizer_2), seen, strict=True):
        expected = tokenizer("x" * letters, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        assert torch.equal(ids, expected.input_ids)


async def test_the_hit_rate_is_a_metric(tiny_folder: Path) -> None:
    settings = Settings.model_validate({"model": str(tiny_folder), "device": "cpu", "warm_up_sizes": "64x64"})
    async with running(create_app(settings)) as client:
        for prompt in ("a cat", "a cat", "a dog", "a cat"):
            body = {"prompt": prompt, "width": 64, "height": 64}
            assert (await client.post("/txt2img", json=body)).status_code == 200
        metrics = (await client.get("/metrics")).text
    found = dict(re.findall(r'turbo_prompt_cache_lookups_total\{outcome="(\w+)"\} (\S+)', metrics))
    assert found == {"hit": "2.0", "miss": "2.0"}, "the warm-up's do not count"
    assert re.search(r"turbo_prompt_cache_bytes [1-9]", metrics)
