"""The seam's fake: no model, exact behaviour. Its colours depend on everything that a real picture depends on."""

import hashlib
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

from app.pipelines import base
from app.pipelines.prompt_options import PromptOptions
from app.pipelines.prompt_syntax import sections_of
from app.pipelines.prompt_windows import Token, Windows, windows_of

_PAINT_S = 1e-8
"""Seconds that painting takes for a pixel, roughly."""


class FakePipeline:
    """Paints an 8x8 pattern drawn from a hash of the params, scaled to the output's size.

    From a picture on, the pattern is blended over it by `strength`, where the mask draws. A word counts as one token,
    and a comma too if it stands alone. Each picture takes `inference_s` seconds.
    """

    def __init__(self, *, inference_s: float = 0.0, max_batch: int = 8) -> None:
        self._inference_s = inference_s
        self._max_batch = max_batch

    def __call__(self, batch: Sequence[base.GenerationParams], /) -> list[base.PipelineImage]:
        return [self._paint(params) for params in batch]

    def batch_limit(self, key: base.BatchKey) -> int:  # noqa: ARG002 - the same for all kinds
        return self._max_batch

    def _paint(self, params: base.GenerationParams) -> base.PipelineImage:
        time.sleep(self._inference_s)
        windows = _read(params.prompt, params.prompt_options)
        text = "|".join(f"{token.id}*{token.weight}" for window in windows.used for token in (*window, Token("")))
        key = f"{params.mode}|{text}|{params.seed}|{params.effective_steps}"
        pattern = Image.frombytes("RGB", (8, 8), hashlib.shake_128(key.encode()).digest(8 * 8 * 3))
        image = pattern.resize((params.width, params.height), Image.Resampling.NEAREST)
        if params.start is not None and params.strength is not None:
            image = Image.blend(params.start, image, params.strength)
            if params.mask is not None:
                image = Image.composite(image, params.start, params.mask)
        used = windows.tokens
        return base.PipelineImage(pixels=np.asarray(image), tokens=used + windows.dropped_tokens, prompt_tokens=used)


def _read(prompt: str, options: PromptOptions) -> Windows[str]:
    sections = [
        [Token(word, fragment.weight) for fragment in section for word in fragment.text.split()]
        for section in sections_of(prompt, options.syntax)
    ]
    return windows_of(sections, options.mode, comma=",")


class FakeDevice:
    """A device that never fails and holds no memory."""

    def check(self) -> None:
        pass

    def free_memory(self) -> None:
        pass


def load_fake(*, inference_s: float = 0.0, max_batch: int = 8) -> base.LoadedPipelines:
    """Load the fake for every mode; the contract is `PipelineLoader`."""
    pipeline = FakePipeline(inference_s=inference_s, max_batch=max_batch)
    return base.LoadedPipelines(
        by_mode=dict.fromkeys(base.Mode, pipeline),
        device=FakeDevice(),
        model="fake",
        device_name="none",
        dtype="none",
        work=lambda params: inference_s + _PAINT_S * params.width * params.height,
    )
