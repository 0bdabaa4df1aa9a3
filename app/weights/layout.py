"""Looks a folder of weights through before it is loaded: is it SDXL-Turbo in diffusers' format, and is it whole?"""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from app.errors import WeightsError

PIPELINE_CLASS = "StableDiffusionXLPipeline"

FILE_PATTERNS = ("model_index.json", "*/*.json", "*/*.txt", "*/*.fp16.safetensors")
"""The files that serving needs, as `is_needed` reads them: configs, tokenizers and fp16 safetensors.

Pickles, fp32 weights and single-file checkpoints in a repository's root are none of them.
"""

_SCHEDULER_CLASS = "EulerAncestralDiscreteScheduler"
"""What SDXL-Turbo's repository names; others are not what its one step was trained for."""

_TOKENIZERS = ("tokenizer", "tokenizer_2")
_MODELS = ("text_encoder", "text_encoder_2", "unet", "vae")
_LENGTH_BYTES = 8  # a safetensors file begins with its header's length as a little-endian u64


def is_needed(path: str) -> bool:
    """Return whether serving needs the file with this path in a repository.

    A pattern matches paths of its own depth only: unlike `fnmatch`'s, its `*` does not match a `/`.
    """
    names = path.split("/")
    if not {"", ".", ".."}.isdisjoint(names):  # another folder's file
        return False
    return any(
        len(wanted) == len(names) and all(map(fnmatchcase, names, wanted))
        for wanted in (pattern.split("/") for pattern in FILE_PATTERNS)
    )


def check_layout(folder: Path) -> None:
    """Check that `folder` is a complete SDXL-Turbo pipeline.

    Raises:
        WeightsError: Naming the file at fault and what to do.
    """
    if not folder.is_dir():
        raise WeightsError(f"There is no folder {folder}. Check TURBO_MODEL.")
    _check_index(folder / "model_index.json")
    for path in sorted(folder.glob("*/*.json")):
        _read_json(path)
    _check_scheduler(folder / "scheduler")
    for name in _TOKENIZERS:
        _check_tokenizer(folder / name)
    for name in _MODELS:
        _check_model(folder / name)


def _check_index(path: Path) -> None:
    index = _read_json(path)
    if (found := index.get("_class_name")) != PIPELINE_CLASS:
        raise WeightsError(f"{path} is of class {found}, not {PIPELINE_CLASS}: only SDXL-Turbo runs here.")
    named = index.get("scheduler")
    scheduler = named[-1] if isinstance(named, list) and named else named
    if scheduler != _SCHEDULER_CLASS:
        raise WeightsError(f"{path} names the scheduler {scheduler}. SDXL-Turbo needs {_SCHEDULER_CLASS}.")


def _check_scheduler(folder: Path) -> None:
    path = folder / "scheduler_config.json"
    spacing = _read_json(path).get("timestep_spacing")
    if spacing != "trailing":
        raise WeightsError(
            f"{path} has timestep_spacing {spacing!r}. SDXL-Turbo needs 'trailing', or its single step starts from the "
            "wrong noise level. Use the scheduler that SDXL-Turbo's repository ships."
        )


def _check_tokenizer(folder: Path) -> None:
    _require(folder / "tokenizer_config.json")
    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            _require(folder / name)


def _check_model(folder: Path) -> None:
    _require(folder / "config.json")
    files = sorted(folder.glob("*.fp16.safetensors"))
    if not files:
        raise WeightsError(
            f"{folder} has no *.fp16.safetensors. Pull again, or export the weights with "
            'save_pretrained(variant="fp16").'
        )
    for path in files:
        _check_safetensors(path)


def _check_safetensors(path: Path) -> None:
    """Check that the file is as long as its header says."""
    size_bytes = path.stat().st_size
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(min(header_bytes, size_bytes)))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        whole = _LENGTH_BYTES + header_bytes + max(entry["data_offsets"][1] for entry in tensors)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsError(f"{path} is damaged: its header cannot be read. Delete it and pull again.") from error
    if whole != size_bytes:
        raise WeightsError(
            f"{path} is damaged: it has {size_bytes} bytes where {whole} belong. Delete it and pull again."
        )


def _read_json(path: Path) -> dict[str, Any]:
    _require(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged: it is not JSON. Delete it and pull again.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is damaged: it is not a JSON object. Delete it and pull again.")
    return content


def _require(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"{path} is missing. Pull the weights again, or check TURBO_MODEL.")
