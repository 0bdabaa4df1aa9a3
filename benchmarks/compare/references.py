"""Makes the reference pictures: diffusers' own pipeline on the same weights, one picture at a time.

    python -m benchmarks.compare.references MODEL FOLDER SIDE:PROMPTS:COUNT ...

Existing pictures in the folder are kept.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoPipelineForText2Image

from benchmarks.support.pictures import Picture, Pixels, Prompts, file_of


def make_references(model: Path, folder: Path, side: int, prompts: Prompts, count: int) -> None:
    """Make the missing pictures of a kind until the folder has `count` of them."""
    file = file_of(folder, side, prompts)
    have: Pixels = np.load(file) if file.exists() else np.empty((0, side, side, 3), dtype=np.uint8)
    if len(have) >= count:
        return
    # Where invisible-watermark is installed, diffusers would change the pixels of pictures from 256 px on.
    pipe: Any = AutoPipelineForText2Image.from_pretrained(
        model, dtype=torch.float32, variant="fp16", add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    made = [_draw(pipe, Picture(side, prompts, number)) for number in range(len(have), count)]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(file, np.concatenate([have, np.stack(made)]))


def _draw(pipe: Any, picture: Picture) -> Pixels:
    image = pipe(
        prompt=picture.prompt,
        num_inference_steps=1,
        guidance_scale=0.0,
        width=picture.side,
        height=picture.side,
        generator=torch.Generator("cpu").manual_seed(picture.seed),
    ).images[0]
    return np.asarray(image)


if __name__ == "__main__":
    for kind in sys.argv[3:]:
        wanted_side, wanted_prompts, wanted_count = kind.split(":")
        make_references(
            Path(sys.argv[1]), Path(sys.argv[2]), int(wanted_side), Prompts(wanted_prompts), int(wanted_count)
        )
