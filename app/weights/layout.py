"""The files that weights consist of, in diffusers' format: which to download, and checks of a folder before loading."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from app.errors import MemoryTooSmallError, WeightsError

PIPELINE_CLASS = "StableDiffusionXLPipeline"

FILE_PATTERNS = ("model_index.json", "*/*.json", "*/*.txt", "*/*.fp16.safetensors", "*/*.fp16-*.safetensors")
"""Files that serving needs (see `is_needed`), without pickles, fp32 weights and single-file checkpoints.

The last pattern is for weights in several files (shards), as `save_pretrained` names them with variant `fp16`.
"""

_SCHEDULER_CLASS = "EulerAncestralDiscreteScheduler"
"""The scheduler of SDXL-Turbo's repository. The model was trained for its single step."""

_WEIGHTS = ("diffusion_pytorch_model", "model")
"""How the names of a model's weights begin, as diffusers and transformers write them."""

_TOKENIZERS = ("tokenizer", "tokenizer_2")
_MODELS = ("text_encoder", "text_encoder_2", "unet", "vae")

_VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny")
_VAE_WEIGHTS = ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors")
"""Names of a VAE's weights, best first. Repositories also have the same weights as pickles and in other programs'
formats: the listings of https://huggingface.co/madebyollin/taesdxl and https://huggingface.co/stabilityai/sdxl-vae."""

_LATENT_CHANNELS = 4
"""Channels of SDXL's latents; also diffusers' default for both classes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one kind of weights.

    Attributes:
        setting: The setting that names the weights.
        files: The files that serving needs, in words.
        choose: Returns the files that serving needs out of a repository's, by their paths.
        main_config: The file that says of which class the weights are. If it is not chosen, the repository has others.
        check_main_config: Checks the class in that file, so that wrong weights need not be downloaded.
        check: Checks a folder. Both checks raise WeightsError; the text names the file and says what to do.
    """

    setting: str
    files: str
    choose: Callable[[Iterable[str]], set[str]]
    main_config: str
    check_main_config: Callable[[Path], None]
    check: Callable[[Path], None]


def is_needed(path: str) -> bool:
    """Return whether the model needs a repository's file with this path. In a pattern, `*` does not match a `/`."""
    if not {"", ".", ".."}.isdisjoint(path.split("/")):  # it could lead out of the folder
        return False
    slashes = path.count("/")
    return any(pattern.count("/") == slashes and fnmatchcase(path, pattern) for pattern in FILE_PATTERNS)


def _choose_model(paths: Iterable[str]) -> set[str]:
    return {path for path in paths if is_needed(path)}


def _choose_vae(paths: Iterable[str]) -> set[str]:
    present = set(paths)
    weights = next((name for name in _VAE_WEIGHTS if name in present), None)
    return {"config.json", weights} if weights and "config.json" in present else set()


def check_model(folder: Path) -> None:
    """Check that `folder` is a complete SDXL-Turbo pipeline.

    Raises:
        WeightsError: A file is missing or wrong. The text names the file and says what to do.
        MemoryTooSmallError: A file is larger than the memory that the process may use.
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
        _check_component(folder / name)


def check_vae(folder: Path) -> None:
    """Check that `folder` is a complete VAE for SDXL's latents.

    Raises:
        WeightsError: A file is missing or wrong. The text names the file and says what to do.
        MemoryTooSmallError: A file is larger than the memory that the process may use.
    """
    if not folder.is_dir():
        raise WeightsError(f"There is no folder {folder}. Check TURBO_VAE.")
    _check_vae_config(folder / "config.json")
    weights = next((path for name in _VAE_WEIGHTS if (path := folder / name).is_file()), None)
    if weights is None:
        raise WeightsError(f"{folder} has no {_VAE_WEIGHTS[1]}, which TURBO_VAE needs.")
    _check_safetensors(weights)


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


def _check_vae_config(path: Path) -> None:
    config = _read_json(path, setting="TURBO_VAE")
    if (found := config.get("_class_name")) not in _VAE_CLASSES:
        raise WeightsError(f"{path} is of class {found}. TURBO_VAE needs {' or '.join(_VAE_CLASSES)}.")
    if (channels := config.get("latent_channels", _LATENT_CHANNELS)) != _LATENT_CHANNELS:
        raise WeightsError(f"{path} has {channels} latent channels, and SDXL's VAE has {_LATENT_CHANNELS}.")


def _check_component(folder: Path) -> None:
    _require(folder / "config.json")
    files = weight_files(folder)
    if not files:
        raise WeightsError(
            f"{folder} has no {' or '.join(f'{name}.fp16.safetensors' for name in _WEIGHTS)}. Pull again, or export "
            'the weights with save_pretrained(variant="fp16").'
        )
    for path in files:
        _require(path)
        _check_safetensors(path)


def weight_files(folder: Path) -> list[Path]:
    """Return the fp16 file of a model in its folder, or the shards that its index names; others are no part of it.

    Raises:
        WeightsError: The index is damaged.
    """
    for name in _WEIGHTS:
        if (single := folder / f"{name}.fp16.safetensors").is_file():
            return [single]
        if (index := folder / f"{name}.safetensors.index.fp16.json").is_file():
            return _shards(index)
    return []


def _check_safetensors(path: Path) -> None:
    try:
        with path.open("rb"), safe_open(path, framework="numpy"):  # checks the header, and the length by it
            pass
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {error}. Delete it and pull again.") from error
    except MemoryError as error:  # the library maps the whole file
        raise MemoryTooSmallError(f"{path} does not fit into memory: {error}.") from error


def _shards(index: Path) -> list[Path]:
    """Return the files that the index of sharded weights names. Without an index, the libraries do not load them."""
    file_by_tensor = _read_json(index).get("weight_map")
    if not isinstance(file_by_tensor, dict) or not file_by_tensor:
        raise WeightsError(f"{index} is damaged: its weight_map names no files. Delete it and pull again.")
    return [index.parent / name for name in sorted(set(map(str, file_by_tensor.values())))]


def _read_json(path: Path, *, setting: str = "TURBO_MODEL") -> dict[str, Any]:
    _require(path, setting=setting)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged: it is not JSON. Delete it and pull again.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is damaged: it is not a JSON object. Delete it and pull again.")
    return content


def _require(path: Path, *, setting: str = "TURBO_MODEL") -> None:
    if not path.is_file():
        raise WeightsError(f"{path} is missing. Pull the weights again, or check {setting}.")


MODEL = Layout(
    setting="TURBO_MODEL",
    files=", ".join(FILE_PATTERNS),
    choose=_choose_model,
    main_config="model_index.json",
    check_main_config=_check_index,
    check=check_model,
)

VAE = Layout(
    setting="TURBO_VAE",
    files=f"config.json and {_VAE_WEIGHTS[1]} (or its fp16 variant) in its top folder",
    choose=_choose_vae,
    main_config="config.json",
    check_main_config=_check_vae_config,
    check=check_vae,
)
