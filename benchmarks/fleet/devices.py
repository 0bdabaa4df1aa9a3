"""Devices: how long their calls take, and how long a replica takes to start."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.inference.cost import CostModel
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import GenerationParams

_TFLOP_ONCE, _TFLOP_STEP = 2.62, 1.59
"""For a picture of 512x512: text encoders and VAE, and the UNet for each step (docs/scale-out.md)."""


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """Requests for one picture of a size, or for several. `call_s[n - 1]` are the seconds of a call with n pictures."""

    call_s: Sequence[float]
    side: int = 512
    steps: int = 1
    pictures: int = 1
    params: GenerationParams = field(init=False)

    def __post_init__(self) -> None:
        params = Txt2ImgParams(
            prompt="a picture", seed=0, num_inference_steps=self.steps, width=self.side, height=self.side
        )
        object.__setattr__(self, "params", params)

    @property
    def max_batch(self) -> int:
        return len(self.call_s)

    def seconds(self, pictures: int) -> float:
        """Return the seconds of the calls that make this many pictures, as many at once as the device can."""
        calls, rest = divmod(pictures, self.max_batch)
        return calls * self.call_s[-1] + (self.call_s[rest - 1] if rest else 0.0)


def costs_after_warm_up(reference: Kind) -> CostModel:
    """Return the service's own cost model, after a warm-up with single pictures of this kind."""
    costs = CostModel(_work, size=(reference.side, reference.side))
    costs.calibrate([(reference.params, reference.call_s[0])])
    return costs


def _work(params: GenerationParams) -> float:
    return params.width * params.height / 512**2 * (_TFLOP_ONCE + _TFLOP_STEP * params.num_inference_steps)


def fake(seconds: float, *, max_batch: int = 8) -> Kind:
    """Return the fake pipeline's pictures: each takes `seconds`, also in a batch (app/pipelines/fake.py)."""
    return Kind([seconds * pictures for pictures in range(1, max_batch + 1)], side=64)


A100 = Kind([0.112, 0.156, 0.200, 0.245])
"""SDXL-Turbo, 512x512, one step, compiled PyTorch in fp16 on an A100. One picture takes 12 % of the peak of 312 TFLOP/s
and four in a batch 22 %, for 4.2 TFLOP each (the measurement that docs/scale-out.md cites). The others lie on the line
between both."""
