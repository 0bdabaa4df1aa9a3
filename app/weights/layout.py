"""Checks before loading that a folder has all files of SDXL-Turbo in diffusers' format."""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from app.errors import WeightsError

PIPELINE_CLASS = "StableDiffusionXLPipeline"

FILE_PATTERNS = ("model_index.json", "*/*.json", "*/*.txt", "*/*.fp16.safetensors", "*/*.fp16-*.safetensors")
"""Files that serving needs (see `is_needed`), without pickles, fp32 weights and single-file checkpoints.

The last pattern is for weights in several files (shards), as `save_pretrained` names them with variant `fp16`.
"""

_SCHEDULER_CLASS = "EulerAncestralDiscreteScheduler"
"""The scheduler of SDXL-Turbo's repository. The model was trained for its single step."""

_TOKENIZERS = ("tokenizer", "tokenizer_2")
_MODELS = ("text_encoder", "text_encoder_2", "unet", "vae")


def is_needed(path: str) -> bool:
    """Return whether serving needs the file with this path in a repository. In a pattern, `*` does not match a `/`."""
    if not {"", ".", ".."}.isdisjoint(path.split("/")):  # it could lead out of the folder
        return False
    slashes = path.count("/")
    return any(pattern.count("/") == slashes and fnmatchcase(path, pattern) for pattern in FILE_PATTERNS)


def check_layout(folder: Path) -> None:
    """Check that `folder` is a complete SDXL-Turbo pipeline.

    Raises:
        WeightsError: A file is missing or wrong. The text names the file and says what to do.
    """
    if not folder.is_dir():
        raise WeightsError(f"There is no folder {folder}. Check TURBO_MODEL.")
    _check_index(folder / "model_index.json")
    for path in sorted(folder.glob("*/*.json")):
        _read_json(path)
    _check_scheduler(folder / "scheduler" / "scheduler_config.json")
    for name in _TOKENIZERS:
        _require(folder / name / "tokenizer_config.json")
        if not (folder / name / "tokenizer.json").is_file():
            _require(folder / name / "vocab.json")
            _require(folder / name / "merges.txt")
    for name in _MODELS:
        _check_model(folder / name)


def _check_index(path: Path) -> None:
    index = _read_json(path)
    if (found := index.get("_class_name")) != PIPELINE_CLASS:
        raise WeightsError(f"{path} is of class {found}, not {PIPELINE_CLASS}: only SDXL-Turbo can be served.")
    named = index.get("scheduler")
    scheduler = named[-1] if isinstance(named, list) and named else named
    if scheduler != _SCHEDULER_CLASS:
        raise WeightsError(f"{path} names the scheduler {scheduler}. SDXL-Turbo needs {_SCHEDULER_CLASS}.")


def _check_scheduler(path: Path) -> None:
    spacing = _read_json(path).get("timestep_spacing")
    if spacing != "trailing":
        raise WeightsError(
            f"{path} has timestep_spacing {spacing!r}. SDXL-Turbo needs 'trailing', or its single step starts from the "
            "wrong noise level. Use the scheduler of SDXL-Turbo's repository."
        )


def _check_model(folder: Path) -> None:
    _require(folder / "config.json")
    files = {*folder.glob("*.fp16.safetensors"), *_shards(folder)}
    if not files:
        raise WeightsError(
            f"{folder} has no *.fp16.safetensors. Pull again, or export the weights with "
            'save_pretrained(variant="fp16").'
        )
    for path in sorted(files):
        _require(path)
        try:
            with path.open("rb"), safe_open(path, framework="numpy"):  # checks the header, and the length by it
                pass
        except SafetensorError as error:
            raise WeightsError(f"{path} is damaged: {error}. Delete it and pull again.") from error


def _shards(folder: Path) -> Iterator[Path]:
    """Yield the files that the index of sharded weights names. Without an index, the libraries do not load them."""
    for path in folder.glob("*.safetensors.index.fp16.json"):
        file_by_tensor = _read_json(path).get("weight_map")
        if not isinstance(file_by_tensor, dict) or not file_by_tensor:
            raise WeightsError(f"{path} is damaged: its weight_map names no files. Delete it and pull again.")
        yield from (folder / str(name) for name in file_by_tensor.values())


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
