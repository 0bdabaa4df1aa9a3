"""A model in a single file, in the layout of Stability AI's generative-models: which model it is, by its header."""

import re
from pathlib import Path

from app.errors import WeightsError
from app.weights.safetensors_header import Header, read_header

PARTS = {
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
}
"""How the names of each model's tensors begin (configs/inference/sd_xl_base.yaml of Stability-AI/generative-models)."""

_FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
_LATENT_CHANNELS = 4

_OTHERS = (
    (r"lora_|lycoris_|.*\.(lora|lora_[A-Za-z]+|lora_linear_layer)\.", "a LoRA", "Name it in TURBO_LORA."),
    (r"(model\.diffusion_model\.)?double_blocks\.", "Flux", ""),
    (r"(model\.diffusion_model\.)?joint_blocks\.", "Stable Diffusion 3", ""),
    (r"edm_mean$", "Playground v2.5", ""),
    (r"conditioner\.embedders\.0\.model\.", "SDXL's refiner", ""),
    (r"cond_stage_model\.transformer\.", "Stable Diffusion 1", ""),
    (r"cond_stage_model\.model\.", "Stable Diffusion 2", ""),
    (r"(control_model|controlnet_cond_embedding|control_add_embedding)\.", "a ControlNet", ""),
)
"""Patterns of tensors' names, each with the model that has them, and what to do with it. The first match counts."""

_PIECES = (
    (
        r"model\.diffusion_model\.|(down|up|input|output)_blocks\.",
        "a UNet alone",
        "Name a file that also has the text encoders.",
    ),
    (
        r"first_stage_model\.|(encoder|decoder)\.(down|up|mid|conv_in)",
        "a VAE alone",
        "TURBO_VAE takes a VAE in diffusers' format.",
    ),
    (r"(conditioner\.|text_model\.|transformer\.resblocks\.)", "a text encoder alone", ""),
)
"""The same for parts of a model."""

_BASE_TITLE = "stable diffusion xl 1.0 base"
"""`modelspec.title` of Stability AI's sd_xl_base_1.0.safetensors, in lower case; also an example of the specification
(https://github.com/Stability-AI/ModelSpec). `modelspec.architecture` does not help: fine-tunes of SDXL-Turbo keep the
base model's, stable-diffusion-xl-v1-base."""

_FORMATS = {"F16", "BF16", "F32"}


def check_single_file(path: Path) -> None:
    """Check by names, shapes and metadata that a file has SDXL-Turbo's architecture. Reads only the file's header.

    SDXL and its fine-tunes have the same tensors as SDXL-Turbo and pass, except Stability AI's own file of SDXL.

    Raises:
        WeightsError: The file is missing, damaged or another model. The text says which, and what to do.
        MemoryTooSmallError: The file is larger than the address space that the process may use.
    """
    header = read_header(path)
    if other := _other(header):
        kind, remedy = other
        raise WeightsError(f"{path} is {kind}, and only SDXL-Turbo and its fine-tunes can be served. {remedy}".strip())
    if formats := {dtype for name, dtype in header.dtypes.items() if name.startswith(PARTS["unet"])} - _FORMATS:
        raise WeightsError(
            f"{path} has weights in {', '.join(sorted(formats))}. Only fp16, bf16 and fp32 can be loaded: name such a "
            "file, and set TURBO_DTYPE=int8 to save memory on a CPU."
        )


def predicts_velocity(header: Header) -> bool:
    """Return whether the file says that its UNet predicts the velocity (v-prediction) and not the noise.

    Fine-tunes say so by a tensor `v_pred` (as ComfyUI reads it), or in the metadata of ModelSpec.
    """
    return "v_pred" in header.shapes or header.metadata.get("modelspec.prediction_type") == "v"


def _other(header: Header) -> tuple[str, str] | None:
    """Return what a file is and what to do with it, or None if it has SDXL-Turbo's architecture."""
    if found := _first(_OTHERS, header):
        return found
    if not all(_has(header, PARTS[name]) for name in ("unet", "text_encoder", "text_encoder_2")):
        return _first(_PIECES, header) or ("no model of generative-models' layout", "")
    channels = header.shapes.get(_FIRST_LAYER, (0, 0))[1]
    if channels > _LATENT_CHANNELS:
        return f"an inpainting or editing model, whose UNet has {channels} input channels and not 4", ""
    if header.metadata.get("modelspec.title", "").lower() == _BASE_TITLE:
        return "SDXL's base model, which needs tens of steps and guidance", "Name sd_xl_turbo_1.0_fp16.safetensors."
    return None


def _first(kinds: tuple[tuple[str, str, str], ...], header: Header) -> tuple[str, str] | None:
    for pattern, kind, remedy in kinds:
        if any(re.match(pattern, name) for name in header.shapes):
            return kind, remedy
    return None


def _has(header: Header, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in header.shapes)
