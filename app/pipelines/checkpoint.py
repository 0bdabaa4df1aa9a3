"""Weights on the disk: a folder in diffusers' format, or a single file in the layout of generative-models."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers.loaders import single_file_utils
from safetensors import safe_open

from app.errors import MemoryTooSmallError, WeightsError, first_line
from app.weights.layout import SINGLE_FILE_CONFIGS, weight_files
from app.weights.safetensors_header import read_header
from app.weights.single_file import PARTS, predicts_velocity
from app.weights.source import SUFFIX
from app.weights.vocabulary import END, read_merges, words

_log = logging.getLogger(__name__)

MODELS = {
    "text_encoder": transformers.CLIPTextModel,
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
}
"""The models of SDXL-Turbo's model_index.json."""

_PADS = {"tokenizer": END, "tokenizer_2": "!"}
"""The tokens that fill a prompt to 77 tokens."""


class Checkpoint(Protocol):
    """The models on the disk, by their names in model_index.json.

    Attributes:
        place: The folder or file, for messages.
        configs: The folder of model_index.json and of the configs.
    """

    place: Path
    configs: Path

    def parameters(self, name: str) -> int:
        """Return the number of a model's parameters, from the headers of its files."""

    def read(self, name: str, dtype: torch.dtype) -> Any:
        """Read a whole model. Meanwhile its files' part in memory is twice as large."""

    def blank(self, name: str) -> Any:
        """Return a model without weights: its parameters are on torch's `meta` device."""

    def files(self, name: str) -> Sequence[tuple[Path, Mapping[str, str]]]:
        """Return a model's files, each with the model's names of its tensors, by the names in the file."""

    def surroundings(self, *, turbo_scheduler: bool) -> Mapping[str, Any]:
        """Return the parts of the pipeline that are not in `configs`, or are replaced by SDXL-Turbo's scheduler."""


def open_checkpoint(place: Path, models: Collection[str], *, configs: Path = SINGLE_FILE_CONFIGS) -> Checkpoint:
    """Open a folder or a single file for these models. `configs` is for a file, which has none.

    Raises:
        WeightsError: A single file lacks tensors of a model, or has them in other shapes.
    """
    if place.suffix == SUFFIX:
        return SingleFile(place, models, configs)
    if plain := [name for name in models if not any(".fp16" in path.name for path in weight_files(place / name))]:
        _log.info("%s has no fp16 weights of %s; the others are read", place, ", ".join(plain))
    return DiffusersFolder(place)


class DiffusersFolder:
    """A folder as `save_pretrained` writes it; the contract is `Checkpoint`."""

    def __init__(self, folder: Path) -> None:
        self.place = self.configs = folder

    def parameters(self, name: str) -> int:
        return count_parameters(self.place / name)

    def read(self, name: str, dtype: torch.dtype) -> Any:
        return read_model(MODELS[name], self.place / name, dtype)

    def blank(self, name: str) -> Any:
        return _blank(name, self.place / name)

    def files(self, name: str) -> Sequence[tuple[Path, Mapping[str, str]]]:
        return [(path, {key: key for key in read_header(path).shapes}) for path in weight_files(self.place / name)]

    def surroundings(self, *, turbo_scheduler: bool) -> Mapping[str, Any]:
        if not turbo_scheduler:
            return {}
        config = diffusers.EulerAncestralDiscreteScheduler.load_config(self.place / "scheduler")
        return {"scheduler": _scheduler(SINGLE_FILE_CONFIGS, config.get("prediction_type", "epsilon"))}


class SingleFile:
    """A file with all models; the contract is `Checkpoint`.

    diffusers has the rules by which the file's names become the models'. They are applied to the names and shapes of
    the header first, so that a file that does not fit is rejected before its tensors are read.
    """

    def __init__(self, path: Path, models: Collection[str], configs: Path) -> None:
        self.place = path
        self.configs = configs
        self._header = read_header(path)
        self._blank = {name: _blank(name, configs / name) for name in models}
        for name in models:
            self._check(name)

    def parameters(self, name: str) -> int:
        return sum(prod(self._header.shapes[key]) for key in self._keys(name))

    def read(self, name: str, dtype: torch.dtype) -> Any:
        model = self.blank(name)
        with safe_open(self.place, "pt") as file:
            tensors = _convert(name, model, {key: file.get_tensor(key) for key in self._keys(name)})
            wanted = {own: tensors[own].to(dtype, copy=True) for own in model.state_dict()}
        model.load_state_dict(wanted, assign=True)
        return model.eval()

    def blank(self, name: str) -> Any:
        return self._blank[name]

    def files(self, name: str) -> Sequence[tuple[Path, Mapping[str, str]]]:
        # For the UNet, diffusers' rules only rename.
        keys = _convert(name, self._blank[name], {key: key for key in self._keys(name)})
        return [(self.place, {keys[own]: own for own in self._blank[name].state_dict()})]

    def surroundings(self, *, turbo_scheduler: bool) -> Mapping[str, Any]:  # noqa: ARG002 - it has no other
        prediction = "v_prediction" if predicts_velocity(self._header) else None
        tokenizers = {name: _tokenizer(self.configs / name, pad) for name, pad in _PADS.items()}
        return {"scheduler": _scheduler(self.configs, prediction), **tokenizers}

    def _keys(self, name: str) -> list[str]:
        return [key for key in self._header.shapes if key.startswith(PARTS[name])]

    def _check(self, name: str) -> None:
        model = self._blank[name]
        tensors = {key: torch.empty(self._header.shapes[key], device="meta") for key in self._keys(name)}
        try:
            found = _convert(name, model, tensors)
        except KeyError as error:
            raise WeightsError(f"{self.place} lacks {error} of the {name}. Use a complete file.") from error
        wanted = model.state_dict()
        check_complete(self.place / name, wanted.keys() - found.keys())
        for own, tensor in wanted.items():
            if found[own].shape != tensor.shape:
                raise WeightsError(
                    f"{self.place} is not of SDXL-Turbo's architecture: {name} {own} has the shape "
                    f"{tuple(found[own].shape)} and not {tuple(tensor.shape)}."
                )


def _blank(name: str, configs: Path) -> Any:
    kind: Any = MODELS[name]
    with init_empty_weights():  # buffers without a file of their own keep their values
        if issubclass(kind, transformers.PreTrainedModel):
            return kind(kind.config_class.from_pretrained(configs))
        return kind.from_config(kind.load_config(configs))


def _convert(name: str, model: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Return a model's tensors under its own names. `tensors` have the names in the file."""
    if name == "unet":
        converted = single_file_utils.convert_ldm_unet_checkpoint(tensors, model.config)
    elif name == "vae":
        converted = single_file_utils.convert_ldm_vae_checkpoint(tensors, model.config)
    elif name == "text_encoder":
        converted = single_file_utils.convert_ldm_clip_checkpoint(tensors)
    else:
        converted = single_file_utils.convert_open_clip_checkpoint(model, tensors, prefix=PARTS[name])
    if not hasattr(model, "text_model"):  # transformers 5 has no such level in the first text encoder
        converted = {key.removeprefix("text_model."): tensor for key, tensor in converted.items()}
    return dict(converted)


def _scheduler(configs: Path, prediction: str | None) -> Any:
    """Return the scheduler in `configs`, for a UNet that predicts this, or what its config says."""
    changes = {} if prediction is None else {"prediction_type": prediction}
    return diffusers.EulerAncestralDiscreteScheduler.from_pretrained(configs / "scheduler", **changes)


def _tokenizer(folder: Path, pad: str) -> Any:
    if folder.is_dir():
        return transformers.CLIPTokenizer.from_pretrained(folder)
    merges = read_merges()
    vocabulary = {word: number for number, word in enumerate(words(merges))}
    return transformers.CLIPTokenizer(vocabulary, merges, pad_token=pad, model_max_length=77)


def count_parameters(folder: Path) -> int:
    """Return the number of a model's parameters, from the headers of its files."""
    return sum(prod(shape) for path in weight_files(folder) for shape in read_header(path).shapes.values())


def read_model(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Read one model. Reject it if a tensor is missing, because transformers would fill it with random numbers."""
    variant = "fp16" if ".fp16" in "".join(path.name for path in weight_files(folder)) else None
    model, info = kind.from_pretrained(
        str(folder), dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    check_complete(folder, info["missing_keys"])
    return model


def check_complete(place: Path, missing: Collection[str]) -> None:
    """Raise WeightsError if a model lacks tensors. `place` names it."""
    if missing:
        raise WeightsError(
            f"{place} lacks {len(missing)} of the model's tensors, such as {min(missing)}. Pull the weights again."
        )


@contextmanager
def weights_errors(weights: str) -> Iterator[None]:
    """Turn whatever a library raises for these weights into WeightsError: their files may contain anything.

    A lack of memory becomes MemoryTooSmallError.
    """
    try:
        yield
    except (WeightsError, MemoryTooSmallError):
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):  # of torch, and of mmap in safetensors
            raise MemoryTooSmallError(f"{weights} do not fit into memory: {first_line(error)}.") from error
        raise WeightsError(f"{weights} cannot be loaded: {first_line(error)}.") from error
