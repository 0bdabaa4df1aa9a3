"""A tiny model of random weights: SDXL-Turbo's classes and kinds of layers, no meaning, a picture in milliseconds.

For tests that ask about bytes, files and memory. Those that ask about meaning use the demo model. Unlike the demo model
it has SDXL's three levels in the UNet, attention in the VAE, and SDXL-Turbo's `scaling_factor`, `force_upcast` and
scheduler. Besides the sizes, its tokenizers differ from SDXL-Turbo's: both are the same one of 514 tokens, pad with its
end mark and are written as `tokenizer.json`, and the text encoders' configs have its ids.
"""

from pathlib import Path

import torch

from benchmarks.nano_sdxl import build_small_sdxl


def build_tiny_model(folder: Path) -> None:
    """Write the model to `folder` (about 1 MB), as the benchmark's nano SDXL is written, in still smaller."""
    with torch.random.fork_rng(devices=[]):
        build_small_sdxl(
            folder,
            hidden=32,
            unet_channels=(16, 32, 64),
            unet_layers=1,
            transformer_layers=(1, 1, 2),
            vae_channels=(8, 16, 16, 16),
        )
