"""Compares the service's PNG encoder with Pillow's: CPU time, size, and how long the GIL is held.

    .venv/bin/python benchmarks/png.py

The encoders take turns on every picture. A time is the median CPU time of the thread, so other load on the machine has
little effect.

A second thread only records timestamps (beats), in CPU time of the encoder's thread. The longest gap between two beats
is an upper bound for the time that the encoder held the GIL, because the switch interval (100 s) leaves the GIL with
its holder. The table shows the smallest of all rounds: an encoder holds the GIL in every round, other delays vary. If
permitted (root on Linux), the beating thread has the highest priority. The first row is a sum that holds the GIL, for
comparison.

Photographs, textures and drawings come from a seeded generator. The demo model's pictures are those in docs/.
"""

import contextlib
import io
import itertools
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from app.images.png import encode_png

Pixels = npt.NDArray[np.uint8]
Field = npt.NDArray[np.float64]
Encoder = Callable[[Pixels], bytes]

_ROUNDS = 9
_DEFAULT, _LEVEL_1, _OURS = "Pillow default", "Pillow level 1", "ours"
_DEMO = Path(__file__).parents[1] / "docs" / "demo.png"
_MAX_GAP_MS = 1.0
_MAX_SIZE = {"detailed": 1.15, "flat": 1.25}
_MIN_SPEEDUP = {_DEFAULT: 15, _LEVEL_1: 7}


class Kind(StrEnum):
    """The kind of a picture, which decides the requirements. Smooth pictures have none."""

    DETAILED = "detailed"
    FLAT = "flat"
    SMOOTH = "smooth"


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, or several similar ones that are counted together."""

    name: str
    kind: Kind
    side: int
    pixels: list[Pixels]


@dataclass(frozen=True, slots=True)
class Result:
    """One encoder's result for one `Picture`. If it has several, CPU time is the sum; size and gap are the worst."""

    picture: Picture
    encoder: str
    cpu_ms: float
    relative_size: float
    gap_ms: float


def _pillow(**options: int) -> Encoder:
    def encode(pixels: Pixels) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", **options)
        return file.getvalue()

    return encode


_ENCODERS: dict[str, Encoder] = {_DEFAULT: _pillow(), _LEVEL_1: _pillow(compress_level=1), _OURS: encode_png}


class _Painter:
    """Makes square pictures with sides of `side` pixels."""

    def __init__(self, side: int) -> None:
        self._side = side
        self._random = np.random.default_rng(0)
        self._y, self._x = np.mgrid[0:side, 0:side] / side

    def pictures(self) -> Iterator[Picture]:
        detailed = {
            "photo": self._photo(grain=1.6),
            "photo, coarse grain": self._photo(grain=4),
            "photo, fine grain": self._photo(grain=0.5),
            "texture, rough": self._texture(1.0),
            "texture, medium": self._texture(1.4),
            "texture, fine": self._texture(1.8),
            "stripes": self._stripes(),
            "stripes, upright": self._stripes().transpose(1, 0, 2),
            "grey grain": _pixels(128 + 3 * self._noise(1).repeat(3, axis=-1)),
            "noisy blobs": self._blobs(),
            "noise": _pixels(128 + 12 * self._noise(3)),
            "random bytes": self._random.integers(0, 256, (self._side, self._side, 3), np.uint8),
        }
        flat = {f"{count} shapes": self._shapes(count) for count in (5, 25, 100)}
        smooth = {
            "soft clouds": _pixels(np.stack([128 + 45 * self._cloud(3) + 10 * self._cloud(2.5) for _ in range(3)], -1)),
            "gradient": _pixels(255 * np.stack([self._x, self._y, (1 + np.sin(4 * self._x + 3 * self._y)) / 2], -1)),
        }
        for kind, named in ((Kind.DETAILED, detailed), (Kind.FLAT, flat), (Kind.SMOOTH, smooth)):
            for name, pixels in named.items():
                yield Picture(name, kind, self._side, [np.ascontiguousarray(pixels)])

    def _noise(self, channels: int) -> Field:
        return self._random.normal(size=(self._side, self._side, channels))

    def _cloud(self, falloff: float) -> Field:
        """Return noise of mean 0 and deviation 1 whose amplitude falls with this power of the frequency."""
        frequency = np.hypot(np.fft.fftfreq(self._side)[:, None], np.fft.rfftfreq(self._side)[None, :])
        frequency[0, 0] = 1
        spectrum = self._random.normal(size=frequency.shape) + 1j * self._random.normal(size=frequency.shape)
        cloud = np.fft.irfft2(spectrum / frequency**falloff, s=(self._side, self._side))
        return np.asarray((cloud - cloud.mean()) / cloud.std(), np.float64)

    def _photo(self, *, grain: float) -> Pixels:
        """Return rough and soft areas under grain; each channel has its own grain."""
        light = self._cloud(1.9)
        rough = np.stack(
            [
                128 + 45 * light + 12 * self._cloud(1.7) + 25 * np.sin(3 * self._x + 2 * self._y + channel)
                for channel in range(3)
            ],
            axis=-1,
        ) + grain * self._noise(3)
        soft = np.array([170, 190, 215]) + 20 * self._y[..., None]
        share = 1 / (1 + np.exp(-6 * self._cloud(2.2)[..., None]))
        return _pixels(rough * share + soft * (1 - share) + grain / 2 * self._noise(3))

    def _texture(self, falloff: float) -> Pixels:
        light = self._cloud(falloff)
        return _pixels(np.stack([128 + 40 * light + 8 * self._cloud(2) for _ in range(3)], axis=-1))

    def _stripes(self) -> Pixels:
        waves = 60 * np.sin(0.9 * self._side * self._y + 3 * np.sin(10 * self._x))
        return _pixels(np.stack([128 + waves + 25 * self._cloud(1.8)] * 3, axis=-1) + 2 * self._noise(3))

    def _blobs(self) -> Pixels:
        """Return random colours on the grid of the latents, enlarged and noisy, like output of random weights."""
        cells = self._random.integers(0, 256, (self._side // 8, self._side // 8, 3), np.uint8)
        blobs = Image.fromarray(cells).resize((self._side, self._side), Image.Resampling.BICUBIC)
        return _pixels(np.asarray(blobs) + 6 * self._noise(3))

    def _shapes(self, count: int) -> Pixels:
        """Return ellipses, triangles and rectangles with smooth edges."""
        large = 4 * self._side
        image = Image.new("RGB", (large, large), "lightgrey")
        draw = ImageDraw.Draw(image)
        for number in range(count):
            x, y = self._random.integers(0, large, 2).tolist()
            size = int(self._random.integers(self._side // 4, self._side))
            red, green, blue = self._random.integers(0, 256, 3).tolist()
            fill = (red, green, blue)
            match number % 3:
                case 0:
                    draw.ellipse((x, y, x + size, y + size), fill=fill)
                case 1:
                    draw.polygon([(x, y), (x + size, y + size // 3), (x + size // 3, y + size)], fill=fill)
                case _:
                    draw.rectangle((x, y, x + size, y + size // 2), fill=fill)
        return np.asarray(image.resize((self._side, self._side), Image.Resampling.LANCZOS))


def _pixels(values: Field) -> Pixels:
    return values.clip(0, 255).astype(np.uint8)


def _demo_pictures() -> Picture:
    sheet = np.asarray(Image.open(_DEMO).convert("RGB"))
    corners = [(y, x) for y in (0, 318, 636) for x in (0, 256, 512, 768)]
    tiles = [np.ascontiguousarray(sheet[y : y + 256, x : x + 256]) for y, x in corners]
    return Picture("12 of the demo model", Kind.FLAT, 256, tiles)


def _results(picture: Picture) -> list[Result]:
    times_s: dict[str, list[float]] = {name: [] for name in _ENCODERS}
    sizes: dict[str, list[int]] = {}
    for _ in range(_ROUNDS):
        for name, encode in _ENCODERS.items():
            began = time.thread_time()
            sizes[name] = [len(encode(pixels)) for pixels in picture.pixels]
            times_s[name].append(time.thread_time() - began)
    return [
        Result(
            picture,
            name,
            cpu_ms=1e3 * statistics.median(times_s[name]),
            relative_size=max(size / default for size, default in zip(sizes[name], sizes[_DEFAULT], strict=True)),
            gap_ms=max(_longest_gap_ms(encode, pixels) for pixels in picture.pixels),
        )
        for name, encode in _ENCODERS.items()
    ]


def _longest_gap_ms(encode: Encoder, pixels: Pixels) -> float:
    clock = time.pthread_getcpuclockid(threading.get_ident())
    beats: list[float] = []
    done = threading.Event()

    def beat() -> None:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -20)
        while not done.is_set():
            beats.append(time.clock_gettime(clock))
            time.sleep(20e-6)

    heart = threading.Thread(target=beat)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(100)
    heart.start()
    try:
        return 1e3 * min(_longest_gap_s(encode, pixels, beats) for _ in range(_ROUNDS))
    finally:
        done.set()
        heart.join()
        sys.setswitchinterval(interval_s)


def _longest_gap_s(encode: Encoder, pixels: Pixels, beats: list[float]) -> float:
    time.sleep(0.001)
    before = len(beats)
    moments = [time.thread_time()]
    encode(pixels)
    moments += [*beats[before:], time.thread_time()]
    return max(later - earlier for earlier, later in itertools.pairwise(moments))


def _hold_the_gil(_: Pixels) -> bytes:
    return bytes(sum(range(100_000)) % 2)


def _print_row(result: Result) -> None:
    picture = result.picture
    print(
        f"{picture.kind:9}{picture.side:5}  {picture.name:21}{result.encoder:15}{result.cpu_ms:8.2f}"
        f"{result.relative_size:8.3f}{result.gap_ms:8.2f}",
        flush=True,
    )


def _print_verdicts(results: list[Result]) -> None:
    ours = [result for result in results if result.encoder == _OURS]
    compared = [result for result in ours if (result.picture.kind, result.picture.side) == (Kind.DETAILED, 512)]
    for other, factor in _MIN_SPEEDUP.items():
        theirs_ms = {_label(result.picture): result.cpu_ms for result in results if result.encoder == other}
        labels = [_label(result.picture) for result in compared]
        speedups = [theirs_ms[label] / result.cpu_ms for label, result in zip(labels, compared, strict=True)]
        requirement = f"at least {factor} times faster than {other} (CPU time), detailed, 512"
        _print_verdict(requirement, labels, speedups, at_least=factor)
    for kind, most in _MAX_SIZE.items():
        sized = [result for result in ours if result.picture.kind == kind]
        labels = [_label(result.picture) for result in sized]
        requirement = f"at most {most:.2f} times {_DEFAULT}'s size, {kind}"
        _print_verdict(requirement, labels, [result.relative_size for result in sized], at_most=most)
    labels = [_label(result.picture) for result in ours]
    _print_verdict(f"no gap over {_MAX_GAP_MS:g} ms", labels, [result.gap_ms for result in ours], at_most=_MAX_GAP_MS)


def _label(picture: Picture) -> str:
    return f"{picture.name} {picture.side}"


def _print_verdict(
    requirement: str, labels: list[str], figures: list[float], *, at_least: float = 0, at_most: float = math.inf
) -> None:
    missed = [
        f"{label} ({figure:.3g})"
        for label, figure in zip(labels, figures, strict=True)
        if not at_least <= figure <= at_most
    ]
    verdict = f"missed by {len(missed)} of {len(figures)}: {', '.join(missed)}" if missed else "met"
    middle = statistics.median(figures)
    print(f"{requirement}: {min(figures):.3g} to {max(figures):.3g}, median {middle:.3g}; {verdict}")


def main() -> None:
    """Print the table and the verdict on every requirement."""
    print(f"{'kind':9}{'side':>5}  {'picture':21}{'encoder':15}{'CPU ms':>8}{'size':>8}{'gap ms':>8}")
    demo = _demo_pictures()
    print(f"{'a sum, not an encoder':53}{_longest_gap_ms(_hold_the_gil, demo.pixels[0]):21.2f}")
    pictures = [demo, *_Painter(512).pictures(), *_Painter(1024).pictures()]
    results: list[Result] = []
    for picture in pictures:
        for result in _results(picture):
            results.append(result)
            _print_row(result)
    _print_verdicts(results)


if __name__ == "__main__":
    main()
