"""Common parts of the stages: checkpoints from which a run continues, progress bars, and loss curves."""

import csv
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn import functional
from tqdm import tqdm

STAGE_S = 30 * 60
_SAVE_S = 120
_LOG_STEPS = 50
_FEW_CELLS = 16  # of fewer cells, a convolution in bf16 (torch 2.13) sometimes gave NaN


class Part(Protocol):
    """A part of a checkpoint: a module or an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Restore this state."""


class Stage:
    """A training of a fixed number of steps, in runs of at most half an hour. Each run continues from the last one."""

    def __init__(self, folder: Path, name: str, steps: int, parts: Mapping[str, Part]) -> None:
        """Keep the stage's files in `folder`, and load `parts` from its checkpoint if there is one."""
        self._checkpoint = folder / f"{name}.pt"
        self._table = folder / f"{name}.csv"
        self._losses: list[tuple[int, str, float]] = []
        self._name, self._steps, self._parts = name, steps, parts
        self.done = 0
        folder.mkdir(parents=True, exist_ok=True)
        if not self._checkpoint.exists():
            return
        saved = torch.load(self._checkpoint, map_location="cpu")
        self.done, self._losses = saved["step"], saved["losses"]
        for key, part in parts.items():
            part.load_state_dict(saved[key])

    @property
    def is_done(self) -> bool:
        return self.done >= self._steps

    def steps(self, *, look: Callable[[], None] = lambda: None) -> Iterator[tuple[int, float, dict[str, float]]]:
        """Yield each step's number, the completed share of the training, and a dict for the step's losses.

        Every two minutes the stage saves its state, draws the curves, and calls `look`, which may draw pictures.
        """
        started = saved = time.monotonic()
        sums: dict[str, list[float]] = {}
        with tqdm(total=self._steps, initial=self.done, desc=self._name, mininterval=2, unit="step") as bar:
            while not self.is_done and time.monotonic() - started < STAGE_S:
                losses: dict[str, float] = {}
                yield self.done, self.done / self._steps, losses
                self.done += 1
                bar.update()
                for key, value in losses.items():
                    sums.setdefault(key, []).append(value)
                if self.done % _LOG_STEPS == 0 and sums:
                    means = {key: sum(values) / len(values) for key, values in sums.items()}
                    bar.set_postfix({key: f"{value:.4f}" for key, value in means.items()})
                    self._losses += [(self.done, key, value) for key, value in means.items()]
                    sums.clear()
                if time.monotonic() - saved > _SAVE_S:
                    self._save()
                    look()
                    saved = time.monotonic()
        self._save()
        look()

    def _save(self) -> None:
        scratch = self._checkpoint.with_suffix(".tmp")
        parts = {key: part.state_dict() for key, part in self._parts.items()}
        torch.save({"step": self.done, "losses": self._losses} | parts, scratch)
        scratch.replace(self._checkpoint)
        with self._table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("step", "loss", "value"), *self._losses])
        if self._losses:
            self._draw_curves()

    def _draw_curves(self) -> None:
        import matplotlib as mpl  # noqa: PLC0415 - slow to import, and used only here

        mpl.use("Agg")
        from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

        figure, axes = plt.subplots(figsize=(7, 4))
        for name in dict.fromkeys(name for _, name, _ in self._losses):
            points = [(step, value) for step, of, value in self._losses if of == name]
            axes.plot(*zip(*points, strict=True), label=name)
        axes.set(xlabel="step", ylabel="loss", title=self._name, yscale="log")
        axes.legend()
        figure.savefig(self._table.with_suffix(".png"), dpi=100)
        plt.close(figure)


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 where the device multiplies in it, else fp32."""
    fast = device.type != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16")
    return torch.bfloat16 if fast else torch.float32


def convolve_fast(module: torch.nn.Module) -> None:
    """Make the convolutions multiply in bf16 where that is fast. Weights, sums and all else stay in fp32.

    On a CPU with AVX-512 BF16 a convolution then takes 0.4 to 0.7 of the time, forwards and backwards.
    """
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d) and (dtype := fast_dtype(part.weight.device)) != torch.float32:
            part.forward = partial(_convolve, part, dtype)  # type: ignore[method-assign]


def _convolve(part: torch.nn.Conv2d, dtype: torch.dtype, inputs: torch.Tensor) -> torch.Tensor:
    if inputs.shape[-1] * inputs.shape[-2] < _FEW_CELLS:
        dtype = torch.float32
    bias = None if part.bias is None else part.bias.to(dtype)
    # The padding is a number of pixels everywhere in these models.
    outputs: torch.Tensor = functional.conv2d(inputs.to(dtype), part.weight.to(dtype), bias, part.stride, part.padding)
    return outputs.to(inputs.dtype)


def rate(share: float, step: int, *, warm_up: int, decay: float) -> float:
    """Return the learning rate's factor: up over `warm_up` steps, flat, then down to 0.02 over the last `decay`."""
    return min(1.0, (step + 1) / warm_up, max(0.02, (1 - share) / decay))


def move_average(average: torch.nn.Module, module: torch.nn.Module, step: int, longest: float) -> None:
    """Update the exponential moving average of the weights by one step."""
    kept = min(longest, (step + 1) / (step + 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - kept)
