"""The measures of the demo model, applied to models that draw ideal or wrong pictures."""

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import training.__main__
import training.evaluate
from app.settings import Settings
from training.drawing import draw
from training.evaluate import (
    CAPTIONS,
    Model,
    Question,
    as_markdown,
    measure_image_to_image,
    measure_inpainting,
    measure_sketches,
    measure_text_to_image,
    measure_variety,
    new_questions,
)
from training.latents import codes_of
from training.scenes import CODES, KINDS, Layout, Scene

PROJECT = Path(training.evaluate.__file__).parents[1]
DEMO = PROJECT / "app" / "weights" / "demo"
CARD = DEMO / "README.md"
FEW = {"shape": 6, "pair": 4, "animal": 4, "landscape": 4}
LAYOUT, CODES_SHOWN = Layout(0.35, 0.6, 0.2), (0.5,) * CODES


class Painter(Model):
    """A model that knows the scene of each caption, and draws the scene that `see` returns for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, see: Callable[[Scene], Scene] = lambda scene: scene) -> None:
        self._scenes: dict[str, Scene] = {}
        self._see = see
        monkeypatch.setattr(training.evaluate, "caption_of", self._caption_of)
        monkeypatch.setattr(training.evaluate, "random_layout", lambda _: LAYOUT)
        monkeypatch.setattr(training.evaluate, "random_codes", lambda _: CODES_SHOWN)

    def _caption_of(self, scene: Scene, _: object) -> str:
        self._scenes[caption := f"caption {len(self._scenes)}"] = scene
        return caption

    def draw(self, caption: str, *, seed: int, steps: int = 1, size: tuple[int, int] = (512, 512)) -> Image.Image:
        assert 1 <= steps <= 4
        noise = torch.randn(1, 4, size[1] // 8, size[0] // 8, generator=torch.Generator().manual_seed(seed))[0]
        scene = self._see(self._scenes[caption])
        return draw(scene, codes_of(noise), width=size[0], height=size[1], antialias=2)

    def change(self, image: Image.Image, caption: str, *, seed: int, steps: int, strength: float) -> Image.Image:
        assert (image.size, steps, seed >= 0) == ((512, 512), 2 if strength < 1 else 1, True)
        layout = LAYOUT if strength < 1 else None
        return draw(self._see(self._scenes[caption]), CODES_SHOWN, layout=layout, antialias=2)

    def replace(
        self, image: Image.Image, mask: Image.Image, caption: str, *, seed: int, steps: int, strength: float
    ) -> Image.Image:
        assert seed >= 0
        drawn = self.change(image, caption, seed=seed, steps=steps, strength=strength)
        return Image.composite(drawn, image, mask)


def test_ideal_pictures_score_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter(monkeypatch)
    for size in ((512, 512), (512, 768)):
        table = measure_text_to_image(painter, new_questions(FEW, 1), steps=1, size=size, name="")
        assert table.pop("combinations") == 18
        assert table.pop("sharpness") == pytest.approx(1)
        assert {key: cell["share"] for key, cell in table.items()} == dict.fromkeys(table, 1)
        assert {"shape", "colour", "background", "pair", "animal", "elements", "overall", "whole caption"} <= set(table)
    for steps, strength in ((2, 0.5), (1, 1.0)):
        shares = measure_image_to_image(painter, steps=steps, strength=strength, pairs=6, name="")
        assert {key: cell["share"] for key, cell in shares.items()} == dict.fromkeys(shares, 1)
        assert ("position kept" in shares) == (strength < 1)
    for shares in (
        measure_sketches(painter, steps=2, strength=0.5, count=6),
        measure_inpainting(painter, steps=2, strength=0.75, count=6),
    ):
        assert {key: cell["share"] for key, cell in shares.items()} == dict.fromkeys(shares, 1)
    variety = measure_variety(painter)
    assert variety["background differs"]["share"] > 0.8
    for kind in KINDS:
        assert variety[f"{kind}: pixels that differ"] > 0.1
        assert variety[f"{kind}: seeds that differ"]["share"] > 0.9


def test_a_model_that_draws_elsewhere_or_everywhere_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter(monkeypatch)
    monkeypatch.setattr(painter, "change", lambda *_, **__: Image.new("RGB", (512, 512)))
    drawings = measure_sketches(painter, steps=2, strength=0.5, count=6)
    assert drawings["whole drawing"]["share"] == drawings["in place"]["share"] == 0
    shares = measure_inpainting(painter, steps=2, strength=0.75, count=6)
    assert (shares["replaced"]["share"], shares["all else exact"]["share"]) == (0, 1)
    monkeypatch.setattr(painter, "replace", lambda *_, **__: Image.new("RGB", (512, 512)))
    assert measure_inpainting(painter, steps=2, strength=0.75, count=6)["all else exact"]["share"] == 0


def test_a_model_that_knows_only_circles_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def circle(scene: Scene) -> Scene:
        return replace(scene, kind="shape", shape="circle", colour=scene.colour or "grey")

    painter = Painter(monkeypatch, circle)
    table = measure_text_to_image(painter, new_questions(FEW, 1), steps=1, size=(512, 512), name="")
    assert table["background"]["share"] == table["colour"]["share"] == 1
    assert table["pair"]["share"] == table["elements"]["share"] == 0
    assert table["whole caption"]["share"] < 0.3
    shares = measure_image_to_image(painter, steps=2, strength=0.5, pairs=12, name="")
    assert shares["position kept"]["share"] > 0.9
    assert shares["whole pair"]["share"] < 0.5


def test_a_model_that_heeds_no_caption_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter(monkeypatch, lambda _: Scene("shape", shape="circle", colour="grey", background="grey"))
    table = measure_text_to_image(painter, new_questions(FEW, 1), steps=1, size=(512, 512), name="")
    assert table["overall"]["share"] < 0.25
    assert table["whole caption"]["share"] == 0
    assert measure_variety(painter)["background differs"]["share"] == 0


def test_questions_are_new_and_hardly_ever_asked_twice() -> None:
    questions = new_questions(CAPTIONS, 1)
    assert len(questions) >= 500
    assert len({question.scene.combination for question in questions}) > 400
    for scene, other in itertools.pairwise(question.scene for question in questions):
        assert scene.is_held_out
        if scene.kind == other.kind == "pair":
            exchanged = replace(
                scene,
                shape=scene.other_shape,
                colour=scene.other_colour,
                other_shape=scene.shape,
                other_colour=scene.colour,
            )
            assert exchanged.is_held_out


def test_the_tables_show_shares_with_their_numbers() -> None:
    share = {"share": 0.975, "of": 40}
    tables = {
        "text to image": {"1 step": {"colour": share, "sharpness": 0.912}, "256x256": {"colour": share}},
        "variety": {"background differs": share},
    }
    assert as_markdown(tables).splitlines() == [
        "| | 1 step | 256x256 |",
        "|---|---|---|",
        "| colour | 97.5 % of 40 | 97.5 % of 40 |",
        "| sharpness | 0.91 |  |",
        "",
        "**variety**: background differs 97.5 % of 40",
    ]


def scores_in(dtype: str) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads((PROJECT / "training" / "scores" / f"{dtype}.json").read_text())
    return scores


def totals(scores: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        f"{table}, {row}": cells[row]
        for table, cells in (scores["text to image"] | scores).items()
        for row in ("overall", "whole caption", "background differs", "whole pair")
        if row in cells
    }


def test_the_model_card_shows_the_scores_that_were_measured() -> None:
    assert as_markdown(scores_in("fp32")) in CARD.read_text()


def test_the_model_card_shows_what_bf16_changes_in_the_scores() -> None:
    fp32, bf16 = (totals(scores_in(dtype)) for dtype in ("fp32", "bf16"))
    assert len(fp32) == 13
    for name, share in fp32.items():
        cells = [f"{100 * one['share']:.1f} % of {one['of']}" for one in (share, bf16[name])]
        points = 100 * (bf16[name]["share"] - share["share"])
        assert f"\n| {name} | {' | '.join(cells)} | {points:+.1f} |\n" in CARD.read_text()


def test_a_question_remembers_its_seed() -> None:
    assert new_questions(FEW, 1) == new_questions(FEW, 1) != new_questions(FEW, 2)
    assert isinstance(new_questions(FEW, 1)[0], Question)


def test_a_model_draws_in_the_number_format_of_its_settings() -> None:
    fp32, again, bf16 = (
        np.asarray(Model(DEMO, Settings(dtype=dtype)).draw("a red circle on blue", seed=1), np.int16)
        for dtype in ("fp32", "fp32", "bf16")
    )
    assert (fp32 == again).all()
    assert 0 < np.abs(fp32 - bf16).mean() < 3


def test_the_command_measures_in_the_number_format_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    # The measures take a quarter of an hour.
    monkeypatch.setattr(training.__main__, "evaluate", lambda *arguments: calls.append(arguments))
    for options in ([], ["--dtype", "bf16"], ["--report", "mine.json"]):
        monkeypatch.setattr(sys, "argv", ["training", "evaluate", *options])
        training.__main__.main()
    assert [(report.name, settings.dtype) for _, report, settings in calls] == [
        ("fp32.json", "fp32"),
        ("bf16.json", "bf16"),
        ("mine.json", "fp32"),
    ]
