"""Writes a model in diffusers' format as a single file, in the layout of Stability AI's generative-models."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from app.weights.layout import weight_files
from app.weights.single_file import PARTS

Tensors = dict[str, torch.Tensor]

Rules = Mapping[str, str | Callable[[re.Match[str]], str]]

_UNET: Rules = {
    r"^time_embedding\.linear_(\d)": lambda match: f"time_embed.{2 * int(match[1]) - 2}",
    r"^add_embedding\.linear_(\d)": lambda match: f"label_emb.0.{2 * int(match[1]) - 2}",
    r"^conv_in": "input_blocks.0.0",
    r"^conv_norm_out": "out.0",
    r"^conv_out": "out.2",
    r"(resnets\.\d+)\.norm1": r"\1.in_layers.0",
    r"(resnets\.\d+)\.conv1": r"\1.in_layers.2",
    r"(resnets\.\d+)\.norm2": r"\1.out_layers.0",
    r"(resnets\.\d+)\.conv2": r"\1.out_layers.3",
    r"time_emb_proj": "emb_layers.1",
    r"conv_shortcut": "skip_connection",
    r"^mid_block\.resnets\.(\d)": lambda match: f"middle_block.{2 * int(match[1])}",
    r"^mid_block\.attentions\.0": "middle_block.1",
}
_VAE: Rules = {
    r"conv_norm_out": "norm_out",
    r"conv_shortcut": "nin_shortcut",
    r"mid_block\.resnets\.(\d)": lambda match: f"mid.block_{int(match[1]) + 1}",
    r"mid_block\.attentions\.0\.group_norm": "mid.attn_1.norm",
    r"mid_block\.attentions\.0\.to_([qkv])": r"mid.attn_1.\1",
    r"mid_block\.attentions\.0\.to_out\.0": "mid.attn_1.proj_out",
    r"encoder\.down_blocks\.(\d)": r"encoder.down.\1",
    r"decoder\.up_blocks\.(\d)": lambda match: f"decoder.up.{3 - int(match[1])}",
    r"\.resnets\.": ".block.",
    r"samplers\.0\.conv": "sample.conv",
}
_OPEN_CLIP: Rules = {
    r"^text_model\.encoder\.layers": "transformer.resblocks",
    r"^text_model\.embeddings\.token_embedding": "token_embedding",
    r"^text_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    r"^text_model\.final_layer_norm": "ln_final",
    r"layer_norm(\d)": r"ln_\1",
    r"self_attn": "attn",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
}


def write_single_file(
    folder: Path, path: Path, *, dtype: torch.dtype = torch.float16, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write the models in `folder` to `path`, with the tensors beside them that files of generative-models have."""
    tensors = single_file_tensors(folder)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    tensors["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    tensors["denoiser.sigmas"] = torch.zeros(1000)
    save_file(tensors, path, metadata=dict(metadata or {}))
    return path


def single_file_tensors(folder: Path) -> Tensors:
    layers = json.loads((folder / "unet" / "config.json").read_text())["layers_per_block"] + 1
    parts = {
        "unet": lambda tensors: _unet(tensors, layers),
        "vae": _vae,
        "text_encoder": lambda tensors: {f"text_model.{_without(name)}": tensor for name, tensor in tensors.items()},
        "text_encoder_2": _open_clip,
    }
    return {
        PARTS[part] + name: tensor.contiguous()
        for part, convert in parts.items()
        for name, tensor in convert(_load(folder / part)).items()
    }


def unet_names(folder: Path) -> dict[str, str]:
    """Return the names of the UNet's tensors in a single file, without their beginning, by those in a folder."""
    layers = json.loads((folder / "unet" / "config.json").read_text())["layers_per_block"] + 1
    tensors = _load(folder / "unet")
    return dict(zip(tensors, _unet(tensors, layers), strict=True))


def _load(folder: Path) -> Tensors:
    return {name: tensor for path in weight_files(folder) for name, tensor in load_file(path).items()}


def _without(name: str) -> str:
    return name.removeprefix("text_model.")


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


def _unet(tensors: Tensors, layers: int) -> Tensors:
    """Number the blocks through. `layers` is the number of them in each level on the way down."""
    attentive = {match[1] for name in tensors if (match := re.match(r"up_blocks\.(\d)\.attentions", name))}

    def number(match: re.Match[str]) -> str:
        way, level, kind, layer = match[1], int(match[2]), match[3], int(match[4])
        if kind == "downsamplers":
            return f"input_blocks.{layers * (level + 1)}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{layers * (level + 1) - 1}.{2 if match[2] in attentive else 1}.conv"
        place = 0 if kind == "resnets" else 1
        return (
            f"input_blocks.{layers * level + layer + 1}.{place}"
            if way == "down"
            else (f"output_blocks.{layers * level + layer}.{place}")
        )

    pattern = r"^(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(?:(?<=samplers\.0)\.conv)?"
    return {re.sub(pattern, number, _renamed(name, _UNET)): tensor for name, tensor in tensors.items()}


def _vae(tensors: Tensors) -> Tensors:
    """Rename the tensors; the attention's are weights of convolutions."""
    renamed = {_renamed(name, _VAE): tensor for name, tensor in tensors.items()}
    return {
        name: tensor[:, :, None, None] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name) else tensor
        for name, tensor in renamed.items()
    }


def _open_clip(tensors: Tensors) -> Tensors:
    """Rename the tensors; queries, keys and values are one tensor."""
    return dict(_open_clip_tensors(tensors))


def _open_clip_tensors(tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors.items():
        if name == "text_projection.weight":
            yield "text_projection", tensor.T
        elif match := re.search(r"\.([qkv])_proj\.(weight|bias)$", name):
            if match[1] == "q":
                together = [tensors[name.replace(".q_proj", f".{letter}_proj")] for letter in "qkv"]
                yield re.sub(r"q_proj\.", "in_proj_", _renamed(name, _OPEN_CLIP)), torch.cat(together)
        else:
            yield _renamed(name, _OPEN_CLIP), tensor
