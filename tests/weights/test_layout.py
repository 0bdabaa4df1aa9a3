import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import WeightsError
from app.weights.layout import MODEL, VAE, check_model, check_vae, model_layout
from tests.support.tiny_model import shard_unet

UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
UNET_INDEX = "unet/diffusion_pytorch_model.safetensors.index.fp16.json"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    return folder


@pytest.fixture
def sharded(folder: Path) -> Path:
    shard_unet(folder)
    return folder


def changed_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


NEEDED = {"model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"}
SHARDS = {f"unet/diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)}
PLAIN_UNET = UNET.replace(".fp16", "")
PLAIN_SHARDS = {name.replace(".fp16", "") for name in SHARDS}
PLAIN_INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ({UNET, PLAIN_UNET}, {UNET}),
        ({UNET_INDEX, *SHARDS, PLAIN_UNET}, {UNET_INDEX, *SHARDS}),
        ({PLAIN_UNET}, {PLAIN_UNET}),
        ({PLAIN_INDEX, *PLAIN_SHARDS}, {PLAIN_INDEX, *PLAIN_SHARDS}),
        ({PLAIN_UNET, "vae/model.fp16.safetensors"}, {PLAIN_UNET, "vae/model.fp16.safetensors"}),
        ({UNET, PLAIN_INDEX, *PLAIN_SHARDS}, {UNET, PLAIN_INDEX}),
    ],
    ids=["both", "shards in fp16", "plain", "plain shards", "one of each", "plain shards beside fp16"],
)
def test_configs_tokenizers_and_each_model_s_best_weights_are_pulled(there: set[str], chosen: set[str]) -> None:
    """An index beside other weights is a config as others: its kilobytes do no harm."""
    assert MODEL.choose(NEEDED | there) == NEEDED | chosen


@pytest.mark.parametrize(
    "path",
    [
        "sd_xl_turbo_1.0.fp16.safetensors",
        "config.json",
        "LICENSE.txt",
        "vae/model_index.json/old",
        "older/vae/config.json",
        "older/tokenizer/merges.txt",
        f"older/{UNET}",
        "older/model_index.json/config.json",
        f"/{UNET}",
        "../evil.json",
        "./model.json",
        "/x.json",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "vae/model.ckpt",
    ],
)
def test_single_file_checkpoints_deeper_folders_other_weights_and_pickles_are_not_pulled(path: str) -> None:
    assert MODEL.choose([path]) == set()


def test_a_whole_model_passes(folder: Path) -> None:
    check_model(folder)


def test_a_model_without_fp16_weights_passes(folder: Path) -> None:
    for path in folder.glob("*/*.fp16.safetensors"):
        path.rename(path.with_name(path.name.replace(".fp16", "")))
    check_model(folder)


def test_a_tokenizer_in_its_older_files_passes(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()
    check_model(folder)


def test_a_model_with_weights_in_several_files_passes_and_pull_gets_all_of_them(sharded: Path) -> None:
    check_model(sharded)
    files = [str(path.relative_to(sharded)) for path in sharded.glob("unet/*")]
    assert UNET not in files
    assert len(files) == 5  # three files, their index and the config
    assert MODEL.choose(files) == set(files)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda shards, _: shards[1].unlink(), r"model\.fp16-00002-of-00003\.safetensors is missing"),
        (lambda shards, _: shards[1].write_bytes(b""), r"fp16-00002-of-00003\.safetensors is damaged"),
        (lambda _, index: index.unlink(), r"unet has no diffusion_pytorch_model\.fp16\.safetensors"),
        (lambda _, index: index.write_text("{}"), r"index\.fp16\.json is damaged: its weight_map names no files"),
        (lambda _, index: changed_json(index, weight_map=[1]), r"index\.fp16\.json is damaged: its weight_map"),
        (lambda _, index: changed_json(index, weight_map={"x": 1}), r"unet/1 is missing"),
        (lambda _, index: changed_json(index, weight_map={"x": "../a"}), r"names \.\./a, and shards must"),
    ],
)
def test_each_fault_of_weights_in_several_files_is_an_error_that_names_the_file(
    sharded: Path, harm: Callable[[list[Path], Path], object], reason: str
) -> None:
    harm(sorted(sharded.glob("unet/*.safetensors")), sharded / UNET_INDEX)
    with pytest.raises(WeightsError, match=reason):
        check_model(sharded)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (shutil.rmtree, r"There is no folder .*model"),
        (lambda folder: (folder / "model_index.json").unlink(), r"model_index\.json is missing"),
        (lambda folder: (folder / "model_index.json").write_text("{"), r"model_index\.json is damaged: .* not JSON"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), r"model_index\.json is damaged"),
        (
            lambda folder: changed_json(folder / "model_index.json", _class_name="FluxPipeline"),
            r"model_index\.json is of class FluxPipeline, not StableDiffusionXLPipeline",
        ),
        (
            lambda folder: changed_json(folder / "scheduler/scheduler_config.json", timestep_spacing="leading"),
            r"scheduler_config\.json has timestep_spacing 'leading'\. .* TURBO_SCHEDULER=turbo",
        ),
        (lambda folder: (folder / "scheduler/scheduler_config.json").unlink(), r"scheduler_config\.json is missing"),
        (lambda folder: (folder / "tokenizer_2/tokenizer.json").unlink(), r"tokenizer_2/vocab\.json is missing"),
        (
            lambda folder: (folder / "tokenizer/tokenizer_config.json").unlink(),
            r"tokenizer/tokenizer_config\.json is missing",
        ),
        (lambda folder: (folder / "tokenizer/tokenizer.json").write_text("{"), r"tokenizer/tokenizer\.json is damaged"),
        (lambda folder: (folder / "model_index.json").write_text("[" * 100_000), r"model_index\.json is damaged"),
        (
            lambda folder: changed_json(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"]),
            r"names the scheduler DDIMScheduler\. SDXL-Turbo needs EulerAncestral.* TURBO_SCHEDULER=turbo",
        ),
        (lambda folder: (folder / "text_encoder/config.json").unlink(), r"text_encoder/config\.json is missing"),
        (lambda folder: (folder / UNET).unlink(), r"unet has no diffusion_pytorch_model\.fp16\.safetensors"),
        (
            lambda folder: (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.bin"),
            r"unet has no diffusion_pytorch_model\.fp16\.safetensors or .*, also not without \.fp16",
        ),
        (
            lambda folder: (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-1]),
            r"fp16\.safetensors is damaged: .*file not fully covered",
        ),
        (
            lambda folder: (folder / UNET).write_bytes((folder / UNET).read_bytes()[:100]),
            r"fp16\.safetensors is damaged: .*header",
        ),
        (lambda folder: (folder / UNET).write_bytes(b""), r"fp16\.safetensors is damaged"),
        (lambda folder: (folder / UNET).write_bytes(b"\xff" * 64), r"fp16\.safetensors is damaged"),
        (lambda folder: (folder / UNET).write_bytes(b"version https://git-lfs"), r"fp16\.safetensors is damaged"),
    ],
)
def test_each_fault_is_an_error_that_names_the_file(folder: Path, harm: Callable[[Path], object], reason: str) -> None:
    harm(folder)
    with pytest.raises(WeightsError, match=reason):
        check_model(folder)


def test_for_turbo_s_scheduler_the_model_may_have_any(folder: Path) -> None:
    changed_json(folder / "scheduler/scheduler_config.json", timestep_spacing="leading")
    changed_json(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    layout = model_layout("turbo")
    layout.check(folder)
    layout.check_main_config(folder / "model_index.json")
    changed_json(folder / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(WeightsError, match="is of class FluxPipeline"):
        layout.check_main_config(folder / "model_index.json")


# A VAE.

PLAIN, FP16 = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"


@pytest.mark.parametrize(
    ("others", "weights"),
    [
        ([PLAIN, "taesdxl_decoder.safetensors", "taesdxl_encoder.safetensors"], PLAIN),  # madebyollin/taesdxl
        ([PLAIN, "sdxl.vae.safetensors", "images/fix-fp16.png"], PLAIN),  # madebyollin/sdxl-vae-fp16-fix
        ([FP16], FP16),  # a copy of that
        ([PLAIN, FP16], FP16),
    ],
)
def test_of_a_vae_s_repository_the_config_and_one_file_of_weights_are_needed(others: list[str], weights: str) -> None:
    others += ["README.md", "diffusion_pytorch_model.bin", "vae/config.json", f"vae/{FP16}"]
    assert VAE.choose(["config.json", *others]) == {"config.json", weights}
    assert VAE.choose(others) == set()


def test_pickles_alone_are_no_vae() -> None:
    assert VAE.choose(["config.json", "diffusion_pytorch_model.bin", "taesdxl_decoder.pth"]) == set()


def test_a_whole_vae_passes(tiny_vae: Path, tiny_folder: Path) -> None:
    check_vae(tiny_vae)
    check_vae(tiny_folder / "vae")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (shutil.rmtree, r"There is no folder .*vae\. Check TURBO_VAE"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing\..* check TURBO_VAE"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is damaged"),
        (
            lambda folder: changed_json(folder / "config.json", _class_name="UNet2DConditionModel"),
            r"config\.json is of class UNet2DConditionModel\. TURBO_VAE needs AutoencoderKL or AutoencoderTiny",
        ),
        (
            lambda folder: changed_json(folder / "config.json", latent_channels=16),
            r"config\.json has 16 latent channels, and SDXL's VAE has 4",
        ),
        (lambda folder: (folder / PLAIN).unlink(), r"vae has no diffusion_pytorch_model\.safetensors"),
        (lambda folder: (folder / PLAIN).write_bytes(b"\xff" * 64), r"model\.safetensors is damaged"),
        (lambda folder: (folder / FP16).write_bytes(b""), r"model\.fp16\.safetensors is damaged"),
    ],
)
def test_each_fault_of_a_vae_is_an_error_that_names_the_file(
    tiny_vae: Path, tmp_path: Path, harm: Callable[[Path], object], reason: str
) -> None:
    folder = shutil.copytree(tiny_vae, tmp_path / "vae")
    harm(folder)
    with pytest.raises(WeightsError, match=reason):
        check_vae(folder)


def test_a_file_larger_than_the_address_space_is_a_lack_of_memory_and_no_damage(folder: Path) -> None:
    numbers = 2 << 30
    tensor = {"x": {"dtype": "F16", "shape": [numbers], "data_offsets": [0, 2 * numbers]}}
    header = json.dumps(tensor).encode()
    path = folder / UNET
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * numbers)  # takes no room on the disk
    code = f"""
from pathlib import Path
from app.errors import MemoryTooSmallError
from app.weights.layout import check_model
try:
    check_model(Path({str(folder)!r}))
except MemoryTooSmallError as error:
    print(error)
"""
    said = subprocess.check_output(["prlimit", f"--as={2 << 30}", sys.executable, "-c", code], text=True)
    assert said.startswith(f"{path} does not fit into memory: Cannot allocate memory")
