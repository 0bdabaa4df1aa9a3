"""The builder of the full-size model, with small networks. Its tokenizers are always the real ones."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import Mode
from app.pipelines.sdxl_turbo import load_sdxl_turbo
from app.settings import Settings
from app.weights.layout import MODEL, check_model
from benchmarks.full_size import NANO, build_missing, tiny_vae_beside

UNET = "unet/diffusion_pytorch_model"
LAYOUT = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.fp16.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/tokenizer_config.json",
    "tokenizer_2/vocab.json",
    "unet/config.json",
    f"{UNET}.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
}
"""The files of stabilityai/sdxl-turbo that the service pulls."""

SHARDS = {f"{UNET}.fp16-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}


def build(folder: Path, *, shards: bool = False) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.seed()  # the weights must not depend on it
        build_missing(folder, shapes=NANO, shards=shards)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sharded") / "model", shards=True)


def test_the_files_are_those_of_the_hub_s_repository(whole: Path) -> None:
    assert files(whole) == LAYOUT


def test_with_shards_the_unet_is_in_three_files_with_an_index(sharded: Path) -> None:
    index = f"{UNET}.safetensors.index.fp16.json"
    assert files(sharded) == LAYOUT - {f"{UNET}.fp16.safetensors"} | SHARDS | {index}


def test_every_build_gives_the_same_bytes_in_one_file_or_in_shards(whole: Path, sharded: Path) -> None:
    for name in files(whole) & files(sharded):
        assert (whole / name).read_bytes() == (sharded / name).read_bytes(), name
    tensors = load_file(whole / f"{UNET}.fp16.safetensors")
    shards = {name: tensor for shard in SHARDS for name, tensor in load_file(sharded / shard).items()}
    assert tensors.keys() == shards.keys()
    assert all(torch.equal(tensor, shards[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("encoder", ["text_encoder", "text_encoder_2"])
def test_the_tensors_of_the_text_encoders_are_named_as_in_the_hub_s_files(whole: Path, encoder: str) -> None:
    names = load_file(whole / encoder / "model.fp16.safetensors").keys() - {"text_projection.weight"}
    assert all(name.startswith("text_model.") for name in names)


@pytest.mark.parametrize(("model", "dtype"), [("whole", "fp32"), ("sharded", "bf16")])
def test_the_service_accepts_the_model_and_makes_pictures_with_it(
    request: pytest.FixtureRequest, model: str, dtype: str
) -> None:
    folder = request.getfixturevalue(model)
    check_model(folder)
    assert MODEL.choose(files(folder)) == files(folder)
    settings = Settings.model_validate({"device": "cpu", "dtype": dtype})
    pipelines = load_sdxl_turbo(folder, settings, model="built")
    params = Txt2ImgParams(prompt="a cat", seed=1, num_inference_steps=1, width=96, height=64)
    (made,) = pipelines.by_mode[Mode.TXT2IMG]([params])
    assert np.std(made.pixels) > 10


def test_the_service_accepts_the_tiny_vae(whole: Path) -> None:
    pipelines = load_sdxl_turbo(whole, Settings(device="cpu"), model="built", vae_folder=tiny_vae_beside(whole))
    params = Txt2ImgParams(prompt="a cat", seed=1, num_inference_steps=1, width=96, height=64)
    (made,) = pipelines.by_mode[Mode.TXT2IMG]([params])
    assert np.std(made.pixels) > 10


@pytest.mark.parametrize("tokenizer", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("", []),
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        # StableDiffusionTests.swift of apple/ml-stable-diffusion
        ("a photo of an astronaut riding a horse on mars", [320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496]),
        (
            "Apple CoreML developer tools on a Macbook Air are fast",
            [3055, 19622, 5780, 10929, 5771, 525, 320, 20617, 1922, 631, 1953],
        ),
        # SimpleTokenizer of open_clip_torch 3.3.0
        ("café 猫 🐱", [15304, 163, 234, 360, 22979]),
    ],
)
def test_the_tokenizers_have_clip_s_ids(whole: Path, tokenizer: str, prompt: str, ids: list[int]) -> None:
    start, end = 49406, 49407
    encode = CLIPTokenizer.from_pretrained(whole / tokenizer)
    assert encode(prompt).input_ids == [start, *ids, end]
    pad = {"tokenizer": end, "tokenizer_2": 0}[tokenizer]
    padded = encode(prompt, padding="max_length").input_ids
    assert padded == [start, *ids, end, *[pad] * (77 - 2 - len(ids))]


def test_a_second_build_changes_nothing(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.parent.rglob("*")}
    build(whole)
    assert {path: path.stat().st_mtime_ns for path in whole.parent.rglob("*")} == before


@pytest.mark.long
@pytest.mark.only_long
def test_a_killed_build_leaves_no_folder_of_that_name_and_the_next_one_completes_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    command = [sys.executable, "-m", "benchmarks.full_size", "--nano", "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as building:
        assert building.stdout is not None
        progress = next(line for line in building.stdout if line.startswith("text_encoder: done"))
        building.kill()
    assert re.search(r"\d\.\d\d of \d\.\d\d GB", progress)
    assert (tmp_path / "model.part").is_dir()
    assert not folder.exists()
    assert files(build(folder)) == LAYOUT
    assert not (tmp_path / "model.part").exists()
