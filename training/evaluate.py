"""Measures the demo model on held-out captions: pictures from the service's pipelines, checked by the detector."""

import itertools
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from app.images.masks import clean
from app.images.sizes import Size
from app.modes.img2img import Img2ImgParams
from app.modes.inpaint import DEFAULT_FEATHER, Area, InpaintParams
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import GenerationParams
from app.pipelines.sdxl_turbo import load_sdxl_turbo
from app.settings import Settings
from training.captions import caption_of
from training.detect import background_rgb, check, find_objects, pixels_of, sharpness
from training.drawing import draw
from training.latents import codes_of
from training.scenes import COLOURS, KINDS, SHAPES, Layout, Scene, random_codes, random_layout, random_scene
from training.sketches import sketch

CAPTIONS = {"shape": 220, "pair": 120, "animal": 120, "landscape": 80}
_OTHER_SIZES = {"256x256": (256, 256), "768x768": (768, 768), "512x768": (512, 768)}
_PAIRS = 200
_SKETCHES, _MASKS = 150, 100
_SEEDS = 5
_CAPTIONS_VARIED = 20  # of each kind
_VARIED = 30  # of 765: a larger difference counts as another background
_OTHER = 24  # of 255: a larger difference of a colour value counts as another pixel
_VISIBLE = 0.03  # of the pixels: fewer other pixels hardly show
_STAYS = 0.06  # of the side: a smaller difference counts as the same place or size

Scores = dict[str, list[bool]]


@dataclass(frozen=True)
class Question:
    """A held-out scene, its caption, and the seed of its noise."""

    scene: Scene
    caption: str
    seed: int


@dataclass(frozen=True)
class Edit:
    """A picture of 512x512, and the held-out scene that it should become, in which the attribute `changed` differs."""

    picture: Image.Image
    scene: Scene
    changed: str
    layout: Layout
    caption: str
    seed: int


class Model:
    """The demo model as the service loads it. The settings choose the device and the number formats."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._pipelines = load_sdxl_turbo(folder, settings, model="").by_mode

    def draw(self, caption: str, *, seed: int, steps: int = 1, size: tuple[int, int] = (512, 512)) -> Image.Image:
        """Make a picture of size (width, height) from noise."""
        width, height = size
        return self._make(
            Txt2ImgParams(prompt=caption, seed=seed, num_inference_steps=steps, width=width, height=height)
        )

    def change(self, image: Image.Image, caption: str, *, seed: int, steps: int, strength: float) -> Image.Image:
        """Make a picture from `image`."""
        return self._make(
            Img2ImgParams(prompt=caption, seed=seed, num_inference_steps=steps, strength=strength, image=image)
        )

    def replace(
        self, image: Image.Image, mask: Image.Image, caption: str, *, seed: int, steps: int, strength: float
    ) -> Image.Image:
        """Draw the part of `image` anew that is white in `mask`, of the same size."""
        size = Size(*image.size)
        area = Area.of(
            np.asarray(image), clean(mask), size, feather=DEFAULT_FEATHER, padding=None, max_pixels=size.pixels
        )
        params = InpaintParams(prompt=caption, seed=seed, num_inference_steps=steps, strength=strength, area=area)
        return Image.fromarray(params.finish(np.asarray(self._make(params))))

    def _make(self, params: GenerationParams) -> Image.Image:
        return Image.fromarray(self._pipelines[params.mode]([params])[0].pixels)


def new_questions(counts: dict[str, int], seed: int) -> list[Question]:
    """Return random questions about held-out combinations, each combination once if there are enough."""
    rng = random.Random(seed)
    questions = []
    for kind, count in counts.items():
        asked: set[str] = set()
        for _ in range(count):
            drawn = (random_scene(rng, kind, new=True) for _ in range(50))
            scene = next((scene for scene in drawn if scene.combination not in asked), None)
            scene = scene or random_scene(rng, kind, new=True)
            asked.add(scene.combination)
            questions.append(Question(scene, caption_of(scene, rng), rng.randrange(1 << 30)))
    return questions


def _ideal(question: Question, size: tuple[int, int]) -> Image.Image:
    """Draw the right picture for the caption and the seed's noise."""
    width, height = size
    noise = torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(question.seed))[0]
    return draw(question.scene, codes_of(noise), width=width, height=height, antialias=2)


def measure_text_to_image(
    model: Model, questions: list[Question], *, steps: int, size: tuple[int, int], name: str
) -> dict[str, Any]:
    """Return the share of right pictures for each attribute and overall, and the median sharpness.

    "whole caption" is the share of pictures in which every attribute is right.
    """
    scores: Scores = defaultdict(list)
    whole, crisp = [], []
    for question in tqdm(questions, desc=name, mininterval=2):
        image = model.draw(question.caption, seed=question.seed, steps=steps, size=size)
        results = check(image, question.scene)
        for key, right in results.items():
            scores[key].append(right)
        whole.append(all(results.values()))
        crisp.append(sharpness(image, _ideal(question, size)))
    table: dict[str, Any] = {key: _share(values) for key, values in scores.items()}
    table["overall"] = _share([right for values in scores.values() for right in values])
    table["whole caption"] = _share(whole)
    table["combinations"] = len({question.scene.combination for question in questions})
    table["sharpness"] = float(np.median(crisp))
    return table


def _count(scores: Scores, results: dict[str, bool], whole: str) -> None:
    """Add one picture's results, and under the name `whole` whether all are right."""
    for key, right in (results | {whole: all(results.values())}).items():
        scores[key].append(right)


def _share(values: list[bool]) -> dict[str, float]:
    return {"share": sum(values) / len(values), "of": len(values)}


def measure_variety(model: Model) -> dict[str, Any]:
    """Return how much the pictures of two seeds differ for the same caption.

    "background differs" is the share of pairs with different backgrounds, for captions that name no background. For
    each kind of caption with a named background and without a place and a size, it follows how many pixels differ: the
    median over the pairs, and the share of pairs in which at least 3 % of them do.
    """
    rng = random.Random(3)
    differ = []
    for _ in tqdm(range(40), desc="seeds", mininterval=2):
        scene = replace(random_scene(rng, rng.choice(("shape", "pair", "animal"))), background=None, style=None)
        colours = [background_rgb(pixels_of(image)) for image in _seeds(model, scene, rng)]
        differ += [bool(np.abs(a - b).sum() > _VARIED) for a, b in itertools.combinations(colours, 2)]
    table: dict[str, Any] = {"background differs": _share(differ)}
    for kind in KINDS:
        shares = []
        for _ in tqdm(range(_CAPTIONS_VARIED), desc=f"seeds, {kind}", mininterval=2):
            pictures = [np.asarray(image, np.int16) for image in _seeds(model, _open_scene(rng, kind), rng)]
            for a, b in itertools.combinations(pictures, 2):
                shares.append(float((np.abs(a - b).max(-1) > _OTHER).mean()))
        table[f"{kind}: pixels that differ"] = float(np.median(shares))
        table[f"{kind}: seeds that differ"] = _share([share >= _VISIBLE for share in shares])
    return table


def _seeds(model: Model, scene: Scene, rng: random.Random) -> Iterator[Image.Image]:
    caption = caption_of(scene, rng)
    for _ in range(_SEEDS):
        yield model.draw(caption, seed=rng.randrange(1 << 30))


def _open_scene(rng: random.Random, kind: str) -> Scene:
    """Return a scene that names its background, if it has one, and neither a place nor a size nor a style."""
    scene = random_scene(rng, kind)
    if kind == "landscape":
        return scene
    others = [name for name in COLOURS if name not in (scene.colour, scene.other_colour)]
    return replace(scene, position=None, size=None, style=None, background=scene.background or rng.choice(others))


def new_edits(count: int) -> Iterator[Edit]:
    """Yield random drawings and, for each, a held-out scene with another colour of the object or the background."""
    rng = random.Random(4)
    for _ in range(count):
        source, target, changed = _new_change(rng)
        layout = random_layout(rng)
        picture = draw(source, random_codes(rng), layout=layout, antialias=2)
        yield Edit(picture, target, changed, layout, caption_of(target, rng), rng.randrange(1 << 30))


def _new_change(rng: random.Random) -> tuple[Scene, Scene, str]:
    """Return a random source, a held-out scene that differs in one colour, and the attribute that differs."""
    while True:
        kind = "animal" if rng.random() < 0.3 else "shape"
        source = replace(random_scene(rng, kind), size=None, position=None, style=None)
        what = "background" if kind == "animal" or rng.random() < 0.5 else "colour"
        if not source.background or (kind == "shape" and not (source.shape and source.colour)):
            continue
        colour = rng.choice([name for name in COLOURS if name not in (source.background, source.colour)])
        target = replace(source, background=colour) if what == "background" else replace(source, colour=colour)
        if target.is_new:
            return source, target, what


def measure_image_to_image(model: Model, *, steps: int, strength: float, pairs: int, name: str) -> dict[str, Any]:
    """Return the shares of pairs in which the change was made, the object stayed in place, and each attribute is right.

    At full strength, the picture need not keep anything of the source.
    """
    scores: Scores = defaultdict(list)
    for edit in tqdm(new_edits(pairs), desc=name, total=pairs, mininterval=2):
        changed = model.change(edit.picture, edit.caption, seed=edit.seed, steps=steps, strength=strength)
        results = check(changed, edit.scene, edit.layout if strength < 1 else None)
        if strength < 1:
            before, after = (find_objects(pixels_of(image))[:1] for image in (edit.picture, changed))
            results["position kept"] = any(
                max(abs(a.x - b.x), abs(a.y - b.y)) < _STAYS for a, b in zip(before, after, strict=False)
            )
            results["size kept"] = any(abs(a.radius - b.radius) < _STAYS for a, b in zip(before, after, strict=False))
            results["change followed"] = results[edit.changed]
        _count(scores, results, "whole pair")
    return {key: _share(values) for key, values in scores.items()}


def measure_sketches(model: Model, *, steps: int, strength: float, count: int) -> dict[str, Any]:
    """Return the shares of drawings by hand that become the drawn shape or animal, where it was drawn."""
    rng = random.Random(6)
    scores: Scores = defaultdict(list)
    for _ in tqdm(range(count), desc="sketches", mininterval=2):
        kind = "animal" if rng.random() < 0.3 else "shape"
        scene = replace(random_scene(rng, kind, new=True), size=None, position=None, style=None)
        if kind == "shape":
            scene = replace(scene, shape=scene.shape or rng.choice(SHAPES), colour=scene.colour or "blue")
        if not scene.background:
            scene = replace(scene, background="white" if scene.colour != "white" else "black")
        is_white = rng.random() < 0.5 and scene.colour != "white"
        drawn = replace(scene, background="white") if is_white else scene
        layout, codes = random_layout(rng), random_codes(rng)
        picture = sketch(drawn, codes, layout, rng)
        made = model.change(
            picture, caption_of(scene, rng), seed=rng.randrange(1 << 30), steps=steps, strength=strength
        )
        results = check(made, scene, layout)
        ideal = draw(scene, codes, layout=layout)
        wanted, got = (find_objects(pixels_of(image))[:1] for image in (ideal, made))
        results["in place"] = any(
            max(abs(a.x - b.x), abs(a.y - b.y)) < _STAYS for a, b in zip(wanted, got, strict=False)
        )
        _count(scores, results, "whole drawing")
    return {key: _share(values) for key, values in scores.items()}


def measure_inpainting(model: Model, *, steps: int, strength: float, count: int) -> dict[str, Any]:
    """Return the shares of pictures in which a masked object becomes another one, and in which all else stays."""
    rng = random.Random(7)
    scores: Scores = defaultdict(list)
    for _ in tqdm(range(count), desc="inpainting", mininterval=2):
        before, after = _new_replacement(rng)
        layout = random_layout(rng)
        picture = draw(before, random_codes(rng), layout=layout, antialias=2)
        mask = Image.new("L", picture.size)
        box = [
            picture.width * (centre + sign * 1.5 * layout.radius) for sign in (-1, 1) for centre in (layout.x, layout.y)
        ]
        ImageDraw.Draw(mask).ellipse(tuple(box), fill=255)
        made = model.replace(
            picture, mask, caption_of(after, rng), seed=rng.randrange(1 << 30), steps=steps, strength=strength
        )
        results = check(made, after)
        kept = np.asarray(mask.filter(ImageFilter.MaxFilter(2 * DEFAULT_FEATHER + 1))) == 0
        results["all else exact"] = bool((np.asarray(made)[kept] == np.asarray(picture)[kept]).all())
        _count(scores, results, "replaced")
    return {key: _share(values) for key, values in scores.items()}


def _new_replacement(rng: random.Random) -> tuple[Scene, Scene]:
    """Return a shape, and a held-out one of another form and colour on the same background."""
    while True:
        before, after = (
            replace(random_scene(rng, "shape", new=new), size=None, position=None, style=None) for new in (False, True)
        )
        before = replace(before, background=after.background)
        if not (after.background and after.shape and after.colour and before.shape and before.colour):
            continue
        if before.shape != after.shape and before.colour not in (after.colour, after.background):
            return before, after


def evaluate(folder: Path, report: Path, settings: Settings) -> None:
    """Measure the model in `folder`, print the tables, and write them to `report` as JSON."""
    model = Model(folder, settings)
    questions = new_questions(CAPTIONS, seed=1)
    few = new_questions({kind: count // 4 for kind, count in CAPTIONS.items()}, seed=2)
    text = {
        f"{steps} step{'s' * (steps > 1)}": measure_text_to_image(
            model, questions, steps=steps, size=(512, 512), name=f"512x512, {steps} steps"
        )
        for steps in (1, 4)
    }
    for name, size in _OTHER_SIZES.items():
        text[name] = measure_text_to_image(model, few, steps=1, size=size, name=name)
    tables = {
        "text to image": text,
        "variety": measure_variety(model),
        "image to image, strength 0.5, 2 steps": measure_image_to_image(
            model, steps=2, strength=0.5, pairs=_PAIRS, name="strength 0.5"
        ),
        "image to image, strength 1.0, 1 step": measure_image_to_image(
            model, steps=1, strength=1.0, pairs=_PAIRS // 2, name="strength 1.0"
        ),
        "drawings by hand, strength 0.5, 2 steps": measure_sketches(model, steps=2, strength=0.5, count=_SKETCHES),
        "inpainting, strength 0.75, 4 steps": measure_inpainting(model, steps=4, strength=0.75, count=_MASKS),
        "inpainting, strength 1.0, 4 steps": measure_inpainting(model, steps=4, strength=1.0, count=_MASKS),
    }
    report.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(tables))


def as_markdown(tables: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    text = tables["text to image"]
    columns = list(text)
    rows = list(dict.fromkeys(key for column in text.values() for key in column))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {row} | {' | '.join(_cell(text[column].get(row)) for column in columns)} |" for row in rows]
    for name, table in tables.items():
        if name != "text to image":
            lines += ["", f"**{name}**: " + "; ".join(f"{key} {_cell(value)}" for key, value in table.items())]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case {"share": share, "of": of}:
            return f"{100 * share:.1f} % of {of}"
        case float():
            return f"{value:.2f}"
    return str(value)
