"""LoRAs that are added to the models' weights as these are loaded, so that no request takes longer.

diffusers translates the names that programs give to a LoRA's tensors. The sums are those of peft, which diffusers would
call, with the same bytes in fp32. peft is not used, for three reasons. Where diffusers finds it, every start imports
it, which takes a second. It needs the whole model in memory before a layer can become int8. And it adds in the model's
number format, not in fp32.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from torch import Tensor

from app.errors import WeightsError

LORA_MODELS = ("text_encoder", "text_encoder_2", "unet")
"""The models that LoRAs of SDXL change."""

_OTHER_MODEL = "It may be for another model, such as Stable Diffusion 1.5. Check TURBO_LORA."

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


class _Delta(NamedTuple):
    """A pair of matrices whose product is added to a weight: `up` (out, rank), `down` (rank, in), in fp32."""

    down: Tensor
    up: Tensor
    scale: float


class LoraDeltas:
    """What LoRAs add to the weights of models."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], list[_Delta]] = defaultdict(list)

    def read(self, path: Path, weight: float, models: Mapping[str, Any]) -> None:
        """Read a LoRA for some models. These may be without weights.

        Raises:
            WeightsError: A tensor of the LoRA fits no layer, or its shape is another.
        """
        tensors, alphas, config = diffusers.StableDiffusionXLPipeline.lora_state_dict(
            str(path.parent),
            weight_name=path.name,
            local_files_only=True,
            use_safetensors=True,
            unet_config=models["unet"].config,
            return_lora_metadata=True,
        )
        used = 0
        for model_name, model in models.items():
            keys = [key for key in tensors if key.startswith(f"{model_name}.")]
            used += len(keys)
            layers = _layers(path, model_name, model, keys)
            shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
            for layer, (down_key, up_key) in layers.items():
                down, up = tensors[down_key].float().flatten(1), tensors[up_key].float().flatten(1)
                parameter = f"{layer}.weight"
                if (shape := shapes.get(parameter)) is None:
                    raise WeightsError(f"{path} has {down_key}, which fits no layer of SDXL. {_OTHER_MODEL}")
                if (up.shape[0], down.shape[1]) != (shape[0], shape[1:].numel()) or up.shape[1] != down.shape[0]:
                    raise WeightsError(
                        f"{path} has {down_key} for a weight of shape {(up.shape[0], down.shape[1])}, and SDXL's is "
                        f"{tuple(shape)}. {_OTHER_MODEL}"
                    )
                alpha = _alpha(down_key, f"{model_name}.{layer}", alphas or {}, config or {}, rank=len(down))
                self._of[model_name, parameter].append(_Delta(down, up, alpha / len(down) * weight))
        if used < len(tensors):
            stray = next(key for key in tensors if not key.startswith(tuple(f"{name}." for name in models)))
            raise WeightsError(f"{path} has {stray}, which fits no model of SDXL. {_OTHER_MODEL}")

    def add(self, model_name: str, parameter: str, tensor: Tensor) -> Tensor:
        """Return a weight with what the LoRAs add to it. If they do, it is a new tensor in fp32."""
        for delta in self._of.get((model_name, parameter), ()):
            tensor = tensor.float() + (delta.up @ delta.down * delta.scale).view(tensor.shape)
        return tensor


def _layers(path: Path, model_name: str, model: Any, keys: Sequence[str]) -> Mapping[str, tuple[str, str]]:
    """Return the layers of a model, each with the keys of the pair that changes it, for the LoRA's keys."""
    own = {key.removeprefix(f"{model_name}."): key for key in keys}
    if model_name == "unet":  # the functions only rename
        names = own if any(_DOWN in key for key in own) else convert_unet_state_dict_to_peft(own)
    else:
        names = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own)) if own else {}
        if not hasattr(model, "text_model"):
            names = {name.removeprefix("text_model."): key for name, key in names.items()}
    for name, key in names.items():
        if not name.endswith((_DOWN, _UP)):
            raise WeightsError(f"{path} has {key}, which is not a tensor of a LoRA's pair.")
    downs = {name.removesuffix(_DOWN): key for name, key in names.items() if name.endswith(_DOWN)}
    return {layer: (key, names[f"{layer}{_UP}"]) for layer, key in downs.items()}


def _alpha(down_key: str, layer: str, alphas: Mapping[str, float], config: Mapping[str, Any], *, rank: int) -> float:
    """Return the number that is divided by the rank: the LoRA's own, or the rank."""
    for name in (f"{down_key}.alpha", f"{down_key.partition('.lora')[0]}.alpha"):  # as kohya's are converted
        if name in alphas:
            return alphas[name]
    model_name, _, module = layer.partition(".")
    patterns: Mapping[str, float] = config.get(f"{model_name}.alpha_pattern") or {}
    own = next((value for pattern, value in patterns.items() if f".{module}".endswith(f".{pattern}")), None)
    alpha = own or config.get(f"{model_name}.lora_alpha", rank)
    return float(alpha * rank**0.5 if config.get(f"{model_name}.use_rslora") else alpha)
