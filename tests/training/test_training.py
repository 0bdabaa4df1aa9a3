"""The recipe of the demo model: its pictures, captions, latents and measures, and that a stopped stage goes on."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.batches import edit_examples, first_examples, refinement_examples
from training.captions import VOCABULARY, caption_of
from training.detect import check, find_objects, pixels_of, sharpness
from training.latents import LAST, SIGMAS, codes_of, image_latents, picture_latents, scene_latents
from training.models import END, make_scheduler, make_tokenizer
from training.scenes import (
    CODES,
    KINDS,
    SHAPES,
    Layout,
    Scene,
    draw,
    edited,
    layout_of,
    random_layout,
    random_scene,
)
from training.stage import Stage
from training.unet import _orthogonal


@pytest.fixture
def rng() -> random.Random:
    return random.Random(5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_detector_finds_everything_in_ideal_pictures(rng: random.Random, kind: str) -> None:
    for held_out in (False, True):
        for _ in range(25):
            scene = random_scene(rng, kind, held_out=held_out)
            codes = tuple(rng.gauss(0, 1) for _ in range(CODES))
            results = check(draw(scene, codes, antialias=2), scene)
            assert all(results.values()), (scene, results)


def test_the_detector_finds_what_is_wrong() -> None:
    scene = Scene("shape", shape="circle", colour="red", size="small", position="left", background="blue")
    other = Scene("shape", shape="square", colour="green", size="large", position="top", background="white")
    assert check(draw(other), scene) == dict.fromkeys(("background", "shape", "colour", "position", "size"), False)
    pair = Scene(
        "pair",
        shape="star",
        colour="red",
        relation="left of",
        other_shape="heart",
        other_colour="blue",
        background="white",
    )
    turned = Scene(
        "pair",
        shape="star",
        colour="red",
        relation="right of",
        other_shape="heart",
        other_colour="blue",
        background="white",
    )
    assert check(draw(turned), pair) == {"background": True, "pair": False}
    fox = Scene("animal", animal="fox", accessory="hat")
    assert check(draw(Scene("animal", animal="panda", accessory="robe")), fox) == {"animal": False, "accessory": False}
    sea = Scene("landscape", time="night", elements=("sea",))
    assert check(draw(Scene("landscape", time="day", elements=("house",))), sea) == {"time": False, "elements": False}


def test_the_detector_says_no_to_a_picture_of_nothing() -> None:
    blank = draw(Scene("shape", shape="circle", colour="white", background="white"))
    assert not any(check(blank, Scene("shape", shape="circle", colour="red", size="small")).values())
    assert find_objects(pixels_of(blank)) == []


def test_a_blurred_picture_is_less_sharp_and_a_noisy_one_is_not_sharper() -> None:
    picture = draw(Scene("shape", shape="star", colour="red", background="white"), antialias=2)
    assert sharpness(picture, picture) == 1
    assert sharpness(picture.resize((64, 64)).resize((512, 512)), picture) < 0.5
    noise = np.random.default_rng(0).normal(0, 20, (512, 512, 3))
    noisy = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    assert sharpness(noisy, picture) < 1.01


def test_no_training_caption_has_a_held_out_combination(rng: random.Random) -> None:
    held_out = {random_scene(rng, held_out=True).combination for _ in range(300)}
    trained = {random_scene(rng).combination for _ in range(3000)}
    assert len(held_out) > 150
    assert not held_out & trained


def test_an_edit_never_asks_for_a_held_out_combination(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Scene] = []

    def caption(scene: Scene, _: random.Random) -> str:
        asked.append(scene)
        return ""

    monkeypatch.setattr("training.batches.caption_of", caption)
    edit_examples(rng, 200, (8, 8))
    assert len(asked) == 200
    assert not any(scene.is_held_out for scene in asked)


def test_captions_name_what_the_scene_names_in_known_words(rng: random.Random) -> None:
    scene = Scene("shape", shape="heart", colour="blue", background="green")
    captions = {caption_of(scene, rng) for _ in range(100)}
    assert len(captions) > 50
    for caption in captions:
        assert {"heart", "blue", "green"} <= set(caption.lower().replace(",", " ").replace(".", " ").split())


def test_every_word_of_the_captions_is_one_token_and_any_text_can_be_written(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, pad=END)
    words = [word for word in VOCABULARY if word.isalpha()]
    assert len(words) > 200
    assert [word for word in words if len(tokenizer(word).input_ids) != 3] == []
    for text in ("zeppelin", "ein großes Haus", "浣熊", "🦝"):
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids[1:-1]


def test_the_codes_are_independent_standard_normal_numbers() -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.tensor([codes_of(torch.randn(4, 32, 48, generator=generator)) for _ in range(2000)])
    assert codes.shape == (2000, CODES)
    assert torch.allclose(codes.T.cov(), torch.eye(CODES), atol=0.15)


def test_codes_change_what_is_left_open_and_nothing_else() -> None:
    one, other = tuple([-1.0] * CODES), tuple([1.0] * CODES)
    opened = Scene("shape", shape="circle", colour="red")
    named = Scene("shape", shape="circle", colour="red", background="blue")
    assert draw(opened, one).tobytes() != draw(opened, other).tobytes()
    assert draw(named, one).tobytes() == draw(named, other).tobytes()


def test_latents_are_the_mean_colours_of_8x8_blocks() -> None:
    scene = Scene("shape", shape="square", colour="white", background="black", size="large")
    picture = draw(scene, antialias=2)
    latents = picture_latents(picture)
    assert latents.shape == (4, 64, 64)
    assert latents[0, 0, 0] == pytest.approx((25 / 127.5 - 1) * 1.5)
    assert latents[0, 32, 32] == pytest.approx((245 / 127.5 - 1) * 1.5)
    tensor = torch.from_numpy(np.asarray(picture, np.float32).transpose(2, 0, 1).copy())[None] / 127.5 - 1
    assert torch.allclose(image_latents(tensor)[0, :3] * 1.5, latents[:3], atol=1e-4)
    # Drawn at half the size they are nearly the same: the training's shortcut.
    assert (scene_latents(scene)[:3] - latents[:3]).abs().mean() < 0.02


def test_the_sigmas_are_the_scheduler_s() -> None:
    scheduler = make_scheduler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert torch.allclose(scheduler.sigmas[:4], SIGMAS[[999, 749, 499, 249]], rtol=1e-4)


def test_an_edit_keeps_what_the_caption_does_not_name() -> None:
    source = Scene("shape", shape="star", colour="red", background="white", size="small", position="left")
    assert edited(source, Scene("shape", background="black")) == Scene(
        "shape", shape="star", colour="red", background="black", size="small", position="left"
    )
    assert edited(source, Scene("animal", animal="cat")) == Scene(
        "animal", animal="cat", background="white", size="small", position="left"
    )
    landscape = Scene("landscape", time="night", elements=("sea",))
    assert edited(source, landscape) == landscape


def test_layouts_fit_every_format() -> None:
    for position, (width, height) in itertools.product(
        ("top left", "bottom right"), ((512, 512), (512, 768), (768, 512))
    ):
        layout = layout_of(Scene("shape", shape="circle", position=position), width, height)
        side = min(width, height)
        assert layout.radius * side < layout.x * width < width - layout.radius * side
        assert layout.radius * side < layout.y * height < height - layout.radius * side


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_are_drawn_where_the_layout_says(rng: random.Random, shape: str) -> None:
    layout = random_layout(rng)
    picture = draw(Scene("shape", shape=shape, colour="red", background="white"), layout=layout, antialias=2)
    found = find_objects(pixels_of(picture))[0]
    # The box of a crescent or a triangle is not centred on its circle.
    assert Layout(found.x, found.y, layout.radius).x == pytest.approx(layout.x, abs=0.4 * layout.radius)
    assert found.y == pytest.approx(layout.y, abs=0.2 * layout.radius)


def test_batches_begin_with_pure_noise_and_go_on_from_own_pictures(rng: random.Random) -> None:
    firsts = first_examples(rng, 6, (16, 24))
    assert firsts.targets.shape == firsts.noise.shape == (6, 4, 16, 24)
    assert set(firsts.timesteps.tolist()) == {LAST}
    pictures = torch.full((6, 4, 16, 24), 9.0)
    batch = firsts + refinement_examples(rng, 40, firsts, pictures)
    assert len(batch) == len(batch.captions) == 46
    own = (batch.base[6:] == 9).all(1).all(1).all(1)
    assert 15 < own.sum() < 40
    assert int(batch.timesteps[6:].max()) < LAST
    for row in range(6, 46):
        assert any(torch.equal(batch.targets[row], target) for target in firsts.targets)


def test_orthogonal_updates_have_singular_values_near_one() -> None:
    for shape in ((16, 40), (40, 16)):
        values = torch.linalg.svdvals(_orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert values.min() > 0.5
        assert values.max() < 1.5


def test_a_stopped_stage_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*, stop_after: int | None) -> list[int]:
        module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(module.weight)
        stage = Stage(tmp_path, "toy", 120, {"module": module})
        made = []
        for step, _, losses in stage.steps():
            with torch.no_grad():
                module.weight += 1
            losses["loss"] = float(step + 1)
            made.append(step)
            if len(made) == stop_after:
                monkeypatch.setattr("training.stage.STAGE_S", 0)
        assert module.weight.item() == made[-1] + 1
        assert stage.is_done == (made[-1] == 119)
        return made

    assert run(stop_after=70) == list(range(70))
    monkeypatch.setattr("training.stage.STAGE_S", 1000)
    assert run(stop_after=None) == list(range(70, 120))
    assert Stage(tmp_path, "toy", 120, {}).is_done
    assert (tmp_path / "toy.png").stat().st_size > 1000
