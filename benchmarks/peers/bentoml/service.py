"""BentoML: one service with one worker, which returns a picture as BentoML's documentation shows."""

import os
from typing import Any

import bentoml
import torch
from diffusers import AutoPipelineForText2Image
from PIL.Image import Image


@bentoml.service(traffic={"timeout": 120}, workers=1)
class Turbo:
    """Text to image."""

    def __init__(self) -> None:
        """Load the pipeline in the worker process."""
        self.pipe: Any = AutoPipelineForText2Image.from_pretrained(
            os.environ["BENCH_MODEL"], dtype=torch.float32, variant="fp16"
        )
        self.pipe.set_progress_bar_config(disable=True)

    @bentoml.api
    def generate(self, prompt: str, seed: int = 0, width: int = 512, height: int = 512) -> Image:
        """Make the picture; BentoML encodes it as PNG."""
        image: Image = self.pipe(
            prompt=prompt,
            num_inference_steps=1,
            guidance_scale=0.0,
            width=width,
            height=height,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        return image
