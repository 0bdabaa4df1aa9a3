"""Scenes and their drawings: flat vector pictures of shapes, animals and landscapes.

A `Scene` contains the attributes that a caption names; None means that the caption leaves an attribute open. The
`codes`, twelve numbers from the diffusion noise (see `training.latents`), decide open attributes, so another seed gives
another picture. The layout does not depend on the codes, except for the sun and the moon: a model of this size blurs
the edges of an object whose place it must guess.
"""

import math
import random
import zlib
from dataclasses import dataclass, field, fields, replace

import numpy as np
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (220, 40, 45),
    "orange": (245, 140, 25),
    "yellow": (250, 215, 45),
    "green": (40, 160, 70),
    "cyan": (45, 200, 210),
    "blue": (40, 85, 215),
    "purple": (135, 55, 190),
    "pink": (250, 140, 190),
    "brown": (125, 75, 40),
    "black": (25, 25, 30),
    "white": (245, 245, 245),
    "grey": (135, 138, 142),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "hexagon", "ring", "cross", "crescent")
SIZES = {"small": 0.12, "medium": 0.20, "large": 0.31}
POSITIONS = (
    "top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
RELATIONS = ("left of", "right of", "above", "below")
ANIMALS = ("raccoon", "cat", "fox", "panda", "bear", "rabbit")
ACCESSORIES = ("robe", "hat", "crown", "scarf")
TIMES = ("day", "sunset", "night")
ELEMENTS = ("mountains", "sea", "trees", "house", "snow")
STYLES = ("night", "pastel", "monochrome")
EMPTY_PROMPT = ("mountains", "trees")  # the elements of a landscape without named attributes
KINDS = ("shape", "pair", "animal", "landscape")
CODES = 12
NO_CODES = (0.0,) * CODES


@dataclass(frozen=True)
class Scene:
    """The attributes that a caption names. `shape`, `colour`, `size`, `position` describe the first or only object."""

    kind: str
    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    position: str | None = None
    relation: str | None = None  # of the first object to the other
    other_shape: str | None = None
    other_colour: str | None = None
    background: str | None = None
    animal: str | None = None
    accessory: str | None = None
    accessory_colour: str | None = None
    time: str | None = None
    elements: tuple[str, ...] = field(default=())
    style: str | None = None

    @property
    def combination(self) -> str:
        """The attributes that are held out together: no training caption has a combination of the held-out tenth."""
        names: list[str | None]
        match self.kind:
            case "shape":
                names = [self.shape, self.colour, self.background]
            case "pair":
                names = [self.shape, self.colour, self.other_shape, self.other_colour]
            case "animal":
                names = [self.animal, self.colour, self.accessory, self.accessory_colour, self.background]
            case _:
                names = [self.time, *self.elements, self.style]
        return " ".join(str(name) for name in [self.kind, *names])

    @property
    def is_held_out(self) -> bool:
        """Whether the scene is never in the training: a tenth of all combinations, chosen by checksum.

        Scenes with fewer than two attributes, such as "a cat", are never held out.
        """
        named = self.combination.split()[1:]
        together = sum(name != "None" for name in named) > 1
        return together and zlib.crc32(self.combination.encode()) % 10 == 0

    @property
    def is_new(self) -> bool:
        """Whether the scene is for measuring: it and the other scene with the same picture are both held out."""
        same = self
        if self.kind == "pair":
            same = replace(
                self,
                shape=self.other_shape,
                colour=self.other_colour,
                other_shape=self.shape,
                other_colour=self.colour,
            )
        elif self.kind == "landscape" and self.time in (None, "day"):
            same = replace(self, time=None if self.time else "day")
        return self.is_held_out and same.is_held_out


@dataclass(frozen=True)
class Layout:
    """An object's place: centre in fractions of width and height, radius in fractions of the shorter side."""

    x: float
    y: float
    radius: float


def random_scene(rng: random.Random, kind: str | None = None, *, new: bool = False) -> Scene:
    """Return a random scene for training, or with `new` for measuring."""
    while True:
        scene = _random_scene(rng, kind)
        if scene.is_new if new else not scene.is_held_out:
            return scene


def _random_scene(rng: random.Random, kind: str | None) -> Scene:
    kind = kind or rng.choices(KINDS, (0.30, 0.32, 0.23, 0.15))[0]

    def maybe(share: float, names: tuple[str, ...] | list[str]) -> str | None:
        return rng.choice(names) if rng.random() < share else None

    colours = list(COLOURS)
    style = maybe(0.08, STYLES)
    if kind == "landscape":
        return Scene(
            kind,
            time=maybe(0.75, TIMES),
            elements=tuple(name for name in ELEMENTS if rng.random() < (0.2 if name == "snow" else 0.4)),
            style=style if style != "night" else None,
        )
    background = maybe(0.7 if kind == "shape" else 0.5, colours)
    free = [colour for colour in colours if colour != background]
    if kind == "pair":
        colour = rng.choice(free)
        return Scene(
            kind,
            shape=rng.choice(SHAPES),
            colour=colour,
            relation=rng.choice(RELATIONS),
            other_shape=rng.choice(SHAPES),
            other_colour=rng.choice([name for name in free if name != colour]),
            background=background,
            style=style,
        )
    size = maybe(0.4, ("small", "large", "medium"))
    position = maybe(0.4, POSITIONS)
    if kind == "shape":
        return Scene(
            kind,
            shape=maybe(0.98, SHAPES),
            colour=maybe(0.9, free),
            size=size,
            position=position,
            background=background,
            style=style,
        )
    accessory = maybe(0.6, ACCESSORIES)
    animal = rng.choice(ANIMALS)
    fur = maybe(0.1, free)
    if not fur and background == _FUR_NAME.get(animal):
        background = None  # a brown bear on brown is invisible
    if rng.random() < 0.5:
        size, position = None, None
    return Scene(
        kind,
        animal=animal,
        colour=fur,
        size=None if position and size == "large" else size,  # does not fit
        position=position,
        accessory=accessory,
        accessory_colour=maybe(0.35, free) if accessory and accessory != "crown" else None,
        background=background,
        style=style,
    )


def random_codes(rng: random.Random) -> tuple[float, ...]:
    """Return random codes, distributed like those of noise."""
    return tuple(rng.gauss(0, 1) for _ in range(CODES))


def layout_of(scene: Scene, width: int = 1, height: int = 1) -> Layout:
    """Return the layout that the caption alone decides."""
    alone = scene.kind == "animal" and not scene.position
    radius = SIZES[scene.size or ("large" if alone else "medium")]
    index = POSITIONS.index(scene.position or "center")
    margin = radius * (1.25 if scene.kind == "animal" else 1) + 0.03
    centre = [0.5, 0.5]
    for axis, side in enumerate((width, height)):
        edge = max(0.24, margin * min(width, height) / side)
        centre[axis] = (edge, 0.5, 1 - edge)[(index % 3, index // 3)[axis]]
    return Layout(centre[0], centre[1], radius)


def random_layout(rng: random.Random) -> Layout:
    """Return a random layout, as in uploaded pictures: anywhere, of any size."""
    radius = rng.uniform(0.10, 0.33)
    margin = radius + 0.02
    return Layout(rng.uniform(margin, 1 - margin), rng.uniform(margin, 1 - margin), radius)


def edited(source: Scene, caption: Scene) -> Scene:
    """Return the target of image to image: the caption's attributes, and the source's attributes for the rest."""
    if "landscape" in (source.kind, caption.kind) and source.kind != caption.kind:
        return caption
    kept: dict[str, object] = {}
    for f in fields(Scene):
        if f.name == "kind" or getattr(caption, f.name) not in (None, ()):
            continue
        if f.name in ("shape", "colour", "other_shape", "other_colour", "relation") and source.kind != caption.kind:
            continue
        if f.name == "accessory_colour" and caption.accessory not in (None, source.accessory):
            continue
        if f.name == "elements" and caption.time is None and caption.style is None:
            continue  # a caption that names nothing means a plain landscape
        kept[f.name] = getattr(source, f.name)
    return replace(caption, **kept)  # type: ignore[arg-type]


class _Canvas:
    """A canvas in object units: the origin is the object's centre, and 1 is its radius."""

    def __init__(self, image: Image.Image, x: float, y: float, radius: float) -> None:
        self._draw = ImageDraw.Draw(image)
        self._x, self._y, self._radius = x, y, radius

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Rgb) -> None:
        x0, y0, x1, y1 = self._at(x - rx, y - ry) + self._at(x + rx, y + ry)
        self._draw.ellipse((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), fill=colour)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: Rgb) -> None:
        left, top, right, bottom = self._at(x0, y0) + self._at(x1, y1)
        self._draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=colour)

    def polygon(self, points: list[tuple[float, float]], colour: Rgb) -> None:
        self._draw.polygon([self._at(x, y) for x, y in points], fill=colour)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return self._x + x * self._radius, self._y + y * self._radius


def _regular(corners: int, turn: float) -> list[tuple[float, float]]:
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    return [(math.sin(a), -math.cos(a)) for a in angles]


def _star() -> list[tuple[float, float]]:
    radii = [1.1 if i % 2 == 0 else 0.46 for i in range(10)]
    return [(r * math.sin(math.pi * i / 5), 0.05 - r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)]


def _heart() -> list[tuple[float, float]]:
    # The heart curve of https://mathworld.wolfram.com/HeartCurve.html (equations 6 and 7), over 16.
    points = []
    for i in range(48):
        t = 2 * math.pi * i / 48
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -y / 16))
    return points


_POLYGONS = {
    "triangle": [(0, -1.05), (1.1, 0.85), (-1.1, 0.85)],
    "star": _star(),
    "heart": _heart(),
    "diamond": [(0, -1.15), (0.75, 0), (0, 1.15), (-0.75, 0)],
    "hexagon": _regular(6, math.pi / 6),
}


def _draw_shape(canvas: _Canvas, shape: str, colour: Rgb, background: Rgb) -> None:
    match shape:
        case "circle":
            canvas.ellipse(0, 0, 1, 1, colour)
        case "square":
            canvas.rectangle(-0.88, -0.88, 0.88, 0.88, colour)
        case "ring":
            canvas.ellipse(0, 0, 1, 1, colour)
            canvas.ellipse(0, 0, 0.52, 0.52, background)
        case "cross":
            canvas.rectangle(-0.34, -1, 0.34, 1, colour)
            canvas.rectangle(-1, -0.34, 1, 0.34, colour)
        case "crescent":
            canvas.ellipse(0, 0, 1, 1, colour)
            canvas.ellipse(0.5, -0.15, 0.8, 0.8, background)
        case _:
            canvas.polygon(_POLYGONS[shape], colour)


# Colours of fur, dark parts and light parts.
_FUR: dict[str, tuple[Rgb, Rgb, Rgb]] = {
    "raccoon": ((125, 125, 132), (45, 45, 52), (225, 225, 228)),
    "cat": ((235, 160, 70), (250, 190, 150), (255, 240, 220)),
    "fox": ((225, 95, 35), (60, 40, 35), (250, 245, 240)),
    "panda": ((245, 245, 245), (30, 30, 35), (245, 245, 245)),
    "bear": ((125, 80, 45), (90, 55, 30), (200, 160, 115)),
    "rabbit": ((225, 215, 210), (245, 170, 185), (250, 250, 250)),
}
_FUR_NAME = {"raccoon": "grey", "cat": "orange", "fox": "orange", "panda": "white", "bear": "brown", "rabbit": "white"}
_ACCESSORY_COLOUR: dict[str, Rgb] = {
    "robe": (40, 30, 50),
    "hat": (95, 50, 175),
    "crown": (250, 205, 50),
    "scarf": (205, 35, 45),
}
_GOLD: Rgb = (220, 175, 60)
_INK: Rgb = (20, 20, 24)
_PAPER: Rgb = (250, 250, 250)


def _draw_animal(canvas: _Canvas, scene: Scene) -> None:  # noqa: C901, PLR0912, PLR0915 - one after the other
    animal = scene.animal or "cat"
    fur, dark, light = _FUR[animal]
    if scene.colour:
        fur = COLOURS[scene.colour]
    wear = COLOURS[scene.accessory_colour] if scene.accessory_colour else _ACCESSORY_COLOUR.get(scene.accessory or "")
    sides = (-1, 1)

    if animal in ("raccoon", "fox", "cat"):
        for i in range(5):
            striped = dark if i % 2 else fur
            tip = light if animal == "fox" and i == 4 else fur
            canvas.ellipse(0.62 + 0.07 * i, 0.85 - 0.125 * i, 0.2, 0.17, striped if animal == "raccoon" else tip)
    if scene.accessory == "robe" and wear:
        canvas.polygon([(-0.3, 0.1), (0.3, 0.1), (0.78, 1.2), (-0.78, 1.2)], wear)
        canvas.polygon([(-0.08, 0.1), (0.08, 0.1), (0.11, 1.2), (-0.11, 1.2)], _GOLD)
        canvas.polygon([(-0.72, 1.06), (0.72, 1.06), (0.78, 1.2), (-0.78, 1.2)], _GOLD)
    else:
        canvas.ellipse(0, 0.66, 0.46, 0.5, dark if animal == "panda" else fur)
        canvas.ellipse(0, 0.75, 0.27, 0.33, light)
    for side in sides:
        if animal == "rabbit":
            canvas.ellipse(side * 0.26, -0.95, 0.15, 0.42, fur)
            canvas.ellipse(side * 0.26, -0.92, 0.07, 0.30, dark)
        elif animal in ("cat", "fox"):
            canvas.polygon([(side * 0.57, -0.2), (side * 0.54, -1.0), (side * 0.06, -0.6)], fur)
            canvas.polygon([(side * 0.47, -0.42), (side * 0.46, -0.8), (side * 0.2, -0.6)], dark)
        else:
            canvas.ellipse(side * 0.44, -0.66, 0.21, 0.21, fur if animal == "bear" else dark)
            canvas.ellipse(side * 0.44, -0.66, 0.1, 0.1, dark if animal == "panda" else light)
    canvas.ellipse(0, -0.28, 0.6, 0.5, fur)
    for side in sides:
        if animal == "raccoon":
            canvas.ellipse(side * 0.29, -0.42, 0.27, 0.17, light)
            canvas.ellipse(side * 0.3, -0.24, 0.27, 0.16, dark)
        elif animal == "panda":
            canvas.ellipse(side * 0.26, -0.28, 0.17, 0.2, dark)
        elif animal == "fox":
            canvas.ellipse(side * 0.3, -0.06, 0.24, 0.2, light)
    canvas.ellipse(0, -0.04, 0.22, 0.17, light)
    for side in sides:
        masked = animal in ("raccoon", "panda")
        canvas.ellipse(side * 0.25, -0.28, 0.095, 0.105, _PAPER if masked else _INK)
        canvas.ellipse(
            side * (0.24 if masked else 0.22), -0.28 if masked else -0.31, 0.05, 0.055, _INK if masked else _PAPER
        )
    canvas.ellipse(0, -0.1, 0.085, 0.06, _INK)
    if not wear:
        return
    match scene.accessory:
        case "robe":
            canvas.polygon([(-0.24, 0.13), (0.24, 0.13), (0.12, 0.36), (-0.12, 0.36)], _PAPER)
        case "hat":
            canvas.polygon([(-0.48, -0.62), (0.48, -0.62), (0.08, -1.5)], wear)
            canvas.ellipse(0, -0.62, 0.78, 0.11, wear)
            canvas.rectangle(-0.44, -0.78, 0.44, -0.68, _GOLD)
        case "crown":
            points = [
                (-0.42, -0.6),
                (-0.52, -1.12),
                (-0.22, -0.85),
                (0, -1.18),
                (0.22, -0.85),
                (0.52, -1.12),
                (0.42, -0.6),
            ]
            canvas.polygon(points, wear)
        case "scarf":
            canvas.rectangle(-0.48, 0.12, 0.48, 0.36, wear)
            canvas.rectangle(0.12, 0.3, 0.36, 0.82, wear)


SKY: dict[str, tuple[Rgb, Rgb]] = {
    "day": ((95, 170, 240), (205, 232, 250)),
    "sunset": ((120, 60, 130), (250, 150, 70)),
    "night": ((12, 16, 48), (40, 50, 100)),
}
_DUSK = {"day": 0.0, "sunset": 0.28, "night": 0.62}
_STARS = ((0.08, 0.1), (0.2, 0.3), (0.33, 0.12), (0.68, 0.08), (0.8, 0.27), (0.92, 0.13), (0.12, 0.47), (0.9, 0.44))


def _mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    red, green, blue = (round(p * (1 - share) + q * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


def _draw_landscape(  # noqa: C901, PLR0912, PLR0915 - one thing after the other
    scene: Scene, codes: tuple[float, ...], width: int, height: int
) -> Image.Image:
    time = scene.time or "day"
    elements = scene.elements
    if not scene.time and not elements and not scene.style:
        elements = EMPTY_PROMPT
    horizon = 0.6
    rows = np.clip((np.arange(height) + 0.5) / height / horizon, 0, 1)[:, None]
    top, bottom = (np.array(colour, np.float32) for colour in SKY[time])
    sky = top * (1 - rows) + bottom * rows
    if not scene.time:
        sky += 30 * np.tanh(codes[0:3])
    pixels = np.repeat(np.clip(sky, 0, 255)[:, None, :], width, axis=1)
    image = Image.fromarray(pixels.round().astype(np.uint8))
    side = min(width, height)
    sun_x = 0.5 + 0.32 * math.tanh(codes[4] / 1.2)

    def at(x: float, y: float, radius: float = 1.0) -> _Canvas:
        return _Canvas(image, x * width, y * height, radius * side)

    def dim(colour: Rgb) -> Rgb:
        return _mix(colour, (20, 15, 45), _DUSK[time])

    if time == "night":
        for x, y in _STARS:
            at(x, y, 0.009).ellipse(0, 0, 1, 1, (235, 235, 220))
    disc, disc_y, disc_radius = {
        "day": ((255, 225, 70), 0.2, 0.09),
        "sunset": ((255, 90, 50), horizon - 0.1, 0.11),
        "night": ((240, 240, 215), 0.2, 0.075),
    }[time]
    at(sun_x, disc_y, disc_radius).ellipse(0, 0, 1, 1, disc)

    ground = (238, 242, 248) if "snow" in elements else (95, 170, 80)
    frame = _Canvas(image, 0, 0, 1)

    def band(y: float, colour: Rgb) -> None:
        frame.rectangle(0, y * height, width, height, colour)

    if "mountains" in elements:
        for x, peak, colour in (
            (0.22, 0.3, (110, 115, 140)),
            (0.95, 0.27, (115, 120, 145)),
            (0.62, 0.38, (95, 100, 128)),
        ):
            mountain = _Canvas(image, x * width, horizon * height, peak * height)
            slope = 0.95 * width / height
            mountain.polygon([(0, -1), (slope, 0), (-slope, 0)], dim(colour))
            snow_line = [(0, -1), (0.28 * slope, -0.72), (0, -0.62), (-0.28 * slope, -0.72)]
            mountain.polygon(snow_line, dim((245, 248, 250)))
    if "sea" in elements:
        band(horizon, dim((35, 110, 185)))
        glitter = {"day": (150, 200, 235), "sunset": (250, 160, 90), "night": (170, 175, 190)}[time]
        for i in range(3):
            at(sun_x, horizon + 0.05 + 0.07 * i, 0.05 + 0.035 * i).rectangle(-1, 0, 1, 0.4, glitter)
        beach = [(0, 0.9), (0.5, 0.86), (1, 0.91), (1, 1), (0, 1)]
        frame.polygon(
            [(x * width, y * height) for x, y in beach], dim(ground if "snow" in elements else (235, 205, 145))
        )
    else:
        band(horizon, dim(ground))
        hill = _mix(ground, (255, 255, 255) if "snow" in elements else (130, 200, 90), 0.5)
        at(0.2, horizon + 0.25, 0.6).ellipse(0, 0, 1, 0.36, dim(hill))
    foot = 0.86 if "sea" in elements else 0.78
    if "trees" in elements:
        for x, tree in ((0.12, 0.34), (0.3, 0.26), (0.86, 0.36), (0.7, 0.24)):
            at(x, foot).rectangle(-0.015, -0.02, 0.015, 0.06, dim((100, 65, 35)))
            for tier in range(2):
                needles = _mix((30, 105, 55), _PAPER, 0.55 if "snow" in elements and tier else 0)
                base = -0.39 * tree * tier
                spread = 0.1 - 0.025 * tier
                at(x, foot).polygon([(-spread, base), (spread, base), (0, base - 0.62 * tree)], dim(needles))
    if "house" in elements:
        house = at(0.5, foot, 0.12)
        window = (120, 180, 220) if time == "day" else (255, 220, 110)
        house.rectangle(-1, -1.15, 1, 0.5, dim((235, 215, 185)))
        house.polygon([(-1.3, -1.15), (1.3, -1.15), (0, -2.3)], dim((185, 60, 45)))
        house.rectangle(-0.7, -0.85, -0.2, -0.3, window)
        house.rectangle(0.2, -0.75, 0.7, 0.5, dim((110, 65, 40)))
    return image


def styled(pixels: np.ndarray, style: str | None) -> np.ndarray:
    """Apply a style to RGB values of 0 to 255; the array can have any shape."""
    rgb = pixels.astype(np.float32)
    match style:
        case "night":
            rgb = rgb * np.array([0.36, 0.40, 0.60], np.float32) + np.array([4, 6, 22], np.float32)
        case "pastel":
            rgb = 0.45 * rgb + 0.55 * 250
        case "monochrome":
            rgb = (rgb @ np.array([0.299, 0.587, 0.114], np.float32))[..., None].repeat(3, -1)
    return np.clip(rgb, 0, 255)


def _open_colour(codes: tuple[float, ...], base: float) -> Rgb:
    red, green, blue = (round(min(255, max(0, base + 62 * math.tanh(code / 1.2)))) for code in codes)
    return red, green, blue


def colours_of(scene: Scene, codes: tuple[float, ...] = NO_CODES) -> tuple[Rgb, Rgb]:
    """Return the colours of the background and the first object before the style, from the caption or the codes."""
    background = COLOURS[scene.background] if scene.background else _open_colour(codes[0:3], 188)
    if scene.colour:
        return background, COLOURS[scene.colour]
    bright = scene.background is not None and sum(COLOURS[scene.background]) < 330
    return background, _open_colour(codes[4:7], 190 if bright else 80)


PAIR_RADIUS = 0.155
PAIR_DISTANCE = 0.225


def pair_layouts(relation: str) -> tuple[Layout, Layout]:
    """Return the layouts of the first and the other object of a pair."""
    dx, dy = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[relation]
    first = Layout(0.5 + dx * PAIR_DISTANCE, 0.5 + dy * PAIR_DISTANCE, PAIR_RADIUS)
    return first, Layout(1 - first.x, 1 - first.y, PAIR_RADIUS)


def draw(
    scene: Scene,
    codes: tuple[float, ...] = NO_CODES,
    *,
    layout: Layout | None = None,
    width: int = 512,
    height: int = 512,
    antialias: int = 1,
) -> Image.Image:
    """Return the scene as an RGB image of width x height pixels, each averaged over antialias x antialias samples."""
    width, height = width * antialias, height * antialias
    if scene.kind == "landscape":
        image = _draw_landscape(scene, codes, width, height)
    else:
        background, colour = colours_of(scene, codes)
        image = Image.new("RGB", (width, height), background)
        side = min(width, height)

        def canvas(at: Layout, scale: float = 1.0) -> _Canvas:
            return _Canvas(image, at.x * width, at.y * height, at.radius * side * scale)

        if scene.kind == "pair":
            first, other = pair_layouts(scene.relation or "left of")
            _draw_shape(canvas(first), scene.shape or "circle", colour, background)
            _draw_shape(canvas(other), scene.other_shape or "circle", COLOURS[scene.other_colour or "red"], background)
        else:
            layout = layout or layout_of(scene, width, height)
            if scene.kind == "animal":
                _draw_animal(canvas(layout, 1.1), scene)
            else:
                _draw_shape(canvas(layout), scene.shape or "circle", colour, background)
    if scene.style:
        image = Image.fromarray(styled(np.asarray(image), scene.style).round().astype(np.uint8))
    return image.reduce(antialias) if antialias > 1 else image
