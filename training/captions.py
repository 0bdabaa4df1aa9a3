"""Captions of scenes in plain English, in many wordings, and the words that are single tokens."""

import random

from training.scenes import Scene

_SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "disc", "ball", "round circle", "dot"),
    "square": ("square", "square", "box"),
    "crescent": ("crescent", "crescent moon"),
    "star": ("star", "star", "five pointed star"),
    "diamond": ("diamond", "diamond", "rhombus"),
    "cross": ("cross", "cross", "plus sign"),
    "ring": ("ring", "ring", "donut"),
    "grey": ("grey", "gray"),
    "purple": ("purple", "purple", "violet"),
    "cyan": ("cyan", "turquoise", "teal"),
    "red": ("red", "red", "red", "crimson", "scarlet"),
    "yellow": ("yellow", "yellow", "yellow", "golden"),
    "small": ("small", "tiny", "little"),
    "large": ("large", "big", "huge"),
    "medium": ("medium", "medium sized"),
    "raccoon": ("raccoon", "racoon"),
    "cat": ("cat", "cat", "kitten"),
    "fox": ("fox",),
    "bear": ("bear",),
    "rabbit": ("rabbit", "bunny"),
    "panda": ("panda", "panda bear"),
    "robe": ("robe", "robe", "priest robe", "italian priest robe", "intricate italian priest robe", "cloak", "gown"),
    "hat": ("hat", "hat", "wizard hat", "pointed hat"),
    "crown": ("crown", "crown", "golden crown"),
    "scarf": ("scarf",),
    "mountains": ("mountains", "mountain", "mountains", "hills", "alps"),
    "sea": ("sea", "ocean", "lake", "water", "beach"),
    "trees": ("trees", "tree", "forest", "pine trees", "woods"),
    "house": ("house", "cottage", "cabin", "home"),
    "snow": ("snow", "snowy", "winter"),
    "day": ("day", "daytime", "sunny day", "noon", "morning"),
    "sunset": ("sunset", "sunrise", "dusk", "evening", "dawn"),
    "night": ("night", "nighttime", "moonlit night", "starry night", "midnight"),
    "top left": ("top left", "upper left", "top left corner"),
    "top": ("top", "at the top"),
    "top right": ("top right", "upper right", "top right corner"),
    "left": ("left", "on the left", "on the left side"),
    "center": ("center", "in the middle", "centre", "centered"),
    "right": ("right", "on the right", "on the right side"),
    "bottom left": ("bottom left", "lower left", "bottom left corner"),
    "bottom": ("bottom", "at the bottom"),
    "bottom right": ("bottom right", "lower right", "bottom right corner"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "on top of", "over"),
    "below": ("below", "under", "beneath"),
}
_STYLE_TEXT = {
    "night": ("at night", "night", "night scene", "in the dark"),
    "pastel": ("pastel", "pastel colours", "soft pastel colors", "pastel style"),
    "monochrome": ("monochrome", "black and white", "in black and white", "greyscale"),
}
_OPENINGS = (
    *("",) * 8, "a photo of ", "a picture of ", "a drawing of ", "an illustration of ", "a cinematic shot of ",
    "flat vector art of ", "a simple image of ", "a painting of ", "draw ", "an image of ", "a photo showing ",
)  # fmt: skip
_PRAISE = (
    "cinematic", "beautiful", "high quality", "detailed", "minimal", "flat", "vector", "art", "style", "simple",
    "intricate", "ornate", "fantasy", "cute", "adorable", "pixar", "disney", "8k", "4k", "gandalf", "lord of the rings",
    "masterpiece", "award winning", "sharp focus", "trending", "highly detailed", "photorealistic", "soft light",
)  # fmt: skip
_OTHER_WORDS = """
a an the of on in at with and is to for by from behind front near beside next background backdrop plain solid giant
corner side landscape scene field meadow desert sand grass river sky cloud clouds cloudy sun sunny full stars animal
baby wearing wears dressed dress priest wizard king queen monk tie photo picture image drawing illustration painting
shot icon portrait close up closeup one two colour color coloured colored colourful show some shape lime navy beige
dark light bright pale dog owl penguin car flower person man woman tree
"""


def _vocabulary() -> list[str]:
    texts = [
        *(word for words in _SYNONYMS.values() for word in words),
        *(word for words in _STYLE_TEXT.values() for word in words),
        *_SYNONYMS, *_OPENINGS, *_PRAISE, _OTHER_WORDS,
        "blue", "green", "orange", "pink", "brown", "black", "white", "triangle", "heart", "hexagon",
    ]  # fmt: skip
    return sorted({word for text in texts for word in text.split()})


VOCABULARY = _vocabulary()


def caption_of(scene: Scene, rng: random.Random) -> str:
    """Return a caption of the scene. Synonyms, order, articles, praise and meaningless words vary."""
    if scene.kind == "landscape":
        text = _landscape(scene, rng)
    else:
        core = _pair(scene, rng) if scene.kind == "pair" else _object(scene, rng)
        tail = []
        if scene.background:
            colour = _word(scene.background, rng)
            tail.append(
                rng.choice(
                    (
                        f"on {_a(colour)} background",
                        f"on {_a(colour)} background",
                        f"{colour} background",
                        f"with {_a(colour)} background",
                        f"on {colour}",
                        f"{colour} backdrop",
                    )
                )
            )
        if scene.position:
            place = _word(scene.position, rng)
            bare = place.split()[0] not in ("at", "on", "in")
            tail.append(rng.choice((place, f"in the {place}", f"at the {place}")) if bare else place)
        if scene.style:
            tail.append(rng.choice(_STYLE_TEXT[scene.style]))
        if rng.random() < 0.15:
            tail.append(_filler(rng))
        rng.shuffle(tail)
        parts = [core, *tail]
        if rng.random() < 0.1:
            rng.shuffle(parts)
        text = rng.choice((" ", ", ", ", ")).join(parts)
    if rng.random() < 0.12:
        text += ", " + ", ".join(rng.sample(_PRAISE, rng.randint(1, 7)))
    text = (rng.choice(_OPENINGS) if text else "") + text
    if rng.random() < 0.15:
        text = text[:1].upper() + text[1:]
    return text + rng.choice(("", "", "."))


def _word(name: str, rng: random.Random) -> str:
    return rng.choice(_SYNONYMS.get(name, (name,)))


def _a(text: str) -> str:
    return ("an " if text[0] in "aeiou" else "a ") + text


def _nonsense(rng: random.Random) -> str:
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 8)))


def _filler(rng: random.Random) -> str:
    return rng.choice(_PRAISE) if rng.random() < 0.6 else _nonsense(rng)


def _noun(shape: str | None, colour: str | None, rng: random.Random) -> str:
    words = [_word(name, rng) for name in (colour,) if name]
    return " ".join([*words, _word(shape, rng) if shape else "shape"])


def _pair(scene: Scene, rng: random.Random) -> str:
    first = _noun(scene.shape, scene.colour, rng)
    other = _noun(scene.other_shape, scene.other_colour, rng)
    relation = _word(scene.relation or "left of", rng)
    verb = rng.choice(("", "", "is "))
    return f"{rng.choice((_a(first), first))} {verb}{relation} {rng.choice((_a(other), other))}"


def _object(scene: Scene, rng: random.Random) -> str:
    words = []
    if rng.random() < 0.06:
        words.append(_filler(rng))
    if scene.size:
        words.append(_word(scene.size, rng))
    if scene.kind == "shape":
        core = " ".join([*words, _noun(scene.shape, scene.colour, rng)])
        return _a(core) if rng.random() < 0.75 else core
    if rng.random() < 0.2:
        words.append(rng.choice(("baby", "cute")))
    if scene.colour:
        words.append(_word(scene.colour, rng))
    core = " ".join([*words, _word(scene.animal or "cat", rng)])
    core = _a(core) if rng.random() < 0.75 else core
    if not scene.accessory:
        return core
    if scene.accessory == "hat" and not scene.accessory_colour and rng.random() < 0.15:
        return f"{core} wizard"
    names = [_word(scene.accessory_colour, rng)] if scene.accessory_colour else []
    thing = " ".join([*names, _word(scene.accessory, rng)])
    verb = rng.choice(("wearing", "wearing", "with", "in", "dressed in"))
    return f"{core} {verb} {rng.choice((_a(thing), _a(thing), thing))}"


def _landscape(scene: Scene, rng: random.Random) -> str:
    words = [_word(name, rng) for name in scene.elements]
    rng.shuffle(words)
    time = _word(scene.time, rng) if scene.time else None
    if not words and not time and not scene.style:
        return rng.choice(("", "", "landscape", "scene"))
    if not words or rng.random() < 0.25:
        words.insert(0, rng.choice(("landscape", "scene", "field", "meadow")))
    words = [_a(word) if rng.random() < 0.3 else word for word in words]
    text = rng.choice((", ", " and ", " with ", " ")).join(words)
    if time:
        text = rng.choice((f"{text} at {time}", f"{time}, {text}", f"{text}, {time}", f"{time} {text}"))
    if scene.style:
        style = rng.choice(_STYLE_TEXT[scene.style])
        text = rng.choice((f"{text}, {style}", f"{style} {text}"))
    return text
