import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import WeightsError
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import LoadedPipelines, Lora, Mode
from app.pipelines.sdxl_turbo import load_sdxl_turbo
from app.settings import Settings
from app.weights.lora import LoraFile
from tests.conftest import lacks
from tests.support.lora import LAYERS, write_lora
from tests.support.processor import needs_int8
from tests.support.single_file import write_single_file

PARAMS = Txt2ImgParams(prompt="a cat", seed=1, num_inference_steps=2, width=96, height=64)
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
ORACLE = """
import sys
from pathlib import Path
import torch
from diffusers import AutoPipelineForText2Image
from app.pipelines.checkpoint import MODELS
model, *cases = sys.argv[1:]
for case in cases:
    pipe = AutoPipelineForText2Image.from_pretrained(model, variant="fp16", dtype=torch.float32)
    weights = {}
    for number, lora in enumerate(case.split(",")):
        path, _, weight = lora.rpartition(":")
        pipe.load_lora_weights(str(Path(path).parent), weight_name=Path(path).name, adapter_name=f"l{number}")
        weights[f"l{number}"] = float(weight)
    pipe.set_adapters(list(weights), list(weights.values()))
    pipe.fuse_lora(adapter_names=list(weights), components=["unet", "text_encoder", "text_encoder_2"])
    pipe.unload_lora_weights()
    pipe.vae.to(memory_format=torch.channels_last)
    made = pipe("a cat", num_inference_steps=2, guidance_scale=0.0, width=96, height=64,
                generator=torch.Generator().manual_seed(1), output_type="np").images[0]
    print((made * 255).round().astype("uint8").tobytes().hex())
"""
"""diffusers' own pictures, with peft. It is installed beside the environment: where diffusers finds it, every start of
the service imports it."""


def load(model: Path, *loras: tuple[Path, float], **options: Any) -> LoadedPipelines:
    configs = {"configs": options.pop("configs")} if "configs" in options else {}
    files = [LoraFile(path, path.stem, weight) for path, weight in loras]
    return load_sdxl_turbo(model, Settings(device="cpu", **options), model="x", loras=files, **configs)


def picture(loaded: LoadedPipelines) -> bytes:
    (made,) = loaded.by_mode[Mode.TXT2IMG]([PARAMS])
    return made.pixels.tobytes()


@pytest.fixture(scope="module")
def kohya(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kohya") / "kohya.safetensors"
    return write_lora(path, tiny_folder, naming="kohya", more=[CONVOLUTION])


@pytest.fixture(scope="module")
def peft(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("peft") / "peft.safetensors", tiny_folder, naming="peft", seed=1, rank=3)


@pytest.fixture(scope="module")
def plain(tiny_folder: Path) -> bytes:
    return picture(load(tiny_folder))


def test_pictures_have_the_bytes_of_diffusers_own_fused_loras(
    kohya: Path, peft: Path, tiny_folder: Path, plain: bytes
) -> None:
    packages = Path(sys.prefix) / "oracle"
    if not packages.is_dir():
        lacks("peft is not installed; `make test` installs it")
    cases = [[(kohya, 1.0)], [(peft, 0.75)], [(kohya, 0.8), (peft, -0.5)]]
    command: list[str | Path] = [sys.executable, "-W", "ignore", "-c", ORACLE, tiny_folder]
    said = subprocess.check_output(
        command + [",".join(f"{path}:{weight}" for path, weight in case) for case in cases],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), *sys.path])},
        text=True,
    )
    expected = [bytes.fromhex(line) for line in said.split()]
    assert len({plain, *expected}) == 4
    assert [picture(load(tiny_folder, *case)) for case in cases] == expected


def test_a_lora_of_weight_0_changes_nothing(kohya: Path, tiny_folder: Path, plain: bytes) -> None:
    loaded = load(tiny_folder, (kohya, 0.0))
    assert picture(loaded) == plain
    assert loaded.loras == [Lora("kohya", 0.0)]


def test_a_single_file_with_a_lora_gives_the_bytes_of_the_folder(
    kohya: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    single = write_single_file(tiny_folder, tmp_path / "turbo.safetensors")
    made = picture(load(single, (kohya, 0.5), configs=tiny_folder))
    assert made == picture(load(tiny_folder, (kohya, 0.5)))


def test_each_layer_has_its_own_alpha(kohya: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """A pair with half its alpha and twice its values changes the same."""
    tensors = load_file(kohya)
    layer = next(name for name in tensors if "attn1_to_q" in name).partition(".")[0]
    tensors[f"{layer}.alpha"] /= 2
    tensors[f"{layer}.lora_up.weight"] *= 2
    save_file(tensors, path := tmp_path / "kohya.safetensors")
    assert picture(load(tiny_folder, (path, 1.0))) == picture(load(tiny_folder, (kohya, 1.0)))


@needs_int8
def test_in_int8_a_lora_is_fused_before_the_weights_are_rounded(kohya: Path, tiny_folder: Path, plain: bytes) -> None:
    int8, fp32, without = (
        np.frombuffer(data, np.uint8).astype(int)
        for data in (
            picture(load(tiny_folder, (kohya, 1.0), dtype="int8")),
            picture(load(tiny_folder, (kohya, 1.0))),
            plain,
        )
    )
    assert np.abs(int8 - fp32).mean() < np.abs(int8 - without).mean() / 2


def renamed(tensors: dict[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


def widened(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The pairs of a model that is twice as wide."""
    return {name: tensor.repeat(1, 2) if "lora_A" in name else tensor.repeat(2, 1) for name, tensor in tensors.items()}


Q = LAYERS["unet"][1]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (widened, r"other\.safetensors has .* for a weight of shape \(\d+, \d+\), and SDXL's is \(\d+, \d+\)\."),
        (
            lambda tensors: renamed(tensors, "down_blocks.1.", "down_blocks.0."),
            r"fits no layer of SDXL\. It may be for",
        ),
        (
            lambda tensors: renamed(tensors, "unet.", "transformer."),
            r"has transformer\..*, which fits no model of SDXL",
        ),
        (
            lambda tensors: renamed(tensors, f"{Q}.lora_B", f"{Q}.lora_E"),
            r"other\.safetensors has unet\..*lora_E\.weight, which is not",
        ),
    ],
    ids=["shapes", "layer", "model", "name"],
)
def test_a_lora_that_does_not_fit_is_rejected_with_an_example(
    peft: Path,
    tiny_folder: Path,
    tmp_path: Path,
    harm: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    reason: str,
) -> None:
    save_file(harm(load_file(peft)), path := tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=reason):
        load(tiny_folder, (path, 1.0))


def test_kohya_s_lora_for_stable_diffusion_1_is_rejected(tiny_folder: Path, tmp_path: Path) -> None:
    pair = {"lora_down": torch.zeros(4, 320), "lora_up": torch.zeros(320, 4)}
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{layer}.{half}.weight": tensor for half, tensor in pair.items()}, path := tmp_path / "sd1.safetensors")
    with pytest.raises(WeightsError, match=r"sd1\.safetensors .*SDXL.*|sd1\.safetensors cannot be loaded"):
        load(tiny_folder, (path, 1.0))
