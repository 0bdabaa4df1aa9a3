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
from PIL import Image
from tqdm import tqdm

from app.modes.img2img import Img2ImgParams
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import GenerationParams
from app.pipelines.sdxl_turbo import load_sdxl_turbo
from app.settings import Settings
from training.captions import caption_of
from training.detect import background_rgb, check, find_objects, pixels_of, sharpness
from training.latents import codes_of
from training.scenes import COLOURS, Layout, Scene, draw, random_codes, random_layout, random_scene

CAPTIONS = {"shape": 220, "pair": 120, "animal": 120, "landscape": 80}
_OTHER_SIZES = {"256x256": (256, 256), "768x768": (768, 768), "512x768": (512, 768)}
_PAIRS = 200
_SEEDS = 4
_VARIED = 30  # of 765: a larger difference counts as another background
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


def _share(values: list[bool]) -> dict[str, float]:
    return {"share": sum(values) / len(values), "of": len(values)}


def measure_variety(model: Model) -> dict[str, Any]:
    """Return the share of pairs of seeds with different backgrounds, for captions that name no background."""
    rng = random.Random(3)
    differ = []
    for _ in tqdm(range(40), desc="seeds", mininterval=2):
        scene = replace(random_scene(rng, rng.choice(("shape", "pair", "animal"))), background=None, style=None)
        caption = caption_of(scene, rng)
        colours = [background_rgb(pixels_of(model.draw(caption, seed=rng.randrange(1 << 30)))) for _ in range(_SEEDS)]
        differ += [bool(np.abs(a - b).sum() > _VARIED) for a, b in itertools.combinations(colours, 2)]
    return {"background differs": _share(differ)}


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
        for key, right in results.items():
            scores[key].append(right)
        scores["whole pair"].append(all(results.values()))
    return {key: _share(values) for key, values in scores.items()}


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
