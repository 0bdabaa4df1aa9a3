"""Long and emphasized prompts with real text encoders, compared with compel and with the formula of emphasis.

compel joins windows as Stable Diffusion WebUI does. But it breaks them at other commas, and its weights move a token's
state away from that of an empty prompt. No library on PyPI has that server's rule for weights. So emphasis is compared
with the formula: states times weights, times the ratio of the means before and after.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compel import Compel, ReturnedEmbeddingsType
from compel.embeddings_provider import SplitLongTextMode
from diffusers import AutoPipelineForText2Image
from PIL import Image

from app.modes.img2img import Img2ImgParams
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import GenerationParams, LoadedPipelines, Mode
from app.pipelines.batch_sizes import BatchSizes
from app.pipelines.networks.graphs import compiled_networks
from app.pipelines.networks.plain import plain_networks
from app.pipelines.prompt_options import PromptOptions
from app.pipelines.prompts import EncodedPrompt, PromptEncoder
from app.pipelines.sdxl_turbo import load_sdxl_turbo
from app.settings import Settings

CHUNKED = PromptOptions(mode="chunked")
WEBUI = PromptOptions(mode="chunked", syntax="webui")
LETTERS = "abcdefghijklmnopqrstuvwxyz" * 12
"""Each is a token of the tiny model."""


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Any:
    pipe = AutoPipelineForText2Image.from_pretrained(tiny_folder, variant="fp16", dtype=torch.float32)
    pipe.tokenizer_2.pad_token_id = 0  # as SDXL's: its padding differs from the first tokenizer's
    return pipe


@pytest.fixture(scope="module")
def prompts(pipe: Any) -> PromptEncoder:
    tokenizers = (pipe.tokenizer, pipe.tokenizer_2)
    return PromptEncoder(tokenizers, plain_networks(pipe).encode_text, lambda ids: ids, cache_bytes=0)


@torch.inference_mode()
def encode(prompts: PromptEncoder, prompt: str, options: PromptOptions = CHUNKED) -> EncodedPrompt:
    return prompts(prompt, options)


def of_compel(pipe: Any, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """compel's embeddings for SDXL: those of both encoders side by side, and the second one's pooled output."""
    made = [
        Compel(
            tokenizer=tokenizer,
            text_encoder=encoder,
            returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
            requires_pooled=True,
            truncate_long_prompts=False,
            split_long_text_mode=SplitLongTextMode.BRUTAL,
        )(prompt)
        for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2))
    ]
    return torch.cat([embeds for embeds, _ in made], dim=-1), made[1][1]


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


@pytest.mark.parametrize("letters", [0, 3, 75, 76, 150, 200, 300])
def test_without_emphasis_the_embeddings_are_compel_s(pipe: Any, prompts: PromptEncoder, letters: int) -> None:
    made = encode(prompts, LETTERS[:letters])
    embeds, pooled = of_compel(pipe, LETTERS[:letters])
    assert difference(made.embeds, embeds) < 1e-5
    assert difference(made.pooled, pooled) < 1e-5


def test_a_comma_near_the_end_of_a_window_divides_as_if_the_parts_were_given_to_compel_one_by_one(
    pipe: Any, prompts: PromptEncoder
) -> None:
    first, second = LETTERS[:69] + ",", LETTERS[:30]
    made = encode(prompts, f"{first} {second}")
    parts = [of_compel(pipe, part) for part in (first, second)]
    assert difference(made.embeds, torch.cat([embeds for embeds, _ in parts], dim=1)) < 1e-5
    assert difference(made.pooled, parts[0][1]) < 1e-5


def test_break_divides_likewise(pipe: Any, prompts: PromptEncoder) -> None:
    made = encode(prompts, "a fox BREAK in snow", WEBUI)
    expected = torch.cat([of_compel(pipe, part)[0] for part in ("a fox", "in snow")], dim=1)
    assert difference(made.embeds, expected) < 1e-5
    assert difference(encode(prompts, "a fox BREAK in snow").embeds, of_compel(pipe, "a fox BREAK in snow")[0]) < 1e-5


def test_a_prompt_that_fits_one_window_has_the_same_embeddings_cut_and_chunked(prompts: PromptEncoder) -> None:
    cut, chunked, webui = (encode(prompts, "a fox, in snow", options) for options in (PromptOptions(), CHUNKED, WEBUI))
    for other in (chunked, webui):
        assert torch.equal(cut.embeds, other.embeds)
        assert torch.equal(cut.pooled, other.pooled)


def by_the_formula(pipe: Any, ids: Sequence[Sequence[int]], weights: Sequence[Sequence[float]]) -> torch.Tensor:
    """Embeddings of windows of ids without marks, with the weight of each id."""
    encoders = ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2))
    sides = []
    for tokenizer, encoder in encoders:
        windows = []
        for own, own_weights in zip(ids, weights, strict=True):
            padding = [tokenizer.pad_token_id] * (75 - len(own))
            row = torch.tensor([[tokenizer.bos_token_id, *own, tokenizer.eos_token_id, *padding]])
            z = encoder(row, output_hidden_states=True).hidden_states[-2].double()
            m = torch.tensor([1.0, *own_weights, 1.0, *[1.0] * len(padding)], dtype=torch.float64)
            weighted = z * m[None, :, None]
            windows.append(weighted * z.mean() / weighted.mean())
        sides.append(torch.cat(windows, dim=1))
    return torch.cat(sides, dim=-1).float()


@torch.inference_mode()
def test_emphasis_multiplies_states_and_restores_the_mean_of_each_window_and_encoder(
    pipe: Any, prompts: PromptEncoder
) -> None:
    def ids(text: str) -> list[int]:
        found: list[int] = pipe.tokenizer(text).input_ids[1:-1]
        return found

    made = encode(prompts, f"a (fox:1.5) [in] ((snow)) BREAK {LETTERS[:74]} (owl:0.5)", WEBUI)
    parts = [("a", 1), ("fox", 1.5), ("in", 1 / 1.1), ("snow", 1.21)]
    first = [(one, weight) for text, weight in parts for one in ids(text)]
    others = [(one, 1.0) for one in ids(LETTERS[:74])] + [(one, 0.5) for one in ids("owl")]
    windows = [first, others[:75], others[75:]]
    expected = by_the_formula(
        pipe,
        [[one for one, _ in window] for window in windows],
        [[float(weight) for _, weight in window] for window in windows],
    )
    assert difference(made.embeds, expected) < 1e-4 * float(expected.abs().max())
    plain = encode(prompts, f"a fox in snow BREAK {LETTERS[:74]} owl", WEBUI)
    assert difference(made.embeds, plain.embeds) > 0.1, "else the weights would do nothing"
    assert torch.equal(made.pooled, plain.pooled)


def test_tokens_are_counted_with_the_marks_of_each_window(prompts: PromptEncoder) -> None:
    def counts(prompt: str, options: PromptOptions) -> tuple[int, int]:
        made = encode(prompts, prompt, options)
        return made.prompt_tokens, made.tokens

    assert counts(LETTERS[:80], PromptOptions()) == (77, 82)
    assert counts(LETTERS[:80], CHUNKED) == (84, 84)
    assert counts(LETTERS * 2, CHUNKED) == (616, 640)
    assert counts("(ab:1.2)", WEBUI) == (4, 4)
    assert counts("(ab:1.2)", CHUNKED) == (10, 10)
    assert counts("ab BREAK cd", replace(WEBUI, mode="cut")) == (4, 6)


class _Dividing:
    """A tokenizer that reads each "!" as two tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str) -> Any:
        return self._tokenizer(text.replace("!", "!!"))


@torch.inference_mode()
def test_if_one_tokenizer_needs_more_windows_an_empty_one_follows_for_the_other(pipe: Any) -> None:
    """As SDXL's tokenizers do with exclamation marks."""
    tokenizers = (pipe.tokenizer, _Dividing(pipe.tokenizer_2))
    prompts = PromptEncoder(tokenizers, plain_networks(pipe).encode_text, lambda ids: ids, cache_bytes=0)
    made = prompts(LETTERS[:74] + "!", CHUNKED)
    assert made.embeds.shape[1] == 2 * 77
    assert made.prompt_tokens == 76 + 4
    width = pipe.text_encoder.config.hidden_size
    assert difference(made.embeds[:, 77:, :width], of_compel(pipe, "")[0][..., :width]) < 1e-5


def test_the_cache_keeps_a_prompt_for_each_way_to_read_it_and_counts_its_windows(pipe: Any) -> None:
    tokenizers = (pipe.tokenizer, pipe.tokenizer_2)
    encoder = PromptEncoder(tokenizers, plain_networks(pipe).encode_text, lambda ids: ids, cache_bytes=1 << 24)
    text = f"(fox) {LETTERS[:80]}"
    made = [encode(encoder, text, options) for options in (PromptOptions(), CHUNKED, WEBUI)]
    assert encode(encoder, text, CHUNKED) is made[1]
    assert (encoder.statistics.hits, encoder.statistics.misses) == (1, 3)
    assert encoder.statistics.size_bytes == sum(one.embeds.nbytes + one.pooled.nbytes for one in made)
    assert not torch.equal(made[1].embeds, made[2].embeds)


# Pictures.


def mixed(mode: Mode) -> list[GenerationParams]:
    """Pictures of one kind, whose prompts have one, two and four windows."""
    texts = ["a fox", LETTERS[:100], "(an owl:1.4)", LETTERS[:250], LETTERS[20:120]]
    if mode is Mode.TXT2IMG:
        return [
            Txt2ImgParams(prompt=text, seed=seed, num_inference_steps=2, width=64, height=72, prompt_options=WEBUI)
            for seed, text in enumerate(texts)
        ]
    image = Image.linear_gradient("L").resize((64, 72)).convert("RGB")
    return [
        Img2ImgParams(prompt=text, seed=seed, num_inference_steps=2, strength=1, image=image, prompt_options=WEBUI)
        for seed, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def exact(tiny_folder: Path) -> LoadedPipelines:
    return load_sdxl_turbo(tiny_folder, Settings(device="cpu"), model="tiny")


@pytest.mark.usefixtures("any_batch_pays")
@pytest.mark.parametrize("mode", list(Mode))
def test_prompts_of_different_lengths_in_a_batch_make_the_pictures_that_each_makes_alone(
    exact: LoadedPipelines, mode: Mode
) -> None:
    batch = mixed(mode)
    pipeline = exact.by_mode[mode]
    together = pipeline(batch)
    assert [made.prompt_tokens for made in together] == [6, 104, 7, 258, 104]
    for params, made in zip(batch, together, strict=True):
        assert np.array_equal(made.pixels, pipeline([params])[0].pixels)
    short = replace(batch[1], prompt_options=PromptOptions())
    assert not np.array_equal(pipeline([short])[0].pixels, together[1].pixels)


def test_long_prompts_run_without_graphs_after_the_warm_up(tiny_folder: Path) -> None:
    """The text encoders' graphs are used for every window."""
    compiled_at: list[tuple[torch.Size, ...]] = []

    def compile_function(function: Any) -> Any:
        def call(*tensors: torch.Tensor) -> Any:
            compiled_at.append(tuple(tensor.shape for tensor in tensors))
            return function(*tensors)

        return call

    loaded = load_sdxl_turbo(tiny_folder, Settings(device="cpu", batching="off"), model="tiny")
    pipeline: Any = loaded.by_mode[Mode.TXT2IMG]
    networks = compiled_networks(pipeline.networks, lambda: None, compile_function=compile_function)
    pipeline.networks = networks
    pipeline.prompts = PromptEncoder(
        (pipeline.pipe.tokenizer, pipeline.pipe.tokenizer_2), networks.encode_text, lambda ids: ids, cache_bytes=0
    )
    fox, long = mixed(Mode.TXT2IMG)[:2]
    pipeline([fox])
    warm = set(compiled_at)
    networks.stop_compiling()
    compiled_at.clear()
    assert pipeline([long])
    text, latents = (torch.Size([1, 77]),), torch.Size([1, 4, 9, 8])
    assert compiled_at.count(text) == 4, "two windows of two encoders"
    assert set(compiled_at) <= warm
    assert [sizes for sizes in compiled_at if sizes[0] == latents and len(sizes) > 1] == [], "no graph of the UNet"


def test_where_sizes_must_be_exact_longer_prompts_are_made_one_by_one() -> None:
    """As on an accelerator: the sizes were compared at the length of the warm-up."""
    batch = mixed(Mode.TXT2IMG)[:1] * 5
    exact, fast = BatchSizes([1, 2, 4], must_be_exact=True), BatchSizes([1, 2, 4])
    exact.learn(batch[0].batch_key, 2)

    def parts(sizes: BatchSizes, lengths: Sequence[int]) -> list[tuple[list[int], bool]]:
        return [(list(places), usual) for places, usual in sizes.split_by_length(batch[: len(lengths)], lengths)]

    assert parts(exact, [77, 154, 77, 77, 154]) == [
        *[([0, 2], True), ([3], True)],
        *[([1], False), ([4], False)],
    ]
    assert parts(fast, [77, 154, 77, 77, 154]) == [([0, 2], True), ([3], True), ([1, 4], False)]
    assert parts(exact, [77] * 3) == [([0, 1, 2], True)], "a part is of an allowed size already"
