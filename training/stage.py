"""What the stages share: checkpoints that a run goes on from, progress bars, and loss curves."""

import csv
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

STAGE_S = 30 * 60
_SAVE_S = 120
_LOG_STEPS = 50


class Part(Protocol):
    """What a checkpoint can hold: a module or an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Go on from this state."""


class Stage:
    """A training of a fixed number of steps, in runs of at most half an hour that go on from each other."""

    def __init__(self, folder: Path, name: str, steps: int, parts: Mapping[str, Part]) -> None:
        """Keep `name`'s checkpoint, losses and pictures in `folder`; load `parts` if a run was here before."""
        self._checkpoint = folder / f"{name}.pt"
        self._losses = folder / f"{name}.csv"
        self._name, self._steps, self._parts = name, steps, parts
        self.done = 0
        folder.mkdir(parents=True, exist_ok=True)
        if not self._checkpoint.exists():
            self._losses.unlink(missing_ok=True)
            return
        saved = torch.load(self._checkpoint, map_location="cpu")
        self.done = saved["step"]
        for key, part in parts.items():
            part.load_state_dict(saved[key])

    @property
    def is_done(self) -> bool:
        """Whether all steps were made."""
        return self.done >= self._steps

    def steps(self, *, look: Callable[[], None] = lambda: None) -> Iterator[tuple[int, float, dict[str, float]]]:
        """Yield each step's number, the share of the training that is behind, and a dict for the step's losses.

        Every two minutes the state is saved, the curves are drawn, and `look` may draw pictures.
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
                    self._log(means)
                    sums.clear()
                if time.monotonic() - saved > _SAVE_S:
                    self._save()
                    look()
                    saved = time.monotonic()
        self._save()
        look()

    def _save(self) -> None:
        scratch = self._checkpoint.with_suffix(".tmp")
        torch.save({"step": self.done} | {key: part.state_dict() for key, part in self._parts.items()}, scratch)
        scratch.replace(self._checkpoint)
        self._draw_curves()

    def _log(self, means: dict[str, float]) -> None:
        is_new = not self._losses.exists()
        with self._losses.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["step", "loss", "value"])
            writer.writerows([self.done, key, f"{value:.6f}"] for key, value in means.items())

    def _draw_curves(self) -> None:
        if not self._losses.exists():
            return
        import matplotlib as mpl  # noqa: PLC0415 - slow to import, and needed here only

        mpl.use("Agg")
        from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

        curves: dict[str, list[tuple[int, float]]] = {}
        with self._losses.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                curves.setdefault(row["loss"], []).append((int(row["step"]), float(row["value"])))
        figure, axes = plt.subplots(figsize=(7, 4))
        for key, points in curves.items():
            axes.plot(*zip(*points, strict=True), label=key)
        axes.set(xlabel="step", ylabel="loss", title=self._name, yscale="log")
        axes.legend()
        figure.savefig(self._losses.with_suffix(".png"), dpi=100)
        plt.close(figure)


def rate(share: float, step: int, *, warm_up: int, decay: float) -> float:
    """Return the learning rate's factor: up over `warm_up` steps, flat, down to a fiftieth over the last `decay`."""
    return min(1.0, (step + 1) / warm_up, max(0.02, (1 - share) / decay))


def move_average(average: torch.nn.Module, module: torch.nn.Module, step: int, longest: float) -> None:
    """Move the exponential moving average of the weights on by one step."""
    kept = min(longest, (step + 1) / (step + 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - kept)
