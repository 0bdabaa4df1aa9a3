"""The difference between two files of pictures, in levels of 255."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest difference of a channel of a pixel, and the mean of the picture that differs most, in levels."""

    largest: int = 0
    mean: float = 0.0

    def __or__(self, other: "Difference") -> "Difference":
        return Difference(max(self.largest, other.largest), max(self.mean, other.mean))


def difference_of(reference: Path, pictures: Path) -> Difference:
    """Compare the pictures of the same names in two NPZ files. Pictures that `pictures` lacks are not compared.

    Raises:
        ValueError: A picture has another size, or `reference` lacks it.
    """
    worst = Difference()
    with np.load(reference) as expected, np.load(pictures) as found:
        for name in found.files:
            if name not in expected.files or found[name].shape != expected[name].shape:
                raise ValueError(f"the reference has no picture {name!r} of this size")
            levels = np.abs(found[name].astype(np.int16) - expected[name])
            worst |= Difference(int(levels.max()), float(levels.mean()))
    return worst
