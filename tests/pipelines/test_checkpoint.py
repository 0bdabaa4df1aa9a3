import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoPipelineForText2Image, EulerAncestralDiscreteScheduler
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from app.errors import WeightsError
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import LoadedPipelines, Mode
from app.pipelines.checkpoint import MODELS, count_parameters, open_checkpoint
from app.pipelines.sdxl_turbo import load_sdxl_turbo
from app.settings import Settings
from app.weights.layout import SINGLE_FILE_CONFIGS, check_model
from benchmarks.full_size import FULL, make_models, write_tokenizer
from tests.support.single_file import write_single_file

PARAMS = Txt2ImgParams(prompt="a cat", seed=1, num_inference_steps=2, width=96, height=64)


def load(place: Path, **options: Any) -> LoadedPipelines:
    configs = options.pop("configs", SINGLE_FILE_CONFIGS)
    vae_folder = options.pop("vae_folder", None)
    settings = Settings(device="cpu", **options)
    return load_sdxl_turbo(place, settings, model="x", configs=configs, vae_folder=vae_folder)


def picture(loaded: LoadedPipelines) -> bytes:
    (made,) = loaded.by_mode[Mode.TXT2IMG]([PARAMS])
    return made.pixels.tobytes()


@pytest.fixture(scope="module")
def expected(tiny_folder: Path) -> bytes:
    return picture(load(tiny_folder))


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture(scope="module")
def single(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_single_file(tiny_folder, tmp_path_factory.mktemp("single") / "turbo.safetensors")


def changed_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# A single file.


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_single_file_gives_the_bytes_of_the_folder_with_the_same_weights(
    single: Path, tiny_folder: Path, dtype: str
) -> None:
    assert picture(load(single, configs=tiny_folder, dtype=dtype)) == picture(load(tiny_folder, dtype=dtype))


def test_a_single_file_in_fp32_gives_the_same_bytes(tiny_folder: Path, tmp_path: Path, expected: bytes) -> None:
    path = write_single_file(tiny_folder, tmp_path / "turbo.safetensors", dtype=torch.float32)
    assert picture(load(path, configs=tiny_folder)) == expected


def test_a_single_file_in_bf16_gives_the_bytes_of_the_folder_rounded_to_it(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*/*.safetensors"):
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    single = write_single_file(folder, tmp_path / "turbo.safetensors", dtype=torch.bfloat16)
    assert picture(load(single, configs=folder)) == picture(load(folder))


def test_a_single_file_without_a_vae_is_served_with_another(
    single: Path, tiny_folder: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    tensors = {name: tensor for name, tensor in load_file(single).items() if not name.startswith("first_stage_model.")}
    save_file(tensors, path := tmp_path / "turbo.safetensors")
    check_model(path)
    made = picture(load(path, configs=tiny_folder, vae_folder=tiny_vae))
    assert made == picture(load(tiny_folder, vae_folder=tiny_vae))
    with pytest.raises(WeightsError, match=r"turbo\.safetensors/vae lacks \d+ of the model's tensors, such as decoder"):
        load(path, configs=tiny_folder)


def test_a_single_file_that_says_that_its_unet_predicts_velocity_is_denoised_so(
    folder: Path, tmp_path: Path, expected: bytes
) -> None:
    path = write_single_file(folder, tmp_path / "v.safetensors", metadata={"modelspec.prediction_type": "v"})
    made = picture(load(path, configs=folder))
    changed_json(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert made == picture(load(folder))
    assert made != expected


def test_a_file_s_parameters_are_counted_as_the_folder_s(single: Path, tiny_folder: Path) -> None:
    checkpoint = open_checkpoint(single, MODELS, configs=tiny_folder)
    counted = {name: checkpoint.parameters(name) for name in MODELS}
    assert counted["unet"] == count_parameters(tiny_folder / "unet")
    assert counted["vae"] == count_parameters(tiny_folder / "vae")


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (
            "model.diffusion_model.middle_block.1.norm.weight",
            r"/unet lacks 1 .* as mid_block\.attentions\.0\.norm",
        ),
        ("model.diffusion_model.label_emb.0.0.weight", r"lacks 'label_emb\.0\.0\.weight' of the unet"),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", r"/text_encoder lacks 1 "),
        ("conditioner.embedders.1.model.transformer.resblocks.1", r"/text_encoder_2 lacks 16 "),
        ("first_stage_model.decoder.mid", r"/vae lacks \d+ "),
    ],
)
def test_a_file_without_some_tensors_is_rejected_with_an_example(
    single: Path, tiny_folder: Path, tmp_path: Path, part: str, reason: str
) -> None:
    tensors = {name: tensor for name, tensor in load_file(single).items() if not name.startswith(part)}
    save_file(tensors, path := tmp_path / "turbo.safetensors")
    with pytest.raises(WeightsError, match=reason):
        load(path, configs=tiny_folder)


def test_a_file_with_a_tensor_of_another_shape_is_rejected_before_its_data_is_read(
    single: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(single)
    tensors["model.diffusion_model.out.2.bias"] = torch.zeros(5)
    save_file(tensors, path := tmp_path / "turbo.safetensors")
    with pytest.raises(WeightsError, match=r"architecture: unet conv_out\.bias has the shape \(5,\) and not \(4,\)"):
        open_checkpoint(path, MODELS, configs=tiny_folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "another VAE"])
def test_a_folder_with_a_tensor_of_another_shape_is_named_with_the_tensor_and_both_shapes(
    folder: Path, tiny_vae: Path, tmp_path: Path, part: str
) -> None:
    vae_folder = shutil.copytree(tiny_vae, tmp_path / "other") if part == "another VAE" else None
    place = vae_folder or folder / part
    path = next(place.glob("*.safetensors"))
    tensors = load_file(path)
    name = min(tensors)
    tensors[name] = torch.zeros(5)
    save_file(tensors, path, metadata={"format": "pt"})
    reason = rf"^{place} does not fit its config\.json: \S*{name} has the shape \(5,\) and not \(\d+.*\)\.$"
    with pytest.raises(WeightsError, match=reason):
        load(folder, vae_folder=vae_folder)


def test_a_number_format_that_torch_cannot_convert_is_an_error_that_names_the_file(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F16"', b'"U16"'))
    with pytest.raises(WeightsError, match=rf"^{path}: \S+ has the number format U16, which is not supported\.$"):
        load(folder)


@pytest.mark.parametrize("name", MODELS)
def test_the_package_s_configs_have_the_sizes_of_the_full_size_model(name: str) -> None:
    with torch.device("meta"):
        model = make_models(FULL)[name]()
    packaged = json.loads((SINGLE_FILE_CONFIGS / name / "config.json").read_text())
    versions = {"_diffusers_version", "transformers_version", "architectures", "dtype", "_class_name"}
    config = json.loads(model.to_json_string() if hasattr(model, "to_json_string") else model.config.to_json_string())
    assert {key: value for key, value in packaged.items() if key not in versions}.items() <= {
        key: value for key, value in config.items() if key not in versions
    }.items()


@pytest.mark.parametrize(("name", "pad"), [("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")])
def test_a_single_file_s_tokenizers_give_the_ids_of_the_hub_s_files(
    single: Path, tiny_folder: Path, tmp_path: Path, name: str, pad: str
) -> None:
    configs = shutil.copytree(tiny_folder, tmp_path / "configs", ignore=shutil.ignore_patterns("tokenizer*"))
    made = open_checkpoint(single, MODELS, configs=configs).surroundings(turbo_scheduler=False)[name]
    write_tokenizer(tmp_path / name, pad=pad)
    theirs = CLIPTokenizer.from_pretrained(tmp_path / name)
    prompts = ["", "a cat", "Ein Häuschen im 3. Stock, 20°!", "猫 と 犬", "!!! <|endoftext|> x", "a " * 100]
    options = {"padding": "max_length", "max_length": 77, "truncation": True}
    assert made(prompts, **options).input_ids == theirs(prompts, **options).input_ids
    assert made(prompts).input_ids == theirs(prompts).input_ids
    assert made.model_max_length == theirs.model_max_length


# What is loaded.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_models_have_the_bytes_that_the_libraries_load(tiny_folder: Path, dtype: torch.dtype) -> None:
    assert_loaded_as_by_the_libraries(tiny_folder, dtype)


def test_a_model_whose_tensors_have_the_names_of_older_libraries_is_loaded_too(folder: Path) -> None:
    path = next((folder / "vae").glob("*.safetensors"))
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for new, old in older.items():
        tensors = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in tensors.items()}
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    assert_loaded_as_by_the_libraries(folder, torch.float32)


def assert_loaded_as_by_the_libraries(folder: Path, dtype: torch.dtype) -> None:
    name = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    loaded: Any = load(folder, dtype=name, vae_dtype=name, channels_last="off").by_mode[Mode.TXT2IMG]
    expected: Any = AutoPipelineForText2Image.from_pretrained(folder, variant="fp16", dtype=dtype)
    for part in MODELS:
        own, theirs = getattr(loaded.pipe, part), getattr(expected, part)
        tensors = own.state_dict()
        assert tensors.keys() == theirs.state_dict().keys()
        for key, tensor in theirs.state_dict().items():
            assert tensor.dtype == tensors[key].dtype
            assert torch.equal(tensor, tensors[key])
        assert not own.training


# Folders of fine-tunes.


def without_fp16(folder: Path, *, shards: bool) -> None:
    pipe = AutoPipelineForText2Image.from_pretrained(folder, variant="fp16", dtype=torch.float32)
    for name in MODELS:
        shutil.rmtree(folder / name)
        getattr(pipe, name).save_pretrained(folder / name, **({"max_shard_size": "200KB"} if shards else {}))


@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_without_fp16_weights_gives_the_same_bytes_and_says_so_in_one_line(
    folder: Path, expected: bytes, caplog: pytest.LogCaptureFixture, *, shards: bool
) -> None:
    without_fp16(folder, shards=shards)
    check_model(folder)
    assert bool(list(folder.glob("unet/*.index.json"))) == shards
    with caplog.at_level("INFO", "app"):
        assert picture(load(folder)) == expected
    (line,) = [message for message in caplog.messages if "fp16" in message]
    assert line.endswith("has no fp16 weights of text_encoder, text_encoder_2, unet, vae; the others are read")


def test_parameters_are_counted_whatever_their_format(folder: Path) -> None:
    counted = [count_parameters(folder / name) for name in MODELS]
    without_fp16(folder, shards=False)
    assert [count_parameters(folder / name) for name in MODELS] == counted


def other_scheduler(folder: Path, **changes: object) -> None:
    name = "DPMSolverMultistepScheduler"
    changed_json(
        folder / "scheduler" / "scheduler_config.json", _class_name=name, timestep_spacing="leading", **changes
    )
    changed_json(folder / "model_index.json", scheduler=["diffusers", name])


def test_with_turbo_s_scheduler_a_fine_tune_with_another_gives_the_same_bytes(folder: Path, expected: bytes) -> None:
    other_scheduler(folder)
    assert picture(load(folder, scheduler="turbo")) == expected


def test_turbo_s_scheduler_leaves_what_the_unet_predicts_to_the_model(folder: Path) -> None:
    other_scheduler(folder, prediction_type="v_prediction")
    pipe: Any = load(folder, scheduler="turbo").by_mode[Mode.TXT2IMG]
    own = EulerAncestralDiscreteScheduler.load_config(SINGLE_FILE_CONFIGS / "scheduler")
    changed = {key for key, value in own.items() if pipe.pipe.scheduler.config.get(key) != value}
    assert changed == {"prediction_type"}
    assert pipe.pipe.scheduler.config.prediction_type == "v_prediction"
