"""The shortest possible start: load the pipeline, and make one 512x512 picture in each mode."""

import os
from typing import Any

import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image
from PIL import Image


def main() -> None:
    """Do only the work that the service must do before it opens its port."""
    pipe: Any = AutoPipelineForText2Image.from_pretrained(
        os.environ["BENCH_MODEL"],
        dtype=getattr(torch, os.environ["BENCH_DTYPE"]),
        variant="fp16",
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    image = pipe("", num_inference_steps=1, guidance_scale=0.0, width=512, height=512).images[0]
    other: Any = AutoPipelineForImage2Image.from_pipe(pipe, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    other("", image=image, num_inference_steps=2, strength=0.5, guidance_scale=0.0)
    third: Any = AutoPipelineForInpainting.from_pipe(pipe, add_watermarker=False)
    third.set_progress_bar_config(disable=True)
    mask = Image.new("L", (512, 512), "white")
    third("", image=image, mask_image=mask, num_inference_steps=2, strength=0.5, guidance_scale=0.0)


if __name__ == "__main__":
    main()
