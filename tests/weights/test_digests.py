"""Weights are verified while they are loaded."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from app.errors import WeightsError
from app.inference.start_progress import StartProgress
from app.main import load_model
from app.pipelines.base import LoadedPipelines
from app.settings import Settings
from app.weights.digests import Digests
from app.weights.layout import MODEL, files_to_serve
from tests.support.lora import write_lora

UNET = "unet/diffusion_pytorch_model.fp16.safetensors"


def load(model: str, weights: Path, **options: object) -> LoadedPipelines:
    settings = Settings.model_validate({"model": model, "weights_dir": weights, "device": "cpu", **options})
    return load_model(settings, StartProgress())


@pytest.fixture
def weights(tiny_folder: Path, tmp_path: Path) -> Path:
    """A weights folder with a pulled model in it."""
    folder = shutil.copytree(tiny_folder, tmp_path / "weights" / "turbo")
    files = {
        name: {"size_bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in files_to_serve(folder, MODEL).items()
    }
    record = {"folder": "turbo", "files": files}
    (tmp_path / "weights" / "hf--owner--turbo--main.json").write_text(json.dumps(record))
    return tmp_path / "weights"


@pytest.mark.parametrize("at", ["tensor", "header"])
def test_a_start_with_a_damaged_byte_fails_and_names_the_file_and_the_remedy(weights: Path, at: str) -> None:
    path = weights / "turbo" / UNET
    content = bytearray(path.read_bytes())
    content[-1 if at == "tensor" else content.index(b"weight")] ^= 1
    path.write_bytes(content)
    reason = rf"{UNET} is damaged: its SHA-256 is not that of the pulled file\. Run `python -m app pull`\."
    with pytest.raises(WeightsError, match=reason):
        load("hf:owner/turbo", weights)


def test_the_digest_of_the_weights_is_that_of_the_names_and_digests_of_all_files(weights: Path) -> None:
    loaded = load("hf:owner/turbo", weights)
    files = files_to_serve(weights / "turbo", MODEL)
    assert UNET in files
    assert "model_index.json" in files
    lines = sorted(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for name, path in files.items())
    assert loaded.weights_sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_same_files_have_the_same_digest_wherever_they_are(weights: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(weights / "turbo", tmp_path / "copy")
    (copy / "README.md").write_text("not served")
    (copy / "unet" / "notes.txt").symlink_to("nowhere")
    assert load(str(copy), weights).weights_sha256 == load("hf:owner/turbo", weights).weights_sha256


def test_weights_in_shards_with_any_names_are_in_the_digest(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    tensors = load_file(folder / UNET)
    (folder / UNET).unlink()
    shard = folder / "unet" / "part.safetensors"
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard.name)}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    digests = set()
    for change in (0, 1):
        save_file({name: tensor + change for name, tensor in tensors.items()}, shard, metadata={"format": "pt"})
        digests.add(load(str(folder), tmp_path).weights_sha256)
    assert len(digests) == 2


def test_a_known_fault_is_reported_before_other_files_are_read(tmp_path: Path) -> None:
    damaged, unreadable = tmp_path / "damaged", tmp_path / "missing"
    digests = Digests()
    for path in (unreadable, damaged):
        digests.expect(path, "0" * 64)
    with pytest.raises(WeightsError, match="damaged is damaged"):
        digests.add(damaged, "1" * 64)
    with pytest.raises(WeightsError, match="damaged is damaged"):
        digests.check()
    with pytest.raises(WeightsError, match=r"missing cannot be read: No such file or directory\."):
        digests.check([unreadable])


def test_another_vae_or_lora_has_another_digest(weights: Path, tmp_path: Path) -> None:
    model = str(weights / "turbo")
    own = load(model, weights).weights_sha256
    same = shutil.copytree(weights / "turbo" / "vae", tmp_path / "vae")
    assert load(model, weights, vae=str(same)).weights_sha256 == own
    path = next(same.glob("*.safetensors"))
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    other = load(model, weights, vae=str(same)).weights_sha256
    style = write_lora(tmp_path / "lora.safetensors", weights / "turbo", naming="peft")
    lora = load(model, weights, lora=str(style)).weights_sha256
    assert len({own, other, lora}) == 3


def test_a_damaged_lora_of_a_hub_is_named(weights: Path) -> None:
    path = write_lora(weights / "lora.safetensors", weights / "turbo", naming="peft")
    content = path.read_bytes()
    record = {"folder": ".", "files": {path.name: {"size_bytes": len(content), "sha256": "0" * 64}}}
    (weights / "lora--hf--owner--style--main.json").write_text(json.dumps(record))
    with pytest.raises(WeightsError, match=rf"{path.name} is damaged: its SHA-256"):
        load("hf:owner/turbo", weights, lora="hf:owner/style")
