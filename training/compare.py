"""Compares the demo model's pictures in another number format with those in fp32, pixel by pixel."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from app.settings import Settings
from training.detect import check
from training.evaluate import CAPTIONS, Model, new_edits, new_questions

CAPTIONS_COMPARED = {kind: count // 4 for kind, count in CAPTIONS.items()}

Task = tuple[Callable[[Model], Image.Image], Callable[[Image.Image], dict[str, bool]]]
"""Makes a model's picture for one caption, and checks the caption's attributes in it."""


@dataclass
class Differences:
    """The differences between pairs of pictures, in levels of 0 to 255.

    Attributes:
        values: How many colour values differ by each number of levels.
        pixels: The same for pixels; a pixel's difference is the largest of its three colour values.
        psnr_db: The peak signal-to-noise ratio of each pair of pictures. It is infinite if they are equal.
        lost: Captions whose attributes are all right in the first picture, and not in the second.
        gained: Captions whose attributes are all right in the second picture, and not in the first.
    """

    values: np.ndarray[tuple[int], np.dtype[np.int64]] = field(default_factory=lambda: np.zeros(256, np.int64))
    pixels: np.ndarray[tuple[int], np.dtype[np.int64]] = field(default_factory=lambda: np.zeros(256, np.int64))
    psnr_db: list[float] = field(default_factory=list)
    lost: int = 0
    gained: int = 0

    def add(self, one: Image.Image, other: Image.Image, *, right: bool, other_right: bool) -> None:
        """Count one pair of pictures, and whether each shows its whole caption."""
        levels = np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16))
        self.values += np.bincount(levels.ravel(), minlength=256)
        self.pixels += np.bincount(levels.max(axis=-1).ravel(), minlength=256)
        with np.errstate(divide="ignore"):
            self.psnr_db.append(float(10 * np.log10(255**2 / np.mean(np.square(levels, dtype=np.float64)))))
        self.lost += right and not other_right
        self.gained += other_right and not right

    @property
    def cells(self) -> list[str]:
        """The cells of a row of the table, in the order of its head."""
        levels = np.arange(256)
        below = np.cumsum(self.values) / self.values.sum()
        beyond = [self.pixels[levels > limit].sum() / self.pixels.sum() for limit in (2, 8)]
        return [
            f"{np.searchsorted(below, 0.5)}",
            f"{np.average(levels, weights=self.values):.2f}",
            f"{np.searchsorted(below, 0.99)}",
            f"{np.flatnonzero(self.values).max()}",
            *(f"{100 * share:.2f} %" for share in beyond),
            f"{np.median(self.psnr_db):.1f} dB",
            f"{min(self.psnr_db):.1f} dB",
            f"{self.lost} / {self.gained}",
        ]


_HEAD = ["median", "mean", "99 %", "largest", "over 2 levels", "over 8 levels", "PSNR", "worst PSNR", "lost / gained"]


def compare(folder: Path, dtype: str, *, captions: dict[str, int] = CAPTIONS_COMPARED) -> None:
    """Print how much the pictures of the model in `folder` differ from those in fp32, for each kind of picture.

    All of the model is in `dtype`, then all but the VAE, then only the VAE. `captions` is the number of held-out
    captions of each kind. As many edits are compared.
    """
    plain, *others = (
        Model(folder, Settings(dtype=main, vae_dtype=vae, batching="off"))
        for main, vae in (("fp32", "fp32"), (dtype, dtype), (dtype, "fp32"), ("fp32", dtype))
    )
    names = [f"all in {dtype}", f"VAE in fp32, the rest in {dtype}", f"VAE in {dtype}, the rest in fp32"]
    print(f"| | | {' | '.join(_HEAD)} |\n|---|---|{'---|' * len(_HEAD)}")
    for kind, tasks in _tasks(captions).items():
        differences = [Differences() for _ in others]
        for make, judge in tqdm(tasks, desc=kind, total=sum(captions.values()), mininterval=2):
            expected = make(plain)
            right = all(judge(expected).values())
            for other, difference in zip(others, differences, strict=True):
                picture = make(other)
                difference.add(expected, picture, right=right, other_right=all(judge(picture).values()))
        for name, difference in zip(names, differences, strict=True):
            print(f"| {kind} | {name} | {' | '.join(difference.cells)} |")


def _tasks(captions: dict[str, int]) -> dict[str, Iterator[Task]]:
    questions = new_questions(captions, seed=2)

    def text_to_image(steps: int) -> Iterator[Task]:
        for question in questions:
            yield (
                partial(Model.draw, caption=question.caption, seed=question.seed, steps=steps),
                partial(check, scene=question.scene),
            )

    def image_to_image() -> Iterator[Task]:
        for edit in new_edits(len(questions)):
            yield (
                partial(Model.change, image=edit.picture, caption=edit.caption, seed=edit.seed, steps=2, strength=0.5),
                partial(check, scene=edit.scene, layout=edit.layout),
            )

    return {
        "1 step": text_to_image(1),
        "4 steps": text_to_image(4),
        "image to image, strength 0.5, 2 steps": image_to_image(),
    }
