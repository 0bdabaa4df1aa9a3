"""Scenes: what captions name, what they leave open, and where objects are.

A `Scene` contains the attributes that a caption names; None means that the caption leaves an attribute open. The
`codes`, twelve numbers from the diffusion noise (see `training.latents`), decide what is open, so another seed gives
another picture. Colours follow their codes continuously. All else is chosen from a few by the signs of six codes: a
model of this size reads a number with an error, and would blur the edges of an object whose place it must estimate.
"""

import random
import zlib
from dataclasses import dataclass, field, fields, replace

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
# The codes that decide each open colour, and those whose signs decide all else.
BACKGROUND, COLOUR, SWITCHES = slice(0, 3), slice(3, 6), slice(6, 12)
# How many possibilities each open attribute is chosen from, and which switches choose.
CHOICES: dict[str, dict[str, tuple[int, tuple[int, ...]]]] = {
    "shape": {"column": (3, (6, 7)), "row": (3, (8, 9)), "size": (4, (10, 11))},
    "pair": {"column": (3, (6, 7)), "row": (3, (8, 9)), "size": (4, (10, 11))},
    "animal": {"column": (2, (6,)), "row": (2, (8,)), "side": (2, (7,)), "pose": (4, (9, 10)), "size": (2, (11,))},
    "landscape": {"land": (4, (6, 7)), "sky": (4, (8, 9)), "wood": (4, (10, 11))},
}


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


_FUR_NAME = {"raccoon": "grey", "cat": "orange", "fox": "orange", "panda": "white", "bear": "brown", "rabbit": "white"}


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


def chosen(kind: str, attribute: str, codes: tuple[float, ...]) -> int:
    """Return which of its possibilities an attribute has in scenes of this kind. The first ones can be likelier."""
    count, switches = CHOICES[kind][attribute]
    number = sum(1 << i for i, code in enumerate(switches) if codes[code] > 0)
    return number * count >> len(switches)


def with_choices(codes: tuple[float, ...], kind: str, choices: dict[str, int]) -> tuple[float, ...]:
    """Return the codes with switches that make these choices."""
    changed = list(codes)
    for attribute, choice in choices.items():
        count, switches = CHOICES[kind][attribute]
        number = -(-choice * 2 ** len(switches) // count)
        for i, code in enumerate(switches):
            changed[code] = 1.0 if number >> i & 1 else -1.0
    return tuple(changed)


_THIRDS = (1, 0, 2)  # the middle one is the likeliest
_OPEN_SIZES = (0.20, 0.14, 0.25, 0.31)
_OPEN_ANIMAL_SIZES = (0.29, 0.22)
ANIMAL_SCALE = 1.1
# How far an animal may be from the middle at most, and its extent in radii: to a side, above and below.
_ANIMAL_ROOM = ((0.24, 1.21), (0.2, 1.65), (0.2, 1.342))


def layout_of(scene: Scene, codes: tuple[float, ...] = NO_CODES, width: int = 1, height: int = 1) -> Layout:
    """Return a shape's or an animal's layout: what the caption names, and for the rest what the codes choose."""
    radius = _radius_of(scene, codes)
    if scene.kind == "animal" and not scene.position:
        aside, up, down = (min(most, max(0.0, 0.49 - room * radius)) for most, room in _ANIMAL_ROOM)
        x = 0.5 + (aside if chosen("animal", "column", codes) else -aside)
        return Layout(x, 0.5 + (down if chosen("animal", "row", codes) else -up), radius)
    if scene.position:
        row, column = divmod(POSITIONS.index(scene.position), 3)
    else:
        column, row = (_THIRDS[chosen("shape", name, codes)] for name in ("column", "row"))
    margin = radius * (1.25 if scene.kind == "animal" else 1) + 0.03
    centre = []
    for third, side in ((column, width), (row, height)):
        edge = max(0.24, margin * min(width, height) / side)
        centre.append((edge, 0.5, 1 - edge)[third])
    return Layout(centre[0], centre[1], radius)


def _radius_of(scene: Scene, codes: tuple[float, ...]) -> float:
    if scene.size:
        return SIZES[scene.size]
    if scene.kind == "animal":
        return SIZES["medium"] if scene.position else _OPEN_ANIMAL_SIZES[chosen("animal", "size", codes)]
    return _OPEN_SIZES[chosen("shape", "size", codes)]


def random_layout(rng: random.Random) -> Layout:
    """Return a random layout, as in uploaded pictures: anywhere, of any size."""
    radius = rng.uniform(0.10, 0.33)
    margin = radius + 0.02
    return Layout(rng.uniform(margin, 1 - margin), rng.uniform(margin, 1 - margin), radius)


_PAIR_SIZES = (0.155, 0.125, 0.17, 0.185)
_PAIR_DISTANCE = 0.225


def pair_layouts(relation: str, codes: tuple[float, ...] = NO_CODES) -> tuple[Layout, Layout]:
    """Return the layouts of the first and the other object of a pair."""
    dx, dy = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[relation]
    radius = _PAIR_SIZES[chosen("pair", "size", codes)]
    column, row = (_THIRDS[chosen("pair", name, codes)] - 1 for name in ("column", "row"))
    x, y = 0.5 + (0.055 if dx else 0.13) * column, 0.5 + (0.055 if dy else 0.13) * row
    first, other = (Layout(x + sign * dx * _PAIR_DISTANCE, y + sign * dy * _PAIR_DISTANCE, radius) for sign in (1, -1))
    return first, other


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
