"""The seam's fake: no model, exact behaviour. It paints colours that depend on everything a real picture depends on."""

import hashlib
import time
from collections.abc import Sequence

from PIL import Image

from app.pipelines.base import (
    MAX_PROMPT_TOKENS,
    GenerationParams,
    Img2ImgParams,
    LoadedPipelines,
    Mode,
    PipelineImage,
)


class FakePipeline:
    """Paints an 8x8 pattern drawn from a hash of the params, scaled to the output's size.

    Image to image blends the pattern over the input by `strength`. A word counts as one token.
    """

    def __init__(self, *, inference_s: float = 0.0) -> None:
        """Make a pipeline of which each picture takes `inference_s` seconds."""
        self._inference_s = inference_s

    def __call__(self, batch: Sequence[GenerationParams], /) -> list[PipelineImage]:
        """Paint the batch; the contract is `Pipeline.__call__`."""
        return [self._paint(params) for params in batch]

    def _paint(self, params: GenerationParams) -> PipelineImage:
        time.sleep(self._inference_s)
        key = f"{params.mode}|{params.prompt}|{params.seed}|{params.effective_steps}"
        pattern = Image.frombytes("RGB", (8, 8), hashlib.shake_128(key.encode()).digest(8 * 8 * 3))
        image = pattern.resize((params.width, params.height), Image.Resampling.NEAREST)
        if isinstance(params, Img2ImgParams):
            image = Image.blend(params.image, image, params.strength)
        tokens = len(params.prompt.split()) + 2
        return PipelineImage(
            image=image,
            prompt_tokens=min(tokens, MAX_PROMPT_TOKENS),
            prompt_truncated=tokens > MAX_PROMPT_TOKENS,
        )


class FakeDevice:
    """A device that never fails."""

    def check(self) -> None:
        """Find nothing wrong; the contract is `Device.check`."""

    def free_memory(self) -> None:
        """Hold nothing, so give nothing back."""


def load_fake(*, inference_s: float = 0.0) -> LoadedPipelines:
    """Load the fake for both modes; the contract is `PipelineLoader`."""
    pipeline = FakePipeline(inference_s=inference_s)
    return LoadedPipelines(
        by_mode=dict.fromkeys(Mode, pipeline), device=FakeDevice(), model="fake", device_name="none", dtype="none"
    )
