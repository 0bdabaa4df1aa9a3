"""The latents, which are defined instead of learned, and the codes that the diffusion noise contains.

A latent stands for 8x8 pixels: their mean colour (three channels) and how much their brightness varies (one). So the
UNet's targets can be drawn directly, the UNet trains without the VAE, and its latents can be viewed as thumbnails.
"""

import math
import random

import numpy as np
import torch
from PIL import Image

from training.drawing import draw
from training.scenes import NO_CODES, Layout, Scene
from training.sketches import sketch

# Scaled latents are colours of -1 to 1 times this. A larger scale makes a picture stronger against later steps' noise.
SCALING = 6.0
_EDGE_GAIN, _EDGE_SHIFT = 2.0, -0.25

# SDXL's noise schedule: sigma of each training timestep.
_BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
_ALPHAS = torch.cumprod(1 - _BETAS, 0)
SIGMAS = ((1 - _ALPHAS) / _ALPHAS).sqrt().float()
LAST = 999


def scene_latents(
    scene: Scene,
    codes: tuple[float, ...] = NO_CODES,
    layout: Layout | None = None,
    *,
    width: int = 512,
    height: int = 512,
) -> torch.Tensor:
    """Draw the scene at half its size, and return its scaled latents: (4, height / 8, width / 8)."""
    return picture_latents(draw(scene, codes, layout=layout, width=width // 2, height=height // 2), block=4)


def sketch_latents(
    scene: Scene, codes: tuple[float, ...], layout: Layout, rng: random.Random, *, width: int = 512, height: int = 512
) -> torch.Tensor:
    """Sketch the scene at half its size, and return its scaled latents: (4, height / 8, width / 8)."""
    return picture_latents(sketch(scene, codes, layout, rng, width=width // 2, height=height // 2), block=4)


def picture_latents(picture: Image.Image, block: int = 8) -> torch.Tensor:
    """Return the scaled latents of an RGB picture, one for each block x block pixels."""
    rgb = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
    bright = rgb.mean(0, keepdim=True)
    means = torch.nn.functional.avg_pool2d(torch.cat([rgb, bright, bright**2])[None], block)[0]
    edge = (means[4:] - means[3:4] ** 2).clamp(min=0).sqrt()
    return torch.cat([means[:3], edge * _EDGE_GAIN + _EDGE_SHIFT]) * SCALING


def image_latents(images: torch.Tensor) -> torch.Tensor:
    """Return the UNSCALED latents of images (B, 3, H, W) of -1 to 1, the VAE encoder's targets: (B, 4, H/8, W/8).

    The variation is measured on 2x2 means, because `scene_latents` draws at half the size.
    """
    mean = torch.nn.functional.avg_pool2d(images, 8)
    bright = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 2)
    edge = torch.nn.functional.unfold(bright, 4, stride=4).view(len(images), 16, *mean.shape[2:])
    return torch.cat([mean, edge.std(1, unbiased=False, keepdim=True) * _EDGE_GAIN + _EDGE_SHIFT], 1)


def thumbnail(latents: torch.Tensor) -> Image.Image:
    """Return scaled latents (4, h, w) as a picture of w x h pixels."""
    rgb = ((latents[:3] / SCALING + 1) * 127.5).clamp(0, 255).round().byte()
    return Image.fromarray(rgb.permute(1, 2, 0).numpy())


# The signs of the codes' sums alternate in x, in y, or in both, from block to block.
ALTERNATIONS = ((1, 0), (0, 1), (1, 1))
_BLOCK = 16  # latents


def codes_of(noise: torch.Tensor) -> tuple[float, ...]:
    """Return twelve independent standard normal numbers from unit noise (4, h, w), if it has two blocks each way.

    The codes are each channel's sum with signs that alternate between blocks of 16x16, scaled to unit variance. A
    picture's plain parts hardly change such a sum.
    """
    height, width = noise.shape[1:]
    x = 1 - 2 * (torch.arange(width) // _BLOCK % 2)
    y = 1 - 2 * (torch.arange(height) // _BLOCK % 2)
    sums = [
        (noise * (x**alternates_x) * (y**alternates_y)[:, None]).sum((1, 2))
        for alternates_x, alternates_y in ALTERNATIONS
    ]
    return tuple((torch.cat(sums) / math.sqrt(height * width)).tolist())
