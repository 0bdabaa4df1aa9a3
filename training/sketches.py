"""Drawings as a person makes them on a canvas: thick strokes, uneven outlines, roughly filled."""

import math
import random
from collections.abc import Sequence
from functools import partial

from PIL import Image, ImageDraw

from training.drawing import Canvas, draw
from training.scenes import Layout, Rgb, Scene

_OUTLINE, _FILLED, _HATCHED = "outline", "filled", "hatched"
_SMALL = 0.12  # parts smaller than this share of the object are often left out


class _Hand(Canvas):
    """A canvas on which each part is drawn by an unsteady hand, in one manner for the whole drawing."""

    def __init__(
        self,
        image: Image.Image,
        x: float,
        y: float,
        radius: float,
        *,
        rng: random.Random,
        filled: bool,
        mirrored: bool = False,
    ) -> None:
        super().__init__(image, x, y, radius, mirrored=mirrored)
        self._pen = ImageDraw.Draw(image)
        self._paper = image.getpixel((0, 0))
        self._rng = rng
        self._manner = _FILLED if filled else rng.choices((_OUTLINE, _FILLED, _HATCHED), (0.35, 0.4, 0.25))[0]
        self._width = rng.uniform(0.09, 0.2)
        self._uneven = rng.uniform(0.02, 0.07)
        turn, stretch = rng.gauss(0, 0.07), rng.gauss(0, 0.06)
        self._across = (math.cos(turn) * (1 + stretch), -math.sin(turn))
        self._down = (math.sin(turn), math.cos(turn) * (1 - stretch))
        self._ink: Rgb | None = None

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Rgb) -> None:
        angles = [2 * math.pi * i / 28 for i in range(28)]
        self._part([(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles], colour)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: Rgb) -> None:
        self._part([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def polygon(self, points: list[tuple[float, float]], colour: Rgb) -> None:
        self._part(points, colour)

    def _part(self, points: Sequence[tuple[float, float]], colour: Rgb) -> None:
        size = min(max(p[axis] for p in points) - min(p[axis] for p in points) for axis in (0, 1))
        if size < _SMALL and self._rng.random() < 0.4:
            return
        manner = self._manner if size > 2.5 * self._width else _FILLED
        if colour == self._paper and manner != _FILLED and self._ink:
            manner, colour = _OUTLINE, self._ink  # the rim of a hole
        self._ink = colour
        line = [self._at(*point) for point in self._wobbly(points, min(1.0, size))]
        width = max(1, round(self._width * self._radius * min(1.0, size)))
        if manner == _FILLED:
            self._pen.polygon(line, fill=colour)
        if manner == _HATCHED:
            self._hatch(line, colour, width)
        if manner != _FILLED:
            self._pen.line([*line, *line[:2]], fill=colour, width=width, joint="curve")

    def _wobbly(self, points: Sequence[tuple[float, float]], size: float) -> list[tuple[float, float]]:
        """Return the closed line with more points, moved by slow waves."""
        fine: list[tuple[float, float]] = []
        count = max(1, 32 // len(points))
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            fine += [(x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count) for i in range(count)]
        waves = [(k, self._rng.gauss(0, 1) / k, self._rng.uniform(0, 2 * math.pi)) for k in (1, 2, 3, 5) for _ in "xy"]
        moved = []
        for i, (x, y) in enumerate(fine):
            a = 2 * math.pi * i / len(fine)
            dx, dy = (
                self._uneven * size * sum(strength * math.sin(k * a + phase) for k, strength, phase in waves[axis::2])
                for axis in (0, 1)
            )
            moved.append((self._across[0] * x + self._across[1] * y + dx, self._down[0] * x + self._down[1] * y + dy))
        return moved

    def _hatch(self, line: list[tuple[float, float]], colour: Rgb, width: int) -> None:
        """Fill the closed line with level strokes."""
        top, bottom = min(y for _, y in line), max(y for _, y in line)
        y = top + width / 2
        while y < bottom:
            ends = sorted(
                x0 + (y - y0) * (x1 - x0) / (y1 - y0)
                for (x0, y0), (x1, y1) in zip(line, [*line[1:], line[0]], strict=True)
                if (y0 <= y) != (y1 <= y)
            )
            for left, right in zip(ends[::2], ends[1::2], strict=False):
                slant = self._rng.gauss(0, 0.3) * width
                self._pen.line([(left, y), (right, y + slant)], fill=colour, width=width)
            y += width * self._rng.uniform(0.8, 1.5)


def sketch(
    scene: Scene,
    codes: tuple[float, ...],
    layout: Layout,
    rng: random.Random,
    *,
    width: int = 512,
    height: int = 512,
) -> Image.Image:
    """Return a shape, a pair or an animal as a person would draw it, in an RGB picture of width x height pixels."""
    hand = partial(_Hand, rng=rng, filled=scene.shape == "crescent")  # whose outline would be two circles
    return draw(scene, codes, layout=layout, width=width, height=height, canvas=hand)
