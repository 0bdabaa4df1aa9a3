"""The demo model's parts: SDXL's own classes, with small sizes."""

import copy
import itertools
import json
from collections import Counter
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from training.captions import VOCABULARY
from training.latents import SCALING

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 77
HIDDEN, HIDDEN_2 = 64, 128
PROJECTION = 192
_TIME_ID_CHANNELS = 8
UNET_CHANNELS = (24, 72, 128, 136, 112, 16, 16, 24)
TEXT_LEVEL = 4  # at 512x512 it has 4x4 cells, and the last level one
VAE_CHANNELS = (16, 24, 40, 52)


def byte_pair_encoding() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges: every word of the captions is one token, and other text falls back to bytes.

    This is ordinary BPE training (Sennrich et al., 2016) on the words, each counted once, until no pair is left. The
    256 letters for bytes are those of CLIP and GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(0x100) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(0x100 + i) for i in range(len(rest))]
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters)])
    words = [[*word[:-1], f"{word[-1]}</w>"] for word in VOCABULARY]
    merges = []
    while counts := Counter(pair for word in words for pair in itertools.pairwise(word)):
        left, right = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append((left, right))
        tokens[left + right] = None
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == (left, right):
                    word[i : i + 2] = [left + right]
                i += 1
    return {token: i for i, token in enumerate([*tokens, START, END])}, merges


def make_tokenizer(folder: Path, pad: str) -> CLIPTokenizer:
    """Write the tokenizer's files to `folder`, and load it from there."""
    vocabulary, merges = byte_pair_encoding()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(
        str(folder), model_max_length=TOKENS, bos_token=START, eos_token=END, unk_token=END, pad_token=pad
    )


def make_text_encoders() -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Make both text encoders with random weights."""
    vocabulary, _ = byte_pair_encoding()

    def config(hidden: int, layers: int, activation: str) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            projection_dim=PROJECTION,
            num_hidden_layers=layers,
            num_attention_heads=4,
            hidden_act=activation,
            max_position_embeddings=TOKENS,
            bos_token_id=vocabulary[START],
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[END],
        )

    return CLIPTextModel(config(HIDDEN, 2, "quick_gelu")), CLIPTextModelWithProjection(config(HIDDEN_2, 3, "gelu"))


def make_unet(channels: tuple[int, ...] = UNET_CHANNELS) -> UNet2DConditionModel:
    """Make the UNet with random weights.

    Cross attention is where it costs little. The levels below are narrow: their only task is to sum the noise.
    """
    levels = len(channels)
    text = [level == TEXT_LEVEL for level in range(levels)]
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in text),
        up_block_types=tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(text)),
        layers_per_block=tuple(2 if attends else 1 for attends in text),
        transformer_layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=HIDDEN + HIDDEN_2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=_TIME_ID_CHANNELS,
        projection_class_embeddings_input_dim=PROJECTION + 6 * _TIME_ID_CHANNELS,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=256,
    )


def make_vae() -> AutoencoderKL:
    """Make the VAE with random weights. Its latents are defined in `training.latents`, not learned."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=VAE_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=512,
        scaling_factor=SCALING,
        force_upcast=False,
    )


def make_scheduler() -> EulerAncestralDiscreteScheduler:
    """Make SDXL-Turbo's scheduler with v prediction, because at sigma 14.6 an error in epsilon counts 14.6 times."""
    return EulerAncestralDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        steps_offset=1,
        prediction_type="v_prediction",
    )


_FP16_SCALE = 2.0**-6
"""A power of two, which leaves the weights' digits unchanged."""


def fit_fp16(unet: UNet2DConditionModel) -> None:
    """Scale the activations of the two upmost levels down, in place, to fit fp16. The UNet's output stays the same.

    After training in fp32 they reach 190,000, and the largest fp16 number is 65,504. Every output of these levels
    passes through a group norm, which removes the scale. Where they begin, channels that share a group with the skip
    connection keep their scale until the first shortcut.
    """
    below = unet.up_blocks[-3].upsamplers[0].conv
    resnets = [*unet.up_blocks[-2].resnets, *unet.up_blocks[-1].resnets]
    size = resnets[0].in_channels // resnets[0].norm1.num_groups
    small = below.out_channels // size * size
    scaled = [below.weight[:small], below.bias[:small], unet.up_blocks[-2].upsamplers[0].conv.bias]
    for resnet in resnets:
        assert small % (resnet.in_channels // resnet.norm1.num_groups) == 0, "a group mixes channels"  # noqa: S101
        shortcut = resnet.conv_shortcut
        scaled += [resnet.conv2.weight, resnet.conv2.bias, shortcut.weight[:, small:], shortcut.bias]
        small = resnet.out_channels
    with torch.no_grad():
        for parameter in scaled:
            parameter.mul_(_FP16_SCALE)


def save_pipeline(
    folder: Path,
    *,
    text_encoder: CLIPTextModel,
    text_encoder_2: CLIPTextModelWithProjection,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
) -> None:
    """Write the model as `StableDiffusionXLPipeline.save_pretrained(variant="fp16")` does."""
    unet = copy.deepcopy(unet)
    fit_fp16(unet)
    half = [copy.deepcopy(part).eval().half() for part in (vae, text_encoder, text_encoder_2, unet)]
    for part in half:
        if not all(weight.isfinite().all() for weight in part.parameters()):
            msg = f"The weights of the {type(part).__name__} do not fit fp16."
            raise ValueError(msg)
    pipeline = StableDiffusionXLPipeline(
        vae=half[0],
        text_encoder=half[1],
        text_encoder_2=half[2],
        tokenizer=make_tokenizer(folder / "tokenizer", END),
        tokenizer_2=make_tokenizer(folder / "tokenizer_2", "!"),
        unet=half[3],
        scheduler=make_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, variant="fp16", safe_serialization=True)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors makes files readable by their owner only
