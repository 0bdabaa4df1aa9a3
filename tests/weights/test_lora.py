import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from app.errors import WeightsError
from app.weights.lora import LORA, LoraSource, check_lora, locate_loras, parse_loras
from app.weights.source import HubSource, LocalSource
from tests.support.lora import write_lora
from tests.weights.conftest import StartPull
from tests.weights.local_hub import LocalHub

LAYER = "lora_unet_input_blocks_4_1_proj_in"
PAIR = {f"{LAYER}.lora_down.weight": (4, 8), f"{LAYER}.lora_up.weight": (8, 4)}
NAME = "somebody/style"


def write(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("/srv/style.safetensors", [LoraSource(LocalSource(Path("/srv/style.safetensors")))]),
        ("/srv/style:0.8", [LoraSource(LocalSource(Path("/srv/style")), 0.8)]),
        ("hf:a/b", [LoraSource(HubSource("hf", "a/b"))]),
        ("hf:a/b:-0.5", [LoraSource(HubSource("hf", "a/b"), -0.5)]),
        ("hf:a/b@v1:2", [LoraSource(HubSource("hf", "a/b", "v1"), 2.0)]),
        ("openmind:a/b:c/d.safetensors", [LoraSource(HubSource("openmind", "a/b", "main", "c/d.safetensors"))]),
        (
            "hf:a/b:c.safetensors@v1:0.3, style:1",
            [
                LoraSource(HubSource("hf", "a/b", "v1", "c.safetensors"), 0.3),
                LoraSource(LocalSource(Path("style")), 1.0),
            ],
        ),
    ],
)
def test_loras_are_files_folders_or_repositories_each_with_its_weight(text: str, expected: list[LoraSource]) -> None:
    assert parse_loras(text) == expected


@pytest.mark.parametrize("weight", ["much", "nan", "inf", "-inf", ""])
def test_a_weight_that_is_no_number_is_a_clear_error(weight: str) -> None:
    with pytest.raises(WeightsError, match=r"^TURBO_LORA=style\.safetensors:.* is not a weight\. Set a number"):
        parse_loras(f"style.safetensors:{weight}")


def test_a_hub_s_name_that_is_none_is_a_clear_error() -> None:
    with pytest.raises(WeightsError, match=r"^TURBO_LORA=hf:style is not HUB:OWNER/NAME"):
        parse_loras("hf:style")


@pytest.mark.parametrize(
    ("text", "name"),
    [("/srv/style.safetensors:0.5", "style"), ("hf:owner/name", "name"), ("hf:owner/name:a/b.safetensors:1", "b")],
)
def test_a_lora_goes_by_its_own_name(text: str, name: str) -> None:
    assert [lora.name for lora in parse_loras(text)] == [name]


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({f"{LAYER}.lora_down.weight": (4, 8)}, rf"is incomplete: it has {LAYER}\.lora_down\.weight and not .*lora_up"),
        ({f"{LAYER}.lora_up.weight": (4, 8)}, rf"is incomplete: it has {LAYER}\.lora_up\.weight and not .*lora_down"),
        ({"unet.x.lora_A.weight": (4, 8)}, r"is incomplete: .*lora_A\.weight and not unet\.x\.lora_B\.weight"),
        ({"unet.x.to_q_lora.down.weight": (4, 8)}, r"is incomplete: .* and not unet\.x\.to_q_lora\.up\.weight"),
        ({"model.diffusion_model.out.2.bias": (4,)}, r"is no LoRA: it has model\.diffusion_model\.out\.2\.bias"),
        (PAIR | {f"{LAYER}.dora_scale": (1,)}, r"is DoRA: it has .*dora_scale"),
        ({f"{LAYER}.hada_w1_a": (4, 8)}, r"is LoHa: it has .*hada_w1_a"),
        ({f"{LAYER}.lokr_w1": (4, 8)}, r"is LoKr: it has .*lokr_w1"),
        (PAIR | {f"{LAYER}.lora_mid.weight": (4, 4, 3, 3)}, r"is a LoRA in Tucker's form: it has .*lora_mid"),
    ],
)
def test_what_is_no_complete_lora_is_rejected_with_an_example(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], reason: str
) -> None:
    with pytest.raises(WeightsError, match=rf"style\.safetensors {reason}"):
        check_lora(write(tmp_path / "style.safetensors", shapes))


@pytest.mark.parametrize("names", [["style.safetensors"], ["pytorch_lora_weights.safetensors", "other.safetensors"]])
def test_of_a_folder_the_only_file_or_the_one_with_diffusers_name_is_taken(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write(tmp_path / name, PAIR)
    (tmp_path / "README.md").write_text("")
    ((path, name, weight),) = locate_loras(f"{tmp_path}:0.5", tmp_path)
    assert (path, name, weight) == (tmp_path / names[0], tmp_path.name, 0.5)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("nowhere", r"There is no file or folder .*nowhere\. Check TURBO_LORA"),
        ("nowhere.safetensors", r"There is no file .*nowhere\.safetensors"),
        ("two", r"two has several \.safetensors files\. Name one file in TURBO_LORA"),
        ("pickle.ckpt", r"pickle\.ckpt is not a \.safetensors file\. Pickles can run code"),
    ],
)
def test_a_missing_or_ambiguous_file_is_a_clear_error(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "two").mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        write(tmp_path / "two" / name, PAIR)
    (tmp_path / "pickle.ckpt").write_bytes(b"")
    with pytest.raises(WeightsError, match=reason):
        locate_loras(str(tmp_path / place), tmp_path)


def test_the_only_file_of_a_repository_is_pulled() -> None:
    assert LORA.choose(["README.md", "style.safetensors", "deep/other.safetensors"]) == {"style.safetensors"}
    assert LORA.choose(["a.safetensors", "b.safetensors"]) == set()


@pytest.mark.parametrize("source", ["hf"], indirect=True)
def test_one_pull_brings_the_model_and_the_loras_and_records_them(
    hub: LocalHub, pull: StartPull, weights: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "style"
    folder.mkdir()
    write_lora(folder / "style.safetensors", tiny_folder, naming="kohya")
    shutil.copy(folder / "style.safetensors", folder / "other.safetensors")
    hub.folders[NAME] = folder
    pull("demo", TURBO_LORA=f"hf:{NAME}:style.safetensors:0.5").succeeds()
    assert hub.downloads == {f"{NAME}/style.safetensors": 1}
    (lora,) = locate_loras(f"hf:{NAME}:style.safetensors:0.8", weights)
    assert lora.path.read_bytes() == (folder / "style.safetensors").read_bytes()
    assert (lora.name, lora.weight) == ("style", 0.8)
    lora.path.resolve().chmod(0o644)
    lora.path.resolve().write_bytes(b"x" * lora.path.stat().st_size)
    with pytest.raises(WeightsError, match=r"style\.safetensors is damaged: its SHA-256"):
        locate_loras(f"hf:{NAME}:style.safetensors", weights)
