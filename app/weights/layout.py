"""The files that weights consist of: which to download, and checks of a folder or file before loading."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from app.errors import WeightsError
from app.weights.safetensors_header import read_header
from app.weights.single_file import check_single_file
from app.weights.source import SUFFIX

PIPELINE_CLASS = "StableDiffusionXLPipeline"

SINGLE_FILE_CONFIGS = Path(__file__).parent / "sdxl_turbo"
"""The folder with the configs that a model in a single file lacks."""

_SCHEDULER_CLASS = "EulerAncestralDiscreteScheduler"
"""The scheduler of SDXL-Turbo's repository. The model was trained for its single step."""

_WEIGHTS = ("diffusion_pytorch_model", "model")
"""How the names of a model's weights begin, as diffusers and transformers write them."""

_FORMS = tuple(
    (f"{name}{variant}{SUFFIX}", f"{name}{SUFFIX}.index{variant}.json", f"{name}{variant}-")
    for variant in (".fp16", "")
    for name in _WEIGHTS
)
"""A model's weights as `save_pretrained` names them, best first: the file, or the index and the beginning of the shards
that the index names."""

_OTHER_SCHEDULER = "If the model is a fine-tune of SDXL-Turbo, set TURBO_SCHEDULER=turbo to use SDXL-Turbo's scheduler."

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
        record: How the names of the records of pulled weights begin.
        files: The files that serving needs, in words.
        choose: Returns the files that serving needs out of a repository's, by their paths.
        main_config: The file that says of which class the weights are. If it is not chosen, the repository has others.
            None if no file says it.
        check_main_config: Checks the class in that file, so that wrong weights need not be downloaded.
        check: Checks a folder or a file. Both checks raise WeightsError; the text names the file and says what to do.
    """

    setting: str
    record: str
    files: str
    choose: Callable[[Iterable[str]], set[str]]
    main_config: str | None
    check_main_config: Callable[[Path], None]
    check: Callable[[Path], None]


def _choose_model(paths: Iterable[str]) -> set[str]:
    """Choose configs, tokenizers, and for each model its best form of weights, in safetensors only."""
    chosen = set()
    files_in: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if path == "model_index.json" or (_is_plain(folder) and name.endswith((".json", ".txt"))):
            chosen.add(path)
        if _is_plain(folder) and name.endswith((SUFFIX, ".json")):
            files_in.setdefault(folder, set()).add(name)
    for folder, names in files_in.items():
        chosen |= {f"{folder}/{name}" for name in _best_weights(names)}
    return chosen


def _is_plain(folder: str) -> bool:
    """Return whether a path's folder is in the top folder. Deeper folders and `..` could lead out of it."""
    return "/" not in folder and folder not in ("", ".", "..")


def _best_weights(names: set[str]) -> set[str]:
    for single, index, shards in _FORMS:
        if single in names:
            return {single}
        if index in names:
            return {name for name in names if name.startswith(shards) and name.endswith(SUFFIX)}
    return set()


def _choose_vae(paths: Iterable[str]) -> set[str]:
    present = set(paths)
    weights = next((name for name in _VAE_WEIGHTS if name in present), None)
    return {"config.json", weights} if weights and "config.json" in present else set()


def check_model(folder: Path, *, any_scheduler: bool = False) -> None:
    """Check that `folder` is a complete SDXL-Turbo pipeline, or a file with the weights of one.

    With `any_scheduler` its scheduler is not checked.

    Raises:
        WeightsError: A file is missing or wrong. The text names the file and says what to do.
        MemoryTooSmallError: A file is larger than the memory that the process may use.
    """
    if folder.suffix == SUFFIX and not folder.is_dir():
        check_single_file(folder)
        return
    if not folder.is_dir():
        hint = f" A file must end in {SUFFIX}: pickles can run code." if folder.is_file() else ""
        raise WeightsError(f"There is no folder {folder}. Check TURBO_MODEL.{hint}")
    _check_index(folder / "model_index.json", any_scheduler=any_scheduler)
    for path in sorted(folder.glob("*/*.json")):
        _read_json(path)
    if not any_scheduler:
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
    read_header(weights)


def _check_index(path: Path, *, any_scheduler: bool = False) -> None:
    index = _read_json(path)
    if (found := index.get("_class_name")) != PIPELINE_CLASS:
        raise WeightsError(f"{path} is of class {found}, not {PIPELINE_CLASS}: only SDXL-Turbo can be served.")
    named = index.get("scheduler")
    scheduler = named[-1] if isinstance(named, list) and named else named
    if scheduler != _SCHEDULER_CLASS and not any_scheduler:
        raise WeightsError(
            f"{path} names the scheduler {scheduler}. SDXL-Turbo needs {_SCHEDULER_CLASS}. {_OTHER_SCHEDULER}"
        )


def _check_scheduler(path: Path) -> None:
    spacing = _read_json(path).get("timestep_spacing")
    if spacing != "trailing":
        raise WeightsError(
            f"{path} has timestep_spacing {spacing!r}. SDXL-Turbo needs 'trailing', or its single step starts from the "
            f"wrong noise level. {_OTHER_SCHEDULER}"
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
            f"{folder} has no {' or '.join(f'{name}.fp16{SUFFIX}' for name in _WEIGHTS)}, also not without .fp16. Pull "
            'again, or export the weights with save_pretrained(variant="fp16").'
        )
    for path in files:
        _require(path)
        read_header(path)


def weight_files(folder: Path) -> list[Path]:
    """Return the file of a model in its folder, or the shards that its index names, best of all in fp16.

    Raises:
        WeightsError: The index is damaged.
    """
    for single, index, _ in _FORMS:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder / index)
    return []


def files_to_read(place: Path, vae_folder: Path | None = None) -> list[Path]:
    """Return the files of weights of a model, in the order in which a start reads them.

    The VAE in `vae_folder`, if any, replaces the model's own. It comes first, because it is small.

    Raises:
        WeightsError: The index of sharded weights is damaged.
    """
    other_vae = [] if vae_folder is None else weight_files(vae_folder)
    if place.suffix == SUFFIX:
        return [*other_vae, place]
    own = [name for name in _MODELS if name != "vae" or vae_folder is None]
    return [*other_vae, *(path for name in own for path in weight_files(place / name))]


def files_to_serve(place: Path, layout: Layout) -> dict[str, Path]:
    """Return the files that serving needs in a folder, by their paths in it; a file itself has the name `.`."""
    if place.is_file():
        return {".": place}
    paths = {path.relative_to(place).as_posix(): path for pattern in ("*", "*/*") for path in place.glob(pattern)}
    return {name: paths[name] for name in layout.choose(paths) if paths[name].is_file()}


def _shards(index: Path) -> list[Path]:
    """Return the files that the index of sharded weights names. Without an index, the libraries do not load them."""
    file_by_tensor = _read_json(index).get("weight_map")
    if not isinstance(file_by_tensor, dict) or not file_by_tensor:
        raise WeightsError(f"{index} is damaged: its weight_map names no files. Delete it and pull again.")
    names = sorted(set(map(str, file_by_tensor.values())))
    if outside := next((name for name in names if "/" in name), None):
        raise WeightsError(f"{index} names {outside}, and shards must be in its own folder.")
    return [index.parent / name for name in names]


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
    record="",
    files="model_index.json, */*.json, */*.txt, and for each model *.fp16.safetensors or else *.safetensors",
    choose=_choose_model,
    main_config="model_index.json",
    check_main_config=_check_index,
    check=check_model,
)

VAE = Layout(
    setting="TURBO_VAE",
    record="vae--",
    files=f"config.json and {_VAE_WEIGHTS[1]} (or its fp16 variant) in its top folder",
    choose=_choose_vae,
    main_config="config.json",
    check_main_config=_check_vae_config,
    check=check_vae,
)


def model_layout(scheduler: Literal["model", "turbo"]) -> Layout:
    """Return the layout of the model for a value of `TURBO_SCHEDULER`."""
    if scheduler == "model":
        return MODEL
    return replace(
        MODEL,
        check_main_config=partial(_check_index, any_scheduler=True),
        check=partial(check_model, any_scheduler=True),
    )
