"""Drawings of scenes: flat vector pictures of shapes, animals and landscapes."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from training.scenes import (
    ANIMAL_SCALE,
    BACKGROUND,
    COLOUR,
    COLOURS,
    EMPTY_PROMPT,
    NO_CODES,
    Layout,
    Rgb,
    Scene,
    chosen,
    layout_of,
    pair_layouts,
)


class Canvas:
    """A canvas in object units: the origin is the object's centre, and 1 is its radius. It can be mirrored."""

    def __init__(self, image: Image.Image, x: float, y: float, radius: float, *, mirrored: bool = False) -> None:
        self._draw = ImageDraw.Draw(image)
        self._x, self._y, self._radius = x, y, radius
        self._side = -1 if mirrored else 1

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Rgb) -> None:
        x0, y0, x1, y1 = self._box(x - rx, y - ry, x + rx, y + ry)
        self._draw.ellipse((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), fill=colour)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: Rgb) -> None:
        left, top, right, bottom = self._box(x0, y0, x1, y1)
        self._draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=colour)

    def polygon(self, points: list[tuple[float, float]], colour: Rgb) -> None:
        self._draw.polygon([self._at(x, y) for x, y in points], fill=colour)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return self._x + self._side * x * self._radius, self._y + y * self._radius

    def _box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        left, right = sorted((self._at(x0, 0)[0], self._at(x1, 0)[0]))
        return left, self._at(0, y0)[1], right, self._at(0, y1)[1]


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


def _draw_shape(canvas: Canvas, shape: str, colour: Rgb, background: Rgb) -> None:
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
_ACCESSORY_COLOUR: dict[str, Rgb] = {
    "robe": (40, 30, 50),
    "hat": (95, 50, 175),
    "crown": (250, 205, 50),
    "scarf": (205, 35, 45),
}
_GOLD: Rgb = (220, 175, 60)
_INK: Rgb = (20, 20, 24)
_PAPER: Rgb = (250, 250, 250)
_MOUTH: Rgb = (200, 60, 70)


_POSES = (("arms down", "calm"), ("sitting", "asleep"), ("one arm up", "surprised"), ("both arms up", "laughing"))


def _draw_animal(  # noqa: C901, PLR0912, PLR0915 - one after the other
    canvas: Canvas, scene: Scene, codes: tuple[float, ...]
) -> None:
    animal = scene.animal or "cat"
    fur, dark, light = _FUR[animal]
    if scene.colour:
        fur = COLOURS[scene.colour]
    wear = COLOURS[scene.accessory_colour] if scene.accessory_colour else _ACCESSORY_COLOUR.get(scene.accessory or "")
    pose, mood = _POSES[chosen("animal", "pose", codes)]
    broad = 1.4 if pose == "sitting" else 1.0
    sides = (-1, 1)
    robed = scene.accessory == "robe"

    if animal in ("raccoon", "fox", "cat"):
        for i in range(5):
            striped = dark if i % 2 else fur
            tip = light if animal == "fox" and i == 4 else fur
            canvas.ellipse(0.62 + 0.07 * i, 0.85 - 0.125 * i, 0.2, 0.17, striped if animal == "raccoon" else tip)
    sleeve = _mix(wear, _INK, 0.25) if robed and wear else dark if animal == "panda" else _mix(fur, _INK, 0.2)
    for side in sides:
        if pose == "both arms up" or (side == -1 and pose == "one arm up"):
            canvas.ellipse(side * 0.66, 0.12, 0.17, 0.32, sleeve)
        else:
            canvas.ellipse(side * 0.46 * broad, 0.66, 0.15, 0.3, sleeve)
    if robed and wear:
        hem = 0.78 * broad
        canvas.polygon([(-0.3, 0.1), (0.3, 0.1), (hem, 1.2), (-hem, 1.2)], wear)
        canvas.polygon([(-0.08, 0.1), (0.08, 0.1), (0.11, 1.2), (-0.11, 1.2)], _GOLD)
        canvas.polygon([(-0.92 * hem, 1.06), (0.92 * hem, 1.06), (hem, 1.2), (-hem, 1.2)], _GOLD)
    else:
        canvas.ellipse(0, 0.66, 0.46 * broad, 0.5, dark if animal == "panda" else fur)
        canvas.ellipse(0, 0.75, 0.27 * broad, 0.33, light)
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
    look = -0.13  # the face is turned away from the tail
    for side in sides:
        if animal == "raccoon":
            canvas.ellipse(look + side * 0.29, -0.42, 0.27, 0.17, light)
            canvas.ellipse(look + side * 0.3, -0.24, 0.27, 0.16, dark)
        elif animal == "panda":
            canvas.ellipse(look + side * 0.26, -0.28, 0.17, 0.2, dark)
        elif animal == "fox":
            canvas.ellipse(look + side * 0.26, -0.06, 0.24, 0.2, light)
    canvas.ellipse(look, -0.04, 0.24, 0.19, light)
    masked = animal in ("raccoon", "panda")
    _draw_face(canvas, look, mood, eye=_PAPER if masked else _INK, pupil=_INK if masked else _PAPER)
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
            teeth = [(-0.52, -1.12), (-0.22, -0.85), (0, -1.18), (0.22, -0.85), (0.52, -1.12)]
            canvas.polygon([(-0.42, -0.6), *teeth, (0.42, -0.6)], wear)
        case "scarf":
            canvas.rectangle(-0.48, 0.12, 0.48, 0.36, wear)
            canvas.rectangle(0.12, 0.3, 0.36, 0.82, wear)


def _draw_face(canvas: Canvas, x: float, mood: str, *, eye: Rgb, pupil: Rgb) -> None:
    for side in (-1, 1):
        if mood == "asleep":
            canvas.rectangle(x + side * 0.25 - 0.11, -0.3, x + side * 0.25 + 0.11, -0.25, eye)
        else:
            canvas.ellipse(x + side * 0.25, -0.28, 0.095, 0.105, eye)
            canvas.ellipse(x - 0.02 + side * 0.25, -0.3, 0.05, 0.055, pupil)
    canvas.ellipse(x, -0.1, 0.085, 0.06, _INK)
    match mood:
        case "surprised":
            canvas.ellipse(x, 0.06, 0.07, 0.08, _MOUTH)
        case "laughing":
            canvas.polygon([(x - 0.15, 0.01), (x + 0.15, 0.01), (x + 0.08, 0.11), (x - 0.08, 0.11)], _MOUTH)
        case _:
            canvas.rectangle(x - 0.08, 0.03, x + 0.08, 0.06, _INK)


SKY: dict[str, tuple[Rgb, Rgb]] = {
    "day": ((95, 170, 240), (205, 232, 250)),
    "sunset": ((120, 60, 130), (250, 150, 70)),
    "night": ((12, 16, 48), (40, 50, 100)),
}
_DUSK = {"day": 0.0, "sunset": 0.28, "night": 0.62}
_STARS = ((0.08, 0.1), (0.2, 0.3), (0.33, 0.12), (0.68, 0.08), (0.8, 0.27), (0.92, 0.13), (0.12, 0.47), (0.9, 0.44))

# Where clouds, mountains and trees can be: x, then y and half the width, or the height and the colour, or the height.
_CLOUDS = (
    ((0.25, 0.2, 0.13), (0.66, 0.32, 0.16)),
    ((0.5, 0.18, 0.18), (0.85, 0.36, 0.11)),
    ((0.12, 0.35, 0.1), (0.45, 0.36, 0.14), (0.8, 0.17, 0.13)),
    ((0.35, 0.17, 0.1), (0.62, 0.2, 0.1), (0.2, 0.4, 0.16)),
)
_CLOUD: dict[str, Rgb] = {"day": (250, 252, 255), "sunset": (250, 205, 175), "night": (78, 84, 120)}
_FAR, _NEAR, _NEAREST = (115, 120, 145), (110, 115, 140), (95, 100, 128)
_SKYLINES = (
    ((0.22, 0.3, _NEAR), (0.95, 0.27, _FAR), (0.62, 0.38, _NEAREST)),
    ((0.72, 0.34, _FAR), (0.05, 0.24, _NEAR), (0.36, 0.4, _NEAREST)),
    ((0.5, 0.42, _FAR), (0.15, 0.22, _NEAREST), (0.85, 0.3, _NEAREST)),
    ((0.3, 0.26, _FAR), (0.8, 0.4, _NEAR), (0.55, 0.2, _NEAREST)),
)
_WOODS = (
    ((0.12, 0.34), (0.3, 0.26), (0.86, 0.36), (0.7, 0.24)),
    ((0.2, 0.38), (0.8, 0.3)),
    ((0.08, 0.26), (0.2, 0.34), (0.62, 0.28), (0.74, 0.36), (0.88, 0.28)),
    ((0.36, 0.3), (0.9, 0.38), (0.14, 0.24)),
)


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
    land, sky_choice = chosen("landscape", "land", codes), chosen("landscape", "sky", codes)
    horizon = (0.6, 0.53, 0.67, 0.6)[land]
    rows = np.clip((np.arange(height) + 0.5) / height / horizon, 0, 1)[:, None]
    top, bottom = (np.array(colour, np.float32) for colour in SKY[time])
    sky = top * (1 - rows) + bottom * rows
    if not scene.time:
        sky += 30 * np.tanh(codes[BACKGROUND])
    pixels = np.repeat(np.clip(sky, 0, 255)[:, None, :], width, axis=1)
    image = Image.fromarray(pixels.round().astype(np.uint8))
    side = min(width, height)
    sun_x = (0.82, 0.18, 0.6, 0.4)[sky_choice]

    def at(x: float, y: float, radius: float = 1.0) -> Canvas:
        return Canvas(image, x * width, y * height, radius * side)

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

    for x, y, wide in _CLOUDS[sky_choice]:
        for shift, lift, rx, ry in ((0, 0, 1, 0.36), (-0.35, 0.22, 0.45, 0.45), (0.25, 0.26, 0.6, 0.5)):
            at(x, y, wide).ellipse(shift, -lift, rx, ry, _CLOUD[time])

    ground = (238, 242, 248) if "snow" in elements else (95, 170, 80)
    frame = Canvas(image, 0, 0, 1)

    def band(y: float, colour: Rgb) -> None:
        frame.rectangle(0, y * height, width, height, colour)

    if "mountains" in elements:
        for x, peak, colour in _SKYLINES[land]:
            mountain = Canvas(image, x * width, horizon * height, peak * height)
            slope = 0.95 * width / height
            mountain.polygon([(0, -1), (slope, 0), (-slope, 0)], dim(colour))
            snow_line = [(0, -1), (0.28 * slope, -0.72), (0, -0.62), (-0.28 * slope, -0.72)]
            mountain.polygon(snow_line, dim((245, 248, 250)))
    if "sea" in elements:
        band(horizon, dim((35, 110, 185)))
        glitter = {"day": (150, 200, 235), "sunset": (250, 160, 90), "night": (170, 175, 190)}[time]
        for i in range(3):
            at(sun_x, horizon + 0.05 + 0.07 * i, 0.05 + 0.035 * i).rectangle(-1, 0, 1, 0.4, glitter)
        left, right = ((0.84, 0.93), (0.93, 0.84))[land % 2]
        beach = [(0, left), (0.5, 0.87), (1, right), (1, 1), (0, 1)]
        frame.polygon(
            [(x * width, y * height) for x, y in beach], dim(ground if "snow" in elements else (235, 205, 145))
        )
    else:
        band(horizon, dim(ground))
        hill = _mix(ground, (255, 255, 255) if "snow" in elements else (130, 200, 90), 0.5)
        at((0.2, 0.8)[land % 2], horizon + 0.25, 0.6).ellipse(0, 0, 1, 0.36, dim(hill))
    foot = 0.86 if "sea" in elements else 0.78
    if "trees" in elements:
        for x, tree in _WOODS[chosen("landscape", "wood", codes)]:
            at(x, foot).rectangle(-0.015, -0.02, 0.015, 0.06, dim((100, 65, 35)))
            for tier in range(2):
                needles = _mix((30, 105, 55), _PAPER, 0.55 if "snow" in elements and tier else 0)
                base = -0.39 * tree * tier
                spread = 0.1 - 0.025 * tier
                at(x, foot).polygon([(-spread, base), (spread, base), (0, base - 0.62 * tree)], dim(needles))
    if "house" in elements:
        house = at((0.33, 0.67, 0.5, 0.25)[land], foot, 0.12)
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
    background = COLOURS[scene.background] if scene.background else _open_colour(codes[BACKGROUND], 188)
    if scene.colour:
        return background, COLOURS[scene.colour]
    bright = scene.background is not None and sum(COLOURS[scene.background]) < 330
    return background, _open_colour(codes[COLOUR], 190 if bright else 80)


def draw(
    scene: Scene,
    codes: tuple[float, ...] = NO_CODES,
    *,
    layout: Layout | None = None,
    width: int = 512,
    height: int = 512,
    antialias: int = 1,
    canvas: Callable[..., Canvas] = Canvas,
) -> Image.Image:
    """Return the scene as an RGB image of width x height pixels, each averaged over antialias x antialias samples.

    Objects are drawn on `canvas`; landscapes are always drawn on a plain one.
    """
    width, height = width * antialias, height * antialias
    if scene.kind == "landscape":
        image = _draw_landscape(scene, codes, width, height)
    else:
        background, colour = colours_of(scene, codes)
        image = Image.new("RGB", (width, height), background)
        side = min(width, height)

        def place(at: Layout, scale: float = 1.0, *, mirrored: bool = False) -> Canvas:
            return canvas(image, at.x * width, at.y * height, at.radius * side * scale, mirrored=mirrored)

        if scene.kind == "pair":
            first, other = pair_layouts(scene.relation or "left of", codes)
            _draw_shape(place(first), scene.shape or "circle", colour, background)
            _draw_shape(place(other), scene.other_shape or "circle", COLOURS[scene.other_colour or "red"], background)
        else:
            layout = layout or layout_of(scene, codes, width, height)
            if scene.kind == "animal":
                turned = place(layout, ANIMAL_SCALE, mirrored=chosen("animal", "side", codes) == 1)
                _draw_animal(turned, scene, codes)
            else:
                _draw_shape(place(layout), scene.shape or "circle", colour, background)
    if scene.style:
        image = Image.fromarray(styled(np.asarray(image), scene.style).round().astype(np.uint8))
    return image.reduce(antialias) if antialias > 1 else image
