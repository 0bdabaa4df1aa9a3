import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from app.errors import WeightsError
from app.weights.layout import check_model
from app.weights.safetensors_header import Header, read_header
from app.weights.single_file import check_single_file, predicts_velocity
from app.weights.source import HubSource, LocalSource
from app.weights.store import locate
from app.weights.vocabulary import read_merges, words
from tests.support.single_file import write_single_file
from tests.weights.conftest import NO_NETWORK, StartPull, only_hugging_face
from tests.weights.local_hub import REPOSITORY, LocalHub

UNET = "model.diffusion_model.input_blocks.0.0.weight"
SDXL = {
    UNET: (1, 4, 1, 1),
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (1,),
    "conditioner.embedders.1.model.ln_final.weight": (1,),
    "first_stage_model.encoder.conv_in.weight": (1,),
}
SDXL_S_ARCHITECTURE = {"architecture": "stable-diffusion-xl-v1-base"}


def write(path: Path, shapes: Mapping[str, tuple[int, ...]], **metadata: str) -> Path:
    named = {f"modelspec.{name}": value for name, value in metadata.items()}
    save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, path, metadata=named)
    return path


def without(*prefixes: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in SDXL.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("shapes", "metadata", "kind"),
    [
        ({UNET: (1, 4, 1, 1), "cond_stage_model.transformer.text_model.x": (1,)}, {}, "is Stable Diffusion 1"),
        ({UNET: (1, 4, 1, 1), "cond_stage_model.model.ln_final.weight": (1,)}, {}, "is Stable Diffusion 2"),
        ({UNET: (1, 4, 1, 1), "conditioner.embedders.0.model.ln_final.weight": (1,)}, {}, "is SDXL's refiner"),
        (SDXL | {UNET: (1, 9, 1, 1)}, {}, "is an inpainting or editing model, whose UNet has 9 input channels"),
        ({"model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": (1,)}, {}, "is Flux"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (1,)}, {}, "is Flux"),
        ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (1,)}, {}, "is Stable Diffusion 3"),
        (SDXL | {"edm_mean": (4,)}, {}, r"is Playground v2\.5"),
        ({"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": (1,)}, {}, "is a LoRA, .* TURBO_LORA"),
        ({"unet.down_blocks.1.attentions.0.proj_in.lora_A.weight": (1,)}, {}, "is a LoRA, .* TURBO_LORA"),
        ({"unet.up_blocks.0.attentions.0.to_q.lora.down.weight": (1,)}, {}, "is a LoRA, .* TURBO_LORA"),
        ({"control_model.input_blocks.0.0.weight": (1,)}, {}, "is a ControlNet"),
        (without("conditioner."), {}, "is a UNet alone"),
        (without("conditioner.", "first_stage_model."), {}, "is a UNet alone"),
        ({"down_blocks.0.resnets.0.conv1.weight": (1,)}, {}, "is a UNet alone"),
        (without("conditioner.", "model."), {}, "is a VAE alone, .* TURBO_VAE"),
        ({"decoder.up.0.block.0.conv1.weight": (1,)}, {}, "is a VAE alone, .* TURBO_VAE"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": (1,)}, {}, "is a text encoder alone"),
        ({"string_to_param": (1,)}, {}, "is no model of generative-models' layout"),
        (
            SDXL,
            {"title": "Stable Diffusion XL 1.0 Base", **SDXL_S_ARCHITECTURE},
            r"is SDXL's base model, .* Name sd_xl_turbo_1\.0_fp16\.safetensors",
        ),
    ],
)
def test_another_model_is_rejected_by_its_name(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str], kind: str
) -> None:
    with pytest.raises(WeightsError, match=rf"other\.safetensors {kind}"):
        check_model(write(tmp_path / "other.safetensors", shapes, **metadata))


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"title": "Stable Diffusion XL 1.0 Turbo", "architecture": "stable-diffusion-xl-turbo-v1"},
        {"title": "dreamshaperXL_turbo", "architecture": "stable-diffusion-xl-v1-base"},
    ],
)
def test_sdxl_turbo_and_fine_tunes_that_keep_the_base_s_architecture_in_the_metadata_pass(
    tmp_path: Path, metadata: dict[str, str]
) -> None:
    check_single_file(write(tmp_path / "turbo.safetensors", SDXL, **metadata))


def test_a_file_without_a_vae_passes_as_turbo_vae_may_name_one(tmp_path: Path) -> None:
    check_single_file(write(tmp_path / "turbo.safetensors", without("first_stage_model.")))


def test_a_number_format_that_needs_scales_of_its_own_is_rejected(tmp_path: Path) -> None:
    path = write(tmp_path / "fp8.safetensors", SDXL)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[UNET] |= {"dtype": "F8_E4M3", "shape": [2, 4, 1, 1]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(WeightsError, match=r"has weights in F8_E4M3\. Only fp16, bf16 and fp32"):
        check_single_file(path)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: path.unlink(), r"There is no file .*turbo\.safetensors"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"turbo\.safetensors is damaged"),
        (lambda path: path.write_bytes(b"version https://git-lfs"), r"turbo\.safetensors is damaged"),
        (lambda path: path.write_bytes(b""), r"turbo\.safetensors is damaged"),
    ],
)
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, harm: Callable[[Path], object], reason: str) -> None:
    path = write(tmp_path / "turbo.safetensors", SDXL)
    harm(path)
    with pytest.raises(WeightsError, match=reason):
        locate(LocalSource(path), tmp_path)


def test_a_pickle_is_rejected_unread(tmp_path: Path) -> None:
    path = tmp_path / "turbo.ckpt"
    path.write_bytes(b"\x80")
    with pytest.raises(WeightsError, match=r"There is no folder .*A file must end in \.safetensors: pickles can run"):
        locate(LocalSource(path), tmp_path)


@pytest.mark.parametrize(
    ("names", "metadata", "expected"),
    [
        ([], {}, False),
        (["v_pred"], {}, True),
        ([], {"modelspec.prediction_type": "v"}, True),
        ([], {"modelspec.prediction_type": "epsilon"}, False),
    ],
)
def test_a_file_can_say_that_its_unet_predicts_velocity(
    names: list[str], metadata: dict[str, str], expected: bool
) -> None:
    assert predicts_velocity(Header(dict.fromkeys(names, ()), {}, metadata)) == expected


# From a hub.


def test_pull_brings_one_file_alone_verifies_it_and_needs_the_hub_only_once(
    hub: LocalHub, pull: StartPull, source: HubSource, weights: Path, tiny_folder: Path
) -> None:
    path = hub.folder / "deeper" / "turbo.safetensors"
    path.parent.mkdir()
    write_single_file(tiny_folder, path)
    name = f"{source.hub}:{REPOSITORY}:deeper/turbo.safetensors"
    pull(name).succeeds()
    assert hub.downloads == {"deeper/turbo.safetensors": 1}
    one = HubSource(source.hub, REPOSITORY, file="deeper/turbo.safetensors")
    located = locate(one, weights)
    assert located.read_bytes() == path.read_bytes()
    hub.stop()
    pull(name, prelude=NO_NETWORK).succeeds()
    data = bytearray(located.read_bytes())
    data[-1] ^= 1
    located.resolve().chmod(0o644)
    located.resolve().write_bytes(data)
    with pytest.raises(WeightsError, match=r"turbo\.safetensors is damaged: its SHA-256"):
        locate(one, weights)


@only_hugging_face
def test_a_file_that_the_repository_lacks_is_an_error_with_those_that_it_has(hub: LocalHub, pull: StartPull) -> None:
    shutil.rmtree(hub.folder)
    hub.folder.mkdir()
    (hub.folder / "turbo.safetensors").write_bytes(b"x")
    reason = pull(f"hf:{REPOSITORY}:trubo.safetensors").fails()
    assert f"hf:{REPOSITORY}:trubo.safetensors@main is not there. The repository has turbo.safetensors." in reason


@only_hugging_face
def test_a_pulled_file_of_another_model_is_rejected_by_its_name(hub: LocalHub, pull: StartPull) -> None:
    write(hub.folder / "vae.safetensors", without("conditioner.", "model."))
    assert "is a VAE alone" in pull(f"hf:{REPOSITORY}:vae.safetensors").fails()


# The vocabulary.


def test_the_package_s_vocabulary_is_clip_s() -> None:
    names = words(read_merges())
    assert len(names) == 49408
    assert (names.index("<|startoftext|>"), names.index("cat</w>"), names.index("!")) == (49406, 2368, 0)


def test_a_damaged_vocabulary_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "merges.txt.gz").write_bytes(b"x")
    with pytest.raises(WeightsError, match="Install the service again"):
        read_merges(tmp_path / "merges.txt.gz")


def test_the_header_of_a_file_has_the_shapes_formats_and_metadata(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "x.safetensors", {"a": (2, 3)}, title="T"))
    assert header == Header({"a": (2, 3)}, {"a": "F16"}, {"modelspec.title": "T"})
