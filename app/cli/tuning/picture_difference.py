"""The difference between two files of pictures, in levels of 255."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True)
class Difference:
    """Differences of pictures' channels, in levels of 255.

    Attributes:
        largest: The largest of all.
        mean: The mean over all pictures.
        worst: The mean of the picture that differs most.
    """

    largest: int = 0
    mean: float = 0.0
    worst: float = 0.0

    def __or__(self, other: "Difference") -> "Difference":
        return Difference(max(self.largest, other.largest), max(self.mean, other.mean), max(self.worst, other.worst))


def difference_of(reference: Path, pictures: Path) -> Difference:
    """Compare the pictures of two NPZ files, which must have the same names and sizes.

    Raises:
        ValueError: A picture has another size, or only one of the files has it.
    """
    largest, means = [0], []
    with np.load(reference) as expected, np.load(pictures) as found:
        if set(found.files) != set(expected.files):
            raise ValueError("the pictures are not those of the reference")
        for name in found.files:
            if found[name].shape != expected[name].shape:
                raise ValueError(f"the picture {name!r} has not the size of the reference's")
            levels = np.abs(found[name].astype(np.int16) - expected[name])
            largest.append(int(levels.max()))
            means.append(float(levels.mean()))
    return Difference(max(largest), float(np.mean(means)), max(means))
