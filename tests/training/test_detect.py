"""The classical detector accepts ideal pictures of every format, and finds each single fault."""

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from training.detect import check, find_objects, pixels_of, sharpness
from training.drawing import draw
from training.scenes import CODES, KINDS, SHAPES, Layout, Scene, random_codes, random_layout, random_scene

SHAPE = Scene("shape", shape="circle", colour="red", size="small", position="left", background="blue")
PAIR = Scene(
    "pair",
    shape="star",
    colour="red",
    relation="left of",
    other_shape="heart",
    other_colour="blue",
    background="white",
)
ANIMAL = Scene(
    "animal",
    animal="fox",
    colour="green",
    size="small",
    position="right",
    accessory="hat",
    accessory_colour="blue",
    background="pink",
)
LANDSCAPE = Scene("landscape", time="night", elements=("sea", "trees"), style="pastel")


@pytest.mark.parametrize("size", [(512, 512), (512, 768), (768, 512), (768, 768)])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_found_in_ideal_pictures(kind: str, size: tuple[int, int]) -> None:
    rng = random.Random(5)
    wrong = []
    for i in range(30 if size == (512, 512) else 6):
        scene, codes = random_scene(rng, kind, new=i % 2 == 0), random_codes(rng)
        results = check(draw(scene, codes, width=size[0], height=size[1], antialias=2), scene)
        if not all(results.values()):
            wrong.append((scene, results))
    # A white triangle is hard to see if an unspecified background is light.
    assert len(wrong) <= (1 if kind == "shape" else 0), wrong


@pytest.mark.parametrize(
    ("scene", "changes", "wrong"),
    [
        (SHAPE, {"shape": "hexagon"}, "shape"),
        (SHAPE, {"colour": "green"}, "colour"),
        (SHAPE, {"size": "medium"}, "size"),
        (SHAPE, {"position": "bottom left"}, "position"),
        (SHAPE, {"background": "purple"}, "background"),
        (SHAPE, {"style": "pastel"}, "style"),
        (PAIR, {"shape": "heart"}, "pair"),
        (PAIR, {"colour": "green"}, "pair"),
        (PAIR, {"relation": "right of"}, "pair"),
        (PAIR, {"relation": "above"}, "pair"),
        (PAIR, {"other_shape": "circle"}, "pair"),
        (PAIR, {"other_colour": "purple"}, "pair"),
        (ANIMAL, {"animal": "cat"}, "animal"),
        (ANIMAL, {"accessory": None}, "accessory"),
        (ANIMAL, {"accessory": "scarf"}, "accessory"),
        (ANIMAL, {"accessory_colour": "red"}, "accessory colour"),
        (ANIMAL, {"colour": "purple"}, "fur colour"),
        (ANIMAL, {"size": "medium"}, "size"),
        (ANIMAL, {"position": "top"}, "position"),
        (LANDSCAPE, {"time": "day"}, "time"),
        (LANDSCAPE, {"elements": ("sea",)}, "elements"),
        (LANDSCAPE, {"elements": ("sea", "trees", "house")}, "elements"),
        (LANDSCAPE, {"style": "monochrome"}, "style"),
    ],
)
def test_one_wrong_thing_is_seen(scene: Scene, changes: dict[str, object], wrong: str) -> None:
    asked = replace(scene, style="pastel") if wrong == "style" else scene
    painted = replace(scene, style=None) if wrong == "style" else replace(scene, **changes)  # type: ignore[arg-type]
    assert check(draw(asked, antialias=2), asked)[wrong]
    assert not check(draw(painted, antialias=2), asked)[wrong]


def test_an_accessory_that_nobody_asked_for_is_seen() -> None:
    asked = Scene("animal", animal="fox")
    assert check(draw(asked), asked) == {"animal": True, "no accessory": True}
    assert check(draw(replace(asked, accessory="robe")), asked) == {"animal": True, "no accessory": False}


@pytest.mark.parametrize(("scene", "key"), [(SHAPE, "shape"), (PAIR, "pair")])
def test_more_things_than_were_asked_for_are_seen(scene: Scene, key: str) -> None:
    picture = draw(scene, antialias=2)
    ImageDraw.Draw(picture).rectangle((240, 440, 280, 480), fill="yellow")
    assert not check(picture, scene)[key]


def test_a_smear_is_no_shape() -> None:
    picture = draw(replace(SHAPE, shape=None, colour="blue"))
    pen = ImageDraw.Draw(picture)
    for x, y in ((100, 100), (140, 130), (190, 150), (170, 100), (120, 190)):
        pen.ellipse((x, y, x + 60, y + 30), fill="red")
    assert find_objects(pixels_of(picture))[0].shape is None


def test_nothing_is_found_in_a_picture_of_nothing() -> None:
    blank = draw(Scene("shape", shape="circle", colour="white", background="white"))
    assert not any(check(blank, Scene("shape", shape="circle", colour="red", size="small")).values())
    assert find_objects(pixels_of(blank)) == []


def test_a_plain_landscape_is_not_the_empty_prompt_s() -> None:
    empty = Scene("landscape")
    assert check(draw(empty), empty) == {"elements": True}
    assert check(draw(Scene("landscape", time="day")), empty) == {"elements": False}
    assert check(draw(Scene("landscape", time="day")), Scene("landscape", elements=("trees",))) == {"elements": False}


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_are_found_where_they_were_drawn(shape: str) -> None:
    layout = random_layout(random.Random(5))
    scene = Scene("shape", shape=shape, colour="red", background="white")
    found = find_objects(pixels_of(draw(scene, layout=layout, antialias=2)))[0]
    # The box of a crescent or a triangle is not centred on its circle.
    assert found.x == pytest.approx(layout.x, abs=0.4 * layout.radius)
    assert found.y == pytest.approx(layout.y, abs=0.2 * layout.radius)


def test_an_animal_is_looked_for_where_the_layout_says() -> None:
    scene, layout = Scene("animal", animal="panda", accessory="scarf"), Layout(0.3, 0.6, 0.15)
    picture = draw(scene, tuple([0.5] * CODES), layout=layout, antialias=2)
    assert all(check(picture, scene, layout).values())
    assert not all(check(picture, scene).values())


def test_a_blurred_picture_is_less_sharp_and_a_noisy_or_glaring_one_is_not_sharper() -> None:
    picture = draw(Scene("shape", shape="star", colour="red", background="white"), antialias=2)
    assert sharpness(picture, picture) == 1
    assert sharpness(picture.resize((64, 64)).resize((512, 512)), picture) < 0.5
    noise = np.random.default_rng(0).normal(0, 20, (512, 512, 3))
    noisy = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    assert sharpness(noisy, picture) <= 1
    blurred = picture.resize((128, 128)).resize((512, 512))
    noisy = Image.fromarray((np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8))
    assert sharpness(noisy, picture) == pytest.approx(sharpness(blurred, picture), abs=0.05)
