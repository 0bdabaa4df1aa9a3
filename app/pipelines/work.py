"""The work of a picture relative to other pictures: the sum of its stages, each weighted by its share of the time."""

from collections.abc import Mapping

from app.pipelines.base import GenerationParams

_UNIT_PIXELS = 512 * 512

_FLOPS: Mapping[str, float] = {"text": 0.11, "unet": 1.59, "vae encode": 1.12, "vae decode": 2.51}
"""TFLOP of SDXL-Turbo's stages for one picture of 512x512, the UNet's for one step (counted by torch's
FlopCounterMode on the networks in their real shapes)."""

_ATTENTION_SHARE = 0.02
"""Share of the UNet and of the VAE at 512x512 that grows with the square of the pixels (the same count)."""


class StageTimes:
    """Seconds of each stage for a picture of 512x512, measured while warming up; until `settle` SDXL-Turbo's FLOPs.

    The proportion of UNet and VAE differs between devices and number formats; on one device it holds for every size.
    """

    def __init__(self) -> None:
        self.learning = True
        self._stages = dict(_FLOPS)
        self._measured: dict[str, float] = {}

    def learn(self, params: GenerationParams, stages_s: Mapping[str, float]) -> None:
        """Record the seconds of one picture's stages. The last measurement of a stage counts."""
        for stage, seconds in stages_s.items():
            times = 1.0 if stage == "text" else _scale(params) * (params.effective_steps if stage == "unet" else 1)
            self._measured[stage] = seconds / times

    def settle(self) -> None:
        """Stop learning. Use the measurements from now on if all stages of text to image have one."""
        self.learning = False
        if {"text", "unet", "vae decode"} <= self._measured.keys():
            # The VAE's encoder is assumed to run at its decoder's speed.
            encode_s = self._measured["vae decode"] * _FLOPS["vae encode"] / _FLOPS["vae decode"]
            self._stages = self._measured | {"vae encode": encode_s}

    def work(self, params: GenerationParams) -> float:
        """Return the work of a picture, in seconds or in TFLOP; only the proportion of two pictures' work counts."""
        stages = self._stages
        by_size = params.effective_steps * stages["unet"] + stages["vae decode"]
        if params.start is not None:
            by_size += stages["vae encode"]
        return stages["text"] + _scale(params) * by_size


def _scale(params: GenerationParams) -> float:
    """Return the work of this size relative to 512x512, for stages that work on pixels."""
    times = params.width * params.height / _UNIT_PIXELS
    return times * (1 + _ATTENTION_SHARE * (times - 1))
