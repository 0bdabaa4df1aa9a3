"""A tiny SDXL-Turbo of random weights: the exact format, no meaning, a picture in milliseconds.

For tests that ask about bytes, files and memory. Those that ask about meaning use the demo model.
"""

import json
from pathlib import Path

import torch
import transformers
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from app.pipelines.base import MAX_PROMPT_TOKENS

_HIDDEN = 32
_START, _END = "<|startoftext|>", "<|endoftext|>"


def build_tiny_model(folder: Path) -> None:
    """Write the model to `folder` (about 1 MB) as `StableDiffusionXLPipeline.save_pretrained(variant="fp16")` does.

    The weights are a function of this code alone: torch's generator is seeded.
    """
    transformers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = _random_pipeline(folder)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, variant="fp16", safe_serialization=True)


def _random_pipeline(folder: Path) -> StableDiffusionXLPipeline:
    tokenizer, tokenizer_2 = _tokenizer(folder), _tokenizer(folder)
    vocabulary = len(tokenizer)
    vae = _vae()
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(_text_config(vocabulary, "quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(vocabulary, "gelu")),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=_unet(),
        # As the scheduler of stabilityai/sdxl-turbo is configured.
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


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """Make a CLIP tokenizer without merges: every byte is a token, so every prompt can be written."""
    alphabet = _byte_alphabet()
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), _START, _END]
    source = folder / "tokenizer"
    source.mkdir(parents=True, exist_ok=True)
    (source / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (source / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(
        str(source),
        model_max_length=MAX_PROMPT_TOKENS,
        bos_token=_START,
        eos_token=_END,
        unk_token=_END,
        pad_token=_END,
    )


def _byte_alphabet() -> list[str]:
    """Return the 256 letters that byte-level BPE writes bytes with; unprintable bytes move above U+0100 (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(0x100) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(0x100 + i) for i in range(len(rest))]


def _text_config(vocabulary: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=_HIDDEN,
        intermediate_size=2 * _HIDDEN,
        projection_dim=_HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act=activation,
        max_position_embeddings=MAX_PROMPT_TOKENS,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def _unet() -> UNet2DConditionModel:
    time_embedding = 8
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=2 * _HIDDEN,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_embedding,
        projection_class_embeddings_input_dim=_HIDDEN + 6 * time_embedding,
        norm_num_groups=8,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=512,
        scaling_factor=0.13025,
        force_upcast=True,
    )
