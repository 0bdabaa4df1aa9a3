"""A nano SDXL of random weights: SDXL's architecture in small, for comparing what surrounds the model on a CPU.

    python -m benchmarks.nano_sdxl FOLDER

The weights are a function of this file alone. The pictures mean nothing; every server draws the same ones.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

_HIDDEN = 64
_TOKENS = 77
_START, _END = "<|startoftext|>", "<|endoftext|>"


def build_nano_sdxl(folder: Path) -> None:
    """Write the model to `folder` (about 25 MB) as `StableDiffusionXLPipeline.save_pretrained(variant="fp16")` does."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = _tokenizer(folder), _tokenizer(folder)
    vocabulary = len(tokenizer)
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(),
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
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, variant="fp16", safe_serialization=True)


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """Make a CLIP tokenizer without merges: every byte is a token, so every prompt can be written."""
    alphabet = _byte_alphabet()
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), _START, _END]
    source = folder / "tokenizer"
    source.mkdir(parents=True, exist_ok=True)
    (source / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (source / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(
        str(source), model_max_length=_TOKENS, bos_token=_START, eos_token=_END, unk_token=_END, pad_token=_END
    )


def _byte_alphabet() -> list[str]:
    """Return the 256 letters that byte-level BPE writes bytes with; unprintable bytes move above U+0100 (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = 256 - len(printable)
    return [*map(chr, printable), *(chr(0x100 + i) for i in range(unprintable))]


def _text_config(vocabulary: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=_HIDDEN,
        intermediate_size=2 * _HIDDEN,
        projection_dim=_HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act=activation,
        max_position_embeddings=_TOKENS,
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
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 2, 4),
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
        block_out_channels=(8, 16, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=512,
        scaling_factor=0.13025,
    )


if __name__ == "__main__":
    build_nano_sdxl(Path(sys.argv[1]))
