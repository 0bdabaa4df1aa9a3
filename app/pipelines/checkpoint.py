"""Weights on the disk: a folder in diffusers' format, or a single file in the layout of generative-models.

A checkpoint makes models without weights, and says which tensor of a file is which of theirs.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers.loaders import single_file_utils

from app.errors import DeviceLostError, MemoryTooSmallError, WeightsError, first_line
from app.weights.layout import SINGLE_FILE_CONFIGS, weight_files
from app.weights.reading import Piece, RawTensor
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

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The number formats of safetensors files."""

_PADS = {"tokenizer": END, "tokenizer_2": "!"}
"""The tokens that fill a prompt to 77 tokens."""


class NamedTensor(NamedTuple):
    """A tensor of a model, in the file's number format and on the host."""

    model: str
    name: str
    tensor: torch.Tensor


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

    def blank(self, name: str) -> Any:
        """Return a model without weights: its parameters are on torch's `meta` device."""

    def tensors(self, piece: Piece) -> Iterator[NamedTensor]:
        """Yield tensors of the models. Their data may be the piece's, which its reader overwrites later.

        Tensors that no model has are left out. If a model's tensors can only be converted together, all come with the
        last one.
        """

    def rest(self) -> Iterator[NamedTensor]:
        """Yield the tensors of models whose files have unusual names, which only the libraries know."""

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
    return DiffusersFolder(place, models)


class DiffusersFolder:
    """A folder as `save_pretrained` writes it; the contract is `Checkpoint`."""

    def __init__(self, folder: Path, models: Collection[str]) -> None:
        self.place = self.configs = folder
        self._folders = {name: ModelFolder(name, MODELS[name], folder / name) for name in models}

    def parameters(self, name: str) -> int:
        return count_parameters(self.place / name)

    def blank(self, name: str) -> Any:
        return self._folders[name].blank

    def tensors(self, piece: Piece) -> Iterator[NamedTensor]:
        for folder in self._folders.values():
            yield from folder.tensors(piece)

    def rest(self) -> Iterator[NamedTensor]:
        for folder in self._folders.values():
            yield from folder.rest()

    def surroundings(self, *, turbo_scheduler: bool) -> Mapping[str, Any]:
        if not turbo_scheduler:
            return {}
        config = diffusers.EulerAncestralDiscreteScheduler.load_config(self.place / "scheduler")
        return {"scheduler": _scheduler(SINGLE_FILE_CONFIGS, config.get("prediction_type", "epsilon"))}


class ModelFolder:
    """A folder with the config and the weights of one model, as `save_pretrained` writes it.

    `kind` is the model's class.
    """

    def __init__(self, model: str, kind: Any, folder: Path) -> None:
        self.model = model
        self.blank = blank(kind, folder)
        self._kind = kind
        self._folder = folder
        own = self.blank.state_dict()
        shapes = {path: read_header(path).shapes for path in weight_files(folder)}
        short = "text_model." if not hasattr(self.blank, "text_model") else ""
        self._names = {
            path: {key: name for key in some if (name := key.removeprefix(short)) in own}
            for path, some in shapes.items()
        }
        found = {name: shapes[path][key] for path, names in self._names.items() for key, name in names.items()}
        self._is_usual = own.keys() <= found.keys()
        if self._is_usual:
            _check_shapes(f"{folder} does not fit its config.json:", found, own)

    def tensors(self, piece: Piece) -> Iterator[NamedTensor]:
        """The contract is `Checkpoint.tensors`, for the one model."""
        names = self._names.get(piece.path, {}) if self._is_usual else {}
        for raw in piece.tensors:
            if raw.name in names:
                yield NamedTensor(self.model, names[raw.name], as_tensor(piece.path, raw))

    def rest(self) -> Iterator[NamedTensor]:
        """The contract is `Checkpoint.rest`, for the one model."""
        if not self._is_usual:
            model = read_model(self._kind, self._folder)
            yield from (NamedTensor(self.model, name, tensor) for name, tensor in model.state_dict().items())


class SingleFile:
    """A file with all models; the contract is `Checkpoint`.

    diffusers has the rules by which the file's names become the models'. They are applied to the names and shapes of
    the header first, so that a file that does not fit is rejected before its tensors are read.
    """

    def __init__(self, path: Path, models: Collection[str], configs: Path) -> None:
        self.place = path
        self.configs = configs
        self._header = read_header(path)
        self._blank = {name: blank(MODELS[name], configs / name) for name in models}
        for name in models:
            self._check(name)
        self._waiting: dict[str, dict[str, torch.Tensor]] = {name: {} for name in models}
        self._sizes = {name: len(self._keys(name)) for name in models}
        unet = self._blank["unet"]
        keys = _convert("unet", unet, {key: key for key in self._keys("unet")})  # for the UNet, the rules only rename
        self._unet_names = {keys[own]: own for own in unet.state_dict()}

    def parameters(self, name: str) -> int:
        return sum(prod(self._header.shapes[key]) for key in self._keys(name))

    def blank(self, name: str) -> Any:
        return self._blank[name]

    def tensors(self, piece: Piece) -> Iterator[NamedTensor]:
        if piece.path != self.place:
            return
        for raw in piece.tensors:
            name = next((name for name in self._blank if raw.name.startswith(PARTS[name])), None)
            if name is None:
                continue
            if name == "unet":
                if (own := self._unet_names.get(raw.name)) is not None:
                    yield NamedTensor(name, own, as_tensor(piece.path, raw))
                continue
            # diffusers' rules need all tensors of the other models, which are small.
            waiting = self._waiting[name]
            waiting[raw.name] = as_tensor(piece.path, raw).clone()
            if len(waiting) == self._sizes[name]:
                tensors = _convert(name, self._blank[name], self._waiting.pop(name))
                yield from (NamedTensor(name, own, tensors[own]) for own in self._blank[name].state_dict())

    def rest(self) -> Iterator[NamedTensor]:
        yield from ()

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
        fault = f"{self.place} is not of SDXL-Turbo's architecture: {name}"
        _check_shapes(fault, {own: found[own].shape for own in wanted}, wanted)


def blank(kind: Any, configs: Path) -> Any:
    """Return a model of this class without weights."""
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


def as_tensor(path: Path, raw: RawTensor) -> torch.Tensor:
    """Return a tensor with the data of a file's, not a copy."""
    if raw.dtype not in _DTYPES:
        raise WeightsError(f"{path}: {raw.name} has the number format {raw.dtype}, which is not supported.")
    if not raw.data:
        return torch.empty(raw.shape, dtype=_DTYPES[raw.dtype])
    return torch.frombuffer(raw.data, dtype=_DTYPES[raw.dtype]).view(raw.shape)


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


def read_model(kind: Any, folder: Path) -> Any:
    """Read one model in fp32, as the libraries do.

    Reject it if a tensor is missing, because transformers would fill it with random numbers.
    """
    variant = "fp16" if ".fp16" in "".join(path.name for path in weight_files(folder)) else None
    model, info = kind.from_pretrained(
        str(folder),
        dtype=torch.float32,
        variant=variant,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    check_complete(folder, info["missing_keys"])
    return model


def check_complete(place: Path, missing: Collection[str]) -> None:
    """Raise WeightsError if a model lacks tensors. `place` names it."""
    if missing:
        raise WeightsError(
            f"{place} lacks {len(missing)} of the model's tensors, such as {min(missing)}. Pull the weights again."
        )


def _check_shapes(fault: str, found: Mapping[str, Sequence[int]], wanted: Mapping[str, torch.Tensor]) -> None:
    """Raise WeightsError if a tensor has another shape than the model's. Its text is `fault` and the shapes."""
    for name, tensor in wanted.items():
        if tuple(found[name]) != tuple(tensor.shape):
            raise WeightsError(f"{fault} {name} has the shape {tuple(found[name])} and not {tuple(tensor.shape)}.")


@contextmanager
def weights_errors(weights: str) -> Iterator[None]:
    """Turn whatever a library raises for these weights into WeightsError: their files may contain anything.

    A lack of memory becomes MemoryTooSmallError.
    """
    try:
        yield
    except (WeightsError, MemoryTooSmallError, DeviceLostError):
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):  # of torch, and of mmap in safetensors
            raise MemoryTooSmallError(f"{weights} do not fit into memory: {first_line(error)}.") from error
        raise WeightsError(f"{weights} cannot be loaded: {first_line(error)}.") from error
