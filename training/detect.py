"""Classical picture checks without learning: detects attributes by colours, connected components and templates.

Shapes are compared with the ten templates, and nothing else may be in the picture. An animal or a landscape is compared
with drawings: the caption's, and others that differ in one attribute. They have the picture's background, and make the
choices that the caption leaves open as the picture does. The attribute is right if the caption's drawing is nearest.
"""

import functools
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from PIL import Image

from training.drawing import SKY, colours_of, draw, styled
from training.scenes import (
    ACCESSORIES,
    ANIMALS,
    CHOICES,
    COLOURS,
    ELEMENTS,
    EMPTY_PROMPT,
    NO_CODES,
    POSITIONS,
    SHAPES,
    SIZES,
    STYLES,
    Layout,
    Scene,
    with_choices,
)

Array = np.ndarray[Any, np.dtype[Any]]
_SIDE = 128
_TEMPLATE = 48
# The smallest overlap with a template that counts; drawn shapes have at least 0.81.
_LIKE = 0.72
# Things beside an object are ignored up to this share of its area.
_CRUMB = 0.1
# Where an animal may also stand, though no code chooses this place; the packaged model draws most animals here.
_MIDDLE = Layout(0.5, 0.5, 0.3)


@dataclass(frozen=True)
class Found:
    """An object: its colour and shape, its box's centre in fractions of width and height, and its size.

    `radius` is half of the box's longer side in fractions of the picture's shorter side; `area` is in pixels.
    """

    colour: str
    shape: str | None
    x: float
    y: float
    radius: float
    area: int

    @property
    def position(self) -> str:
        """The nearest of the nine positions."""
        column = 0 if self.x < 0.42 else 2 if self.x > 0.58 else 1
        row = 0 if self.y < 0.42 else 2 if self.y > 0.58 else 1
        return POSITIONS[3 * row + column]

    @property
    def size(self) -> str:
        """The nearest of the three sizes."""
        return min(SIZES, key=lambda name: abs(SIZES[name] - self.radius))


def pixels_of(image: Image.Image) -> Array:
    """Return the picture as RGB values of 0 to 255 (H, W, 3), with its shorter side scaled to 128."""
    scale = _SIDE / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX), np.float32)


def background_rgb(pixels: Array) -> Array:
    """Return the median colour of the picture's rim."""
    rim = np.concatenate([pixels[:4].reshape(-1, 3), pixels[:, :4].reshape(-1, 3), pixels[:, -4:].reshape(-1, 3)])
    middle: Array = np.median(rim, 0)
    return middle


def nearest_colour(rgb: Array, style: str | None = None) -> str:
    """Return the name of the nearest colour, compared after the style is applied."""
    names = list(COLOURS)
    palette = styled(np.array([COLOURS[name] for name in names]), style)
    return names[int(np.abs(palette - rgb).sum(1).argmin())]


def find_objects(pixels: Array, style: str | None = None) -> list[Found]:
    """Return the connected objects that are not background, the largest first."""
    height, width = pixels.shape[:2]
    distance = np.abs(pixels - background_rgb(pixels)).sum(-1)
    is_object = distance > (20 if style else 55)
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(is_object.astype(np.uint8), connectivity=4)
    areas = statistics[1:, cv2.CC_STAT_AREA]  # the first is the background
    found = []
    for index in np.argsort(areas)[::-1]:
        if areas[index] < 16:
            break
        mask = labels == index + 1
        rows, columns = np.where(mask)
        core = mask & (distance >= np.percentile(distance[mask], 40))
        x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
        found.append(
            Found(
                colour=nearest_colour(np.median(pixels[core], 0), style),
                shape=_shape_of(mask[y0:y1, x0:x1]),
                x=(x0 + x1) / 2 / width,
                y=(y0 + y1) / 2 / height,
                radius=max(x1 - x0, y1 - y0) / 2 / _SIDE,
                area=int(areas[index]),
            )
        )
    return found


def _squared(mask: Array) -> Array:
    """Return a cropped mask in a square, with its proportions kept."""
    height, width = mask.shape
    side = max(height, width)
    square = Image.new("L", (side, side))
    square.paste(Image.fromarray(mask.astype(np.uint8) * 255), ((side - width) // 2, (side - height) // 2))
    return np.asarray(square.resize((_TEMPLATE, _TEMPLATE), Image.Resampling.BILINEAR)) > 127


@functools.cache
def _templates() -> dict[str, Array]:
    templates = {}
    for shape in SHAPES:
        picture = draw(Scene("shape", shape=shape, colour="white", background="black", size="large"))
        mask = np.asarray(picture.convert("L")) > 127
        rows, columns = np.where(mask)
        templates[shape] = _squared(mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    return templates


def _shape_of(mask: Array) -> str | None:
    square = _squared(mask)
    overlap = {name: float((square & t).sum() / (square | t).sum()) for name, t in _templates().items()}
    best = max(overlap, key=lambda name: overlap[name])
    return best if overlap[best] >= _LIKE else None


class _Drawings:
    """Drawings to compare a picture with. They make the open choices as the picture does, judging by the caption's."""

    def __init__(self, pixels: Array, scene: Scene, layout: Layout | None) -> None:
        self._pixels, self._layout = pixels, layout
        self._background = background_rgb(pixels).round()
        self._codes = NO_CODES
        places = [layout]
        if scene.kind == "animal" and not (layout or scene.size or scene.position):
            places.append(_MIDDLE)
        found = []
        for place in places:
            self._layout = place
            found += [
                (value, codes, place) for codes, value in self._differences(scene, list(CHOICES[scene.kind])).items()
            ]
        _, self._codes, self._layout = min(found, key=lambda one: one[0])

    def nearest(self, scenes: Iterable[Scene], free: str | None = None) -> Scene:
        """Return the scene whose drawing is nearest to the picture. An unnamed background is the picture's own.

        Each drawing chooses the attribute `free` as fits it best.
        """
        return min(scenes, key=lambda scene: min(self._differences(scene, [free] if free else []).values()))

    def _differences(self, scene: Scene, attributes: list[str]) -> dict[tuple[float, ...], float]:
        """Return the difference for all choices of these attributes, by their codes."""
        if self._layout:
            attributes = [name for name in attributes if name not in ("column", "row", "size")]
        counts = [CHOICES[scene.kind][name][0] for name in attributes]
        differences = {}
        for choices in itertools.product(*(range(count) for count in counts)):
            codes = with_choices(self._codes, scene.kind, dict(zip(attributes, choices, strict=True)))
            differences[codes] = self._difference(scene, codes)
        return differences

    def _difference(self, scene: Scene, codes: tuple[float, ...]) -> float:
        height, width = self._pixels.shape[:2]
        drawing = np.array(draw(scene, codes, layout=self._layout, width=width, height=height), np.float32)
        if scene.kind != "landscape" and not scene.background:
            plain = styled(np.array(colours_of(scene, codes)[0]), scene.style)
            drawing[np.abs(drawing - plain).sum(-1) < 3] = self._background
        return float(np.abs(drawing - self._pixels).mean())


def check(image: Image.Image, scene: Scene, layout: Layout | None = None) -> dict[str, bool]:
    """Return for each attribute of the scene whether the picture has it.

    `layout` is the object's place, if it is known. In monochrome pictures, colours are not checked.
    """
    pixels = pixels_of(image)
    results: dict[str, bool] = {}
    compared = _Drawings(pixels, scene, layout) if scene.style or scene.kind in ("animal", "landscape") else None
    if scene.style and compared:
        styles = [replace(scene, style=style) for style in (None, *STYLES)]
        results["style"] = compared.nearest(styles).style == scene.style
    if scene.kind == "landscape" and compared:
        return results | _check_landscape(pixels, scene, compared)
    if scene.background and scene.style != "monochrome":
        results["background"] = nearest_colour(background_rgb(pixels), scene.style) == scene.background
    if scene.kind == "animal" and compared:
        return results | _check_animal(scene, compared)
    found = find_objects(pixels, scene.style)
    if scene.kind == "pair":
        return results | {"pair": _is_pair(found, scene)}
    first = found[0] if found else None
    if scene.shape:
        results["shape"] = first is not None and first.shape == scene.shape and _are_all(found, 1)
    if scene.colour and scene.style != "monochrome":
        results["colour"] = first is not None and first.colour == scene.colour
    if scene.position:
        results["position"] = first is not None and first.position == scene.position
    if scene.size:
        results["size"] = first is not None and first.size == scene.size
    return results


def _are_all(found: list[Found], count: int) -> bool:
    """Return whether the picture contains nothing besides the `count` largest objects."""
    return len(found) == count or (len(found) > count and found[count].area < _CRUMB * found[count - 1].area)


def _check_animal(scene: Scene, compared: _Drawings) -> dict[str, bool]:
    kinds = itertools.product(ANIMALS, (None, *ACCESSORIES))
    seen = compared.nearest([replace(scene, animal=a, accessory=b) for a, b in kinds])
    wears = "accessory" if scene.accessory else "no accessory"
    results = {"animal": seen.animal == scene.animal, wears: seen.accessory == scene.accessory}
    for name, field in (("fur colour", "colour"), ("accessory colour", "accessory_colour")):
        if (asked := getattr(scene, field)) and scene.style != "monochrome":
            drawings = [replace(scene, **{field: colour}) for colour in COLOURS]  # type: ignore[arg-type]
            results[name] = getattr(compared.nearest(drawings), field) == asked
    if scene.size:
        drawings = [replace(scene, size=size) for size in SIZES]
        results["size"] = compared.nearest(drawings).size == scene.size
    if scene.position:
        drawings = [replace(scene, position=position) for position in POSITIONS]
        results["position"] = compared.nearest(drawings).position == scene.position
    return results


def _is_pair(found: list[Found], scene: Scene) -> bool:
    """Return whether both objects are there, with the caption's shapes, colours and relation."""
    if not _are_all(found, 2):
        return False
    axis = "x" if scene.relation in ("left of", "right of") else "y"
    a, b = sorted(found[:2], key=lambda thing: getattr(thing, axis), reverse=scene.relation in ("right of", "below"))
    apart = abs(getattr(a, axis) - getattr(b, axis)) > 0.2
    shapes = (a.shape, b.shape) == (scene.shape, scene.other_shape)
    colours = scene.style == "monochrome" or (a.colour, b.colour) == (scene.colour, scene.other_colour)
    return apart and shapes and colours


_ELEMENT_CHOICES = {"mountains": "land", "trees": "wood", "house": "land"}


def _check_landscape(pixels: Array, scene: Scene, compared: _Drawings) -> dict[str, bool]:
    results = {}
    if scene.time:
        top = np.median(pixels[:6].reshape(-1, 3), 0)
        skies = {time: styled(np.array(colours[0]), scene.style) for time, colours in SKY.items()}
        results["time"] = min(skies, key=lambda time: float(np.abs(skies[time] - top).sum())) == scene.time
    asked = scene.elements if scene.elements or scene.time or scene.style else EMPTY_PROMPT
    # Without a time, a drawing without elements would show the empty prompt's.
    timed = replace(scene, time=scene.time or "day")
    right = []
    for element in ELEMENTS:
        has = tuple(e for e in ELEMENTS if e in asked or e == element)
        lacks = tuple(e for e in ELEMENTS if e in asked and e != element)
        drawings = [replace(timed, elements=elements) for elements in (has, lacks)]
        right.append(compared.nearest(drawings, free=_ELEMENT_CHOICES.get(element)).elements == asked)
    return results | {"elements": all(right)}


def sharpness(image: Image.Image, ideal: Image.Image) -> float:
    """Return how much of the ideal drawing's edges the picture has, at half the size.

    This is the projection of the brightness gradients on the ideal ones. At most 1: as crisp as the drawing. Lower
    values mean blurred or misplaced edges. Noise and contrast do not raise it.
    """
    got, wanted = _gradients(image), _gradients(ideal)
    return min(1.0, float(got @ wanted / max(wanted @ wanted, 1.0)))


def _gradients(picture: Image.Image) -> Array:
    grey = np.asarray(picture.convert("L").reduce(2), np.float32)
    return np.concatenate([np.diff(grey, axis=axis).ravel() for axis in (0, 1)])
