"""A nano SDXL with random weights: SDXL's architecture at a small size, to compare the servers around it on a CPU.

    python -m benchmarks.nano_sdxl FOLDER

The weights depend on this file alone. The pictures mean nothing, but every server makes the same ones. The tests' tiny
model and `full_size.py` use the same functions.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from app.weights.vocabulary import END, START, words

TOKENS = 77
"""Tokens of a prompt, with its start and end tokens."""

_TIME_EMBEDDING = 8


def build_nano_sdxl(folder: Path) -> None:
    """Write the nano model to `folder` (about 25 MB)."""
    build_small_sdxl(
        folder,
        hidden=64,
        unet_channels=(32, 64, 128),
        unet_layers=2,
        transformer_layers=(1, 2, 4),
        vae_channels=(8, 16, 32, 32),
    )


def build_small_sdxl(
    folder: Path,
    *,
    hidden: int,
    unet_channels: tuple[int, ...],
    unet_layers: int,
    transformer_layers: tuple[int, ...],
    vae_channels: tuple[int, ...],
) -> None:
    """Write a model to `folder` as `StableDiffusionXLPipeline.save_pretrained(variant="fp16")` does.

    Args:
        folder: The model's folder.
        hidden: Width of both text encoders.
        unet_channels: The UNet's channels in each level.
        unet_layers: The UNet's residual blocks in each level.
        transformer_layers: The UNet's transformer layers in each level.
        vae_channels: The VAE's channels in each level.
    """
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    tokenizer = _tokenizer(folder)
    # The weights depend on the order in which the models are made.
    pipeline = assemble(
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        vae=make_vae(block_out_channels=vae_channels, layers_per_block=1, norm_num_groups=4, sample_size=512),
        text_encoder=CLIPTextModel(_text_config(hidden, "quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(hidden, "gelu")),
        unet=make_unet(
            block_out_channels=unet_channels,
            layers_per_block=unet_layers,
            transformer_layers_per_block=transformer_layers,
            attention_head_dim=(1, 2, 4),
            cross_attention_dim=2 * hidden,
            addition_time_embed_dim=_TIME_EMBEDDING,
            projection_class_embeddings_input_dim=hidden + 6 * _TIME_EMBEDDING,
            norm_num_groups=8,
        ),
    )
    pipeline.save_pretrained(folder, variant="fp16", safe_serialization=True)


def assemble(**parts: Any) -> Any:
    """Return SDXL-Turbo's pipeline with these models and tokenizers, in fp16."""
    pipeline = StableDiffusionXLPipeline(
        **parts,
        # The configuration of stabilityai/sdxl-turbo's scheduler.
        scheduler=EulerAncestralDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="trailing",
            steps_offset=1,
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    return pipeline.to(dtype=torch.float16)


def make_unet(**sizes: Any) -> Any:
    """Return a UNet of SDXL's architecture; `sizes` are the size arguments of its class."""
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        addition_embed_type="text_time",
        **sizes,
    )


def make_vae(**sizes: Any) -> Any:
    """Return a VAE of SDXL's architecture; `sizes` are the size arguments of its class."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        scaling_factor=0.13025,
        force_upcast=True,
        **sizes,
    )


def _text_config(hidden: int, activation: str) -> CLIPTextConfig:
    vocabulary = len(words())
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        projection_dim=hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act=activation,
        max_position_embeddings=TOKENS,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """Make a CLIP tokenizer without merges: every byte is a token, so it accepts every prompt."""
    source = folder / "tokenizer"
    source.mkdir(parents=True, exist_ok=True)
    (source / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words())}), encoding="utf-8")
    (source / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(
        str(source), model_max_length=TOKENS, bos_token=START, eos_token=END, unk_token=END, pad_token=END
    )


if __name__ == "__main__":
    build_nano_sdxl(Path(sys.argv[1]))
