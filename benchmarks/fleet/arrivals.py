"""Arrivals: Poisson processes whose rate changes with time."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Rate = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
"""Requests a second at each of these moments, in seconds from the start."""

_DAY_S = 24 * 3600


def steady(per_second: float) -> Rate:
    """Return a rate that never changes."""
    return lambda at: np.full_like(at, per_second)


def daily(peak: float, *, trough: float) -> Rate:
    """Return the rate of a day: `trough` at midnight, `peak` at noon, a cosine between them."""
    return lambda at: trough + (peak - trough) * (1 - np.cos(2 * np.pi * at / _DAY_S)) / 2


def with_burst(rate: Rate, *, at_s: float, lasts_s: float, times: float) -> Rate:
    """Multiply a rate by `times` from `at_s` on for `lasts_s`."""
    return lambda at: rate(at) * np.where((at >= at_s) & (at < at_s + lasts_s), times, 1.0)


def with_flash_crowd(rate: Rate, *, at_s: float, times: float, rise_s: float, half_life_s: float) -> Rate:
    """Multiply a rate by up to `times`: this grows for `rise_s`, and then the excess halves each `half_life_s`."""

    def crowd(at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        since = at - at_s
        rising = np.clip(since / rise_s, 0, 1)
        falling = 0.5 ** (np.maximum(since - rise_s, 0) / half_life_s)
        return rate(at) * (1 + (times - 1) * rising * falling)

    return crowd


def arrivals(rate: Rate, *, lasts_s: float, seed: int) -> npt.NDArray[np.float64]:
    """Return the sorted moments of a Poisson process with this rate, by thinning one with its highest rate.

    Source: Lewis and Shedler, Simulation of nonhomogeneous Poisson processes by thinning (1979). The highest rate is
    looked for at each second.
    """
    chance = np.random.default_rng(seed)
    highest = float(rate(np.arange(0, lasts_s, 1.0)).max())
    candidates = np.sort(chance.uniform(0, lasts_s, chance.poisson(highest * lasts_s)))
    kept = chance.uniform(0, highest, len(candidates)) < rate(candidates)
    return np.asarray(candidates[kept])
