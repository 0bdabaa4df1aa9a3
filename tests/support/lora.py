"""Writes LoRAs with random weights for a model in diffusers' format, in the naming of kohya's scripts and of peft."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from app.weights.layout import weight_files
from tests.support.single_file import unet_names

LAYERS = {
    "unet": (
        "down_blocks.1.attentions.0.proj_in",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
        "mid_block.attentions.0.transformer_blocks.1.attn1.to_out.0",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
        "up_blocks.0.attentions.1.transformer_blocks.1.ff.net.2",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v",
    ),
    # Without out_proj, diffusers does not recognize kohya's names of the other projections.
    "text_encoder": tuple(
        f"text_model.encoder.layers.0.{layer}" for layer in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")
    ),
    "text_encoder_2": tuple(
        f"text_model.encoder.layers.1.{layer}" for layer in ("self_attn.v_proj", "self_attn.out_proj", "mlp.fc2")
    ),
}
"""Layers of the tests' tiny model."""

_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def _own(part: str, layer: str) -> str:
    """Return a layer's name in the model of transformers 5, which has no level `text_model` in the first encoder."""
    return layer.removeprefix("text_model.") if part == "text_encoder" else layer


def write_lora(
    path: Path,
    model: Path,
    *,
    naming: Literal["kohya", "peft"],
    seed: int = 0,
    alpha: float = 2.0,
    rank: int = 4,
    more: Sequence[str] = (),
) -> Path:
    """Write a LoRA for some layers of the model in a folder, and for the UNet's layers in `more`."""
    generator = torch.Generator().manual_seed(seed)
    names = unet_names(model)
    tensors: dict[str, torch.Tensor] = {}
    for part, layers in LAYERS.items():
        weights = {name: tensor for file in weight_files(model / part) for name, tensor in load_file(file).items()}
        for layer in (*layers, *(more if part == "unet" else ())):
            name = f"{layer}.weight"
            rows, columns, *kernel = weights.get(name, weights.get(name.removeprefix("text_model."))).shape  # type: ignore[union-attr] # one of both is there
            down = torch.randn(rank, columns, *kernel, generator=generator) / 3
            up = torch.randn(rows, rank, *[1 for _ in kernel], generator=generator) / 3
            if naming == "peft":
                tensors |= {f"{part}.{layer}.lora_A.weight": down, f"{part}.{layer}.lora_B.weight": up}
            else:
                theirs = names[name].removesuffix(".weight") if part == "unet" else layer
                base = f"{_KOHYA[part]}_{theirs.replace('.', '_')}"
                tensors |= {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up}
                tensors[f"{base}.alpha"] = torch.tensor(alpha)
    settings = {
        f"{part}.{key}": value
        for part, layers in LAYERS.items()
        for key, value in (("r", rank), ("lora_alpha", alpha), ("target_modules", [_own(part, one) for one in layers]))
    }
    metadata = {"lora_adapter_metadata": json.dumps(settings)} if naming == "peft" else {}
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path
