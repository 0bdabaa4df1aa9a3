"""A tiny model with random weights: SDXL-Turbo's classes and kinds of layers, and a picture of noise in milliseconds.

Tests of bytes, files and memory use it; tests of the pictures' meaning use the demo model. Unlike the demo model it has
SDXL's three levels in the UNet, attention in the VAE, and SDXL-Turbo's `scaling_factor`, `force_upcast` and scheduler.
Besides the sizes, its tokenizers differ from SDXL-Turbo's. Both are the same tokenizer of 514 tokens, which pads with
its end token and is written as `tokenizer.json`. The text encoders' configs have the ids of this tokenizer.

`build_tiny_vae` writes a VAE that can replace its own.
"""

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel

from benchmarks.nano_sdxl import build_small_sdxl


def build_tiny_model(folder: Path) -> None:
    """Write the model to `folder` (about 1 MB): a smaller version of the benchmark's nano SDXL."""
    with torch.random.fork_rng(devices=[]):
        build_small_sdxl(
            folder,
            hidden=32,
            unet_channels=(16, 32, 64),
            unet_layers=1,
            transformer_layers=(1, 1, 2),
            vae_channels=(8, 16, 16, 16),
        )


def build_tiny_vae(folder: Path) -> None:
    """Write a VAE of TAESDXL's class to `folder` (about 0.2 MB), under the names of TAESDXL's repository."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    vae.save_pretrained(folder)


def shard_unet(folder: Path) -> None:
    """Write the UNet of the model in `folder` anew, in three files with an index."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", variant="fp16", dtype=torch.float16)
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", variant="fp16", max_shard_size=unet.get_memory_footprint() // 2)
