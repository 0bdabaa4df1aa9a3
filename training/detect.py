"""Classical picture checks, nothing learned: what is in a picture, by colours, connected components and templates.

Shapes are compared with the ten templates. Animals are compared with a drawing of each animal in each accessory, in
the place, size and colours that the caption asks for, on the background that the picture has.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from training.scenes import (
    ACCESSORIES,
    ANIMALS,
    COLOURS,
    ELEMENTS,
    SHAPES,
    SIZES,
    SKY,
    STYLES,
    Scene,
    colours_of,
    draw,
    styled,
)

Array = np.ndarray[Any, np.dtype[Any]]
_SIDE = 128
_TEMPLATE = 48


@dataclass(frozen=True)
class Found:
    """An object: its colour's and shape's names, and its bounding box in fractions of width and height."""

    colour: str
    shape: str
    x: float
    y: float
    width: float
    height: float

    @property
    def position(self) -> str:
        """The nearest of the nine positions."""
        column = 0 if self.x < 0.42 else 2 if self.x > 0.58 else 1
        row = 0 if self.y < 0.42 else 2 if self.y > 0.58 else 1
        names = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
        return names[3 * row + column]

    @property
    def radius(self) -> float:
        """Half of the longer side."""
        return max(self.width, self.height) / 2


def size_name(radius: float) -> str:
    """Return the nearest of the three sizes."""
    return min(SIZES, key=lambda name: abs(SIZES[name] - radius))


def pixels_of(image: Image.Image) -> Array:
    """Return the picture as 128x128 RGB values of 0 to 255, whatever its size."""
    return np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)


def background_rgb(pixels: Array) -> Array:
    """Return the median colour of the picture's rim."""
    rim = np.concatenate([pixels[:4].reshape(-1, 3), pixels[:, :4].reshape(-1, 3), pixels[:, -4:].reshape(-1, 3)])
    middle: Array = np.median(rim, 0)
    return middle


def nearest_colour(rgb: Array, style: str | None = None) -> str:
    """Return the name of the nearest colour as the style shows it."""
    names = list(COLOURS)
    palette = styled(np.array([COLOURS[name] for name in names]), style)
    return names[int(np.abs(palette - rgb).sum(1).argmin())]


def find_objects(pixels: Array, count: int = 1, style: str | None = None) -> list[Found]:
    """Return the largest connected things that are not background, the largest first; fewer if there are fewer."""
    distance = np.abs(pixels - background_rgb(pixels)).sum(-1)
    labels, number = ndimage.label(distance > (20 if style else 55))
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, range(1, number + 1))
    found = []
    for label in (np.argsort(sizes)[::-1] + 1)[:count]:
        mask = labels == label
        if mask.sum() < 16:
            continue
        rows, columns = np.where(mask)
        core = mask & (distance >= np.percentile(distance[mask], 40))
        x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
        found.append(
            Found(
                colour=nearest_colour(np.median(pixels[core], 0), style),
                shape=_shape_of(mask[y0:y1, x0:x1]),
                x=(x0 + x1) / 2 / _SIDE,
                y=(y0 + y1) / 2 / _SIDE,
                width=(x1 - x0) / _SIDE,
                height=(y1 - y0) / _SIDE,
            )
        )
    return found


def _squared(mask: Array) -> Array:
    """Fit a cropped mask into a square, its proportions kept."""
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


def _shape_of(mask: Array) -> str:
    square = _squared(mask)
    overlap = {name: (square & t).sum() / (square | t).sum() for name, t in _templates().items()}
    return max(overlap, key=lambda name: overlap[name])


def _nearest_drawing(pixels: Array, scenes: list[Scene], width: int, height: int) -> Scene:
    background = tuple(int(v) for v in background_rgb(pixels))
    best, least = scenes[0], np.inf
    for scene in scenes:
        drawing = pixels_of(draw(scene, width=width // 4, height=height // 4))
        if scene.kind == "animal" and not scene.background:
            plain = np.abs(drawing - np.array(colours_of(scene)[0])).sum(-1) < 2
            drawing[plain] = background
        difference = float(np.abs(drawing - pixels).mean())
        if difference < least:
            best, least = scene, difference
    return best


def check(image: Image.Image, scene: Scene) -> dict[str, bool]:
    """Say of everything that the scene names whether the picture has it."""
    pixels = pixels_of(image)
    width, height = image.size
    results: dict[str, bool] = {}
    if scene.kind == "landscape":
        return _check_landscape(pixels, scene, width, height)
    if scene.background and scene.style != "monochrome":
        results["background"] = nearest_colour(background_rgb(pixels), scene.style) == scene.background
    if scene.kind == "animal":
        return results | _check_animal(pixels, scene, width, height)
    found = find_objects(pixels, 2 if scene.kind == "pair" else 1, scene.style)
    if scene.kind == "pair":
        results["pair"] = _is_pair(found, scene)
        return results
    first = found[0] if found else None
    if scene.shape:
        results["shape"] = first is not None and first.shape == scene.shape
    if scene.colour and scene.style != "monochrome":
        results["colour"] = first is not None and first.colour == scene.colour
    if scene.position:
        results["position"] = first is not None and first.position == scene.position
    if scene.size:
        side = min(width, height)
        radius = max(first.width * width, first.height * height) / 2 / side if first else 0.0
        results["size"] = first is not None and size_name(radius) == scene.size
    return results


def _check_animal(pixels: Array, scene: Scene, width: int, height: int) -> dict[str, bool]:
    kinds = [
        replace(scene, animal=animal, accessory=accessory) for animal in ANIMALS for accessory in (None, *ACCESSORIES)
    ]
    seen = _nearest_drawing(pixels, kinds, width, height)
    results = {"animal": seen.animal == scene.animal, "accessory": seen.accessory == scene.accessory}
    if scene.position:
        ideal = find_objects(pixels_of(draw(scene, width=width, height=height)), style=scene.style)
        found = find_objects(pixels, style=scene.style)
        apart = [max(abs(a.x - b.x), abs(a.y - b.y)) for a, b in zip(ideal, found, strict=False)]
        results["position"] = bool(apart) and apart[0] < 0.08
    return results


def _is_pair(found: list[Found], scene: Scene) -> bool:
    """Whether both objects are there, in their shapes and colours, and in the relation that the caption asks for."""
    if len(found) < 2:
        return False
    axis = "x" if scene.relation in ("left of", "right of") else "y"
    a, b = sorted(found, key=lambda thing: getattr(thing, axis), reverse=scene.relation in ("right of", "below"))
    apart = abs(getattr(a, axis) - getattr(b, axis)) > 0.2
    shapes = (a.shape, b.shape) == (scene.shape, scene.other_shape)
    colours = scene.style == "monochrome" or (a.colour, b.colour) == (scene.colour, scene.other_colour)
    return apart and shapes and colours


def _check_landscape(pixels: Array, scene: Scene, width: int, height: int) -> dict[str, bool]:
    results = {}
    if scene.time and not scene.style:
        top = np.median(pixels[:6].reshape(-1, 3), 0)
        names = list(SKY)
        results["time"] = names[int(np.argmin([np.abs(np.array(SKY[n][0]) - top).sum() for n in names]))] == scene.time
    wrong = 0
    for element in ELEMENTS:
        has = tuple(e for e in ELEMENTS if e in scene.elements or e == element)
        lacks = tuple(e for e in ELEMENTS if e in scene.elements and e != element)
        with_it, without = replace(scene, elements=has), replace(scene, elements=lacks)
        wrong += _nearest_drawing(pixels, [with_it, without], width, height).elements != scene.elements
    results["elements"] = wrong == 0
    return results


def style_of(image: Image.Image, scene: Scene) -> str | None:
    """Return the style in which a drawing of the scene is nearest to the picture."""
    drawings = [replace(scene, style=style) for style in (None, *STYLES)]
    return _nearest_drawing(pixels_of(image), drawings, *image.size).style


def sharpness(image: Image.Image, ideal: Image.Image) -> float:
    """Return the ideal drawing's edges as the picture has them, at half the size.

    It is the projection of the brightness gradients on the ideal ones: 1 is as crisp as drawn, below is blurred or in
    another place. Noise adds nothing to it.
    """
    got, wanted = _gradients(image), _gradients(ideal)
    return float(got @ wanted / max(wanted @ wanted, 1.0))


def _gradients(picture: Image.Image) -> Array:
    grey = np.asarray(picture.convert("L").reduce(2), np.float32)
    return np.concatenate([np.diff(grey, axis=axis).ravel() for axis in (0, 1)])
