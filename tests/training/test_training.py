"""The training of the demo model: pictures, captions, latents, measures, and stages that resume."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForText2Image
from PIL import Image

from training.__main__ import assemble
from training.batches import Batch, _visible_codes, edit_examples, first_examples, refinement_examples
from training.captions import VOCABULARY, caption_of
from training.detect import find_objects, pixels_of
from training.drawing import draw
from training.latents import LAST, SCALING, SIGMAS, codes_of, image_latents, picture_latents, scene_latents
from training.models import END, TEXT_LEVEL, fit_fp16, make_scheduler, make_tokenizer, make_unet
from training.scenes import (
    BACKGROUND,
    CHOICES,
    CODES,
    ELEMENTS,
    KINDS,
    NO_CODES,
    SHAPES,
    SWITCHES,
    Layout,
    Scene,
    chosen,
    edited,
    layout_of,
    random_codes,
    random_layout,
    random_scene,
    with_choices,
)
from training.sketches import sketch
from training.stage import Stage
from training.text import TextStage, train_text
from training.unet import Wires, _orthogonal, object_weights, sample, train_unet
from training.vae import polish_decoder, train_vae


@pytest.fixture
def rng() -> random.Random:
    return random.Random(5)


def test_no_training_caption_has_a_held_out_combination(rng: random.Random) -> None:
    new = {random_scene(rng, new=True).combination for _ in range(300)}
    trained = {random_scene(rng).combination for _ in range(3000)}
    assert len(new) > 150
    assert not new & trained


def test_an_edit_never_shows_or_names_a_held_out_combination(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[Scene] = []
    drawn: list[Scene] = []

    def caption(scene: Scene, _: random.Random) -> str:
        named.append(scene)
        return ""

    def latents(scene: Scene, *_: object, **__: object) -> torch.Tensor:
        drawn.append(scene)
        return torch.zeros(4, 8, 8)

    monkeypatch.setattr("training.batches.caption_of", caption)
    monkeypatch.setattr("training.batches.scene_latents", latents)
    monkeypatch.setattr("training.batches.sketch_latents", latents)
    edit_examples(rng, 1000, (8, 8))
    assert (len(named), len(drawn)) == (1000, 2000)
    assert not any(scene.is_held_out for scene in named + drawn)


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
    codes = torch.tensor([codes_of(torch.randn(4, 32, 64, generator=generator)) for _ in range(2000)])
    assert codes.shape == (2000, CODES)
    assert torch.allclose(codes.T.cov(), torch.eye(CODES), atol=0.15)


def test_codes_change_what_is_left_open_and_nothing_else() -> None:
    one, other = tuple([-1.0] * CODES), tuple([1.0] * CODES)
    opened = Scene("shape", shape="circle", colour="red")
    named = Scene("shape", shape="circle", colour="red", size="small", position="left", background="blue")
    assert draw(opened, one).tobytes() != draw(opened, other).tobytes()
    assert draw(named, one).tobytes() == draw(named, other).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_every_choice_shows_in_some_drawing(kind: str) -> None:
    scenes = {
        "shape": [Scene("shape", shape="circle", background="white")],
        "pair": [Scene("pair", shape="star", colour="red", relation="above", other_shape="ring", other_colour="blue")],
        "animal": [Scene("animal", animal="fox")],
        "landscape": [Scene("landscape", time="day", elements=elements) for elements in (ELEMENTS, ("trees",))],
    }[kind]
    for attribute, (count, _) in CHOICES[kind].items():
        drawings = set()
        for choice in range(count):
            codes = with_choices(NO_CODES, kind, {attribute: choice})
            assert chosen(kind, attribute, codes) == choice
            drawings.add(tuple(draw(scene, codes).tobytes() for scene in scenes))
        assert len(drawings) == count, attribute


@pytest.mark.parametrize("kind", KINDS)
def test_the_drawings_of_two_noises_differ_visibly(kind: str, rng: random.Random) -> None:
    """Also where the background is named: at least 3 % of the pixels in 95 % of pairs, and 10 % in most."""
    shares = []
    for _ in range(100):
        scene = random_scene(rng, kind)
        if kind != "landscape":
            scene = replace(scene, size=None, position=None, style=None, background=scene.background or "white")
        one, other = (
            np.asarray(draw(scene, random_codes(rng), width=128, height=128, antialias=2), np.int16) for _ in range(2)
        )
        shares.append((np.abs(one - other).max(-1) > 24).mean())
    assert np.median(shares) > 0.1
    assert np.mean(np.array(shares) > 0.03) > 0.9


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sketch_is_rough_and_in_its_place(shape: str, rng: random.Random) -> None:
    scene = Scene("shape", shape=shape, colour="blue", background="white")
    for _ in range(8):
        layout = random_layout(rng)
        rough, clean = sketch(scene, NO_CODES, layout, rng), draw(scene, layout=layout)
        assert rough.tobytes() != clean.tobytes()
        wanted, *got = (find_objects(pixels_of(image))[0] for image in (clean, rough))
        assert max(abs(wanted.x - got[0].x), abs(wanted.y - got[0].y)) < 0.06
        assert got[0].colour == "blue"


def test_sketches_of_one_scene_differ(rng: random.Random) -> None:
    scene, layout = Scene("animal", animal="cat", accessory="hat", background="white"), Layout(0.5, 0.5, 0.3)
    assert len({sketch(scene, NO_CODES, layout, rng).tobytes() for _ in range(10)}) == 10


def test_an_uploaded_picture_under_the_first_noise_changes_the_codes(rng: random.Random) -> None:
    """The target is what the model can read from its input, at image to image with full strength as without."""
    torch.manual_seed(0)
    firsts = first_examples(rng, 60, (16, 16))
    with_picture = [row for row in range(60) if firsts.base[row].any()]
    assert 4 < len(with_picture) < 30
    seen = []
    for row in with_picture:
        alone, together = (codes_of(firsts.noise[row] + share * firsts.base[row] / SIGMAS[LAST]) for share in (0, 1))
        seen.append(np.abs(np.subtract(alone, together)).max())
    assert max(seen) > 1


def test_an_edit_keeps_only_choices_that_its_picture_shows() -> None:
    codes = tuple(float(i) for i in range(1, CODES + 1))
    shape, cat, sea = Scene("shape"), Scene("animal", animal="cat"), Scene("landscape", elements=("sea",))
    assert _visible_codes(cat, cat, codes) == codes
    assert _visible_codes(sea, cat, codes) == _visible_codes(cat, sea, codes) == NO_CODES
    kept = _visible_codes(shape, cat, codes)
    assert (kept[BACKGROUND], kept[SWITCHES]) == (codes[BACKGROUND], (0,) * 6)


def test_latents_are_the_mean_colours_of_8x8_blocks() -> None:
    scene = Scene("shape", shape="square", colour="white", background="black", size="large")
    picture = draw(scene, antialias=2)
    latents = picture_latents(picture)
    assert latents.shape == (4, 64, 64)
    assert latents[0, 0, 0] == pytest.approx((25 / 127.5 - 1) * SCALING)
    assert latents[0, 32, 32] == pytest.approx((245 / 127.5 - 1) * SCALING)
    tensor = torch.from_numpy(np.asarray(picture, np.float32).transpose(2, 0, 1).copy())[None] / 127.5 - 1
    assert torch.allclose(image_latents(tensor)[0, :3] * SCALING, latents[:3], atol=1e-4)
    # To save time, training draws at half the size; the latents must be nearly the same.
    assert (scene_latents(scene)[:3] - latents[:3]).abs().mean() < 0.01 * SCALING


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
        layout = layout_of(Scene("shape", shape="circle", position=position), NO_CODES, width, height)
        side = min(width, height)
        assert layout.radius * side < layout.x * width < width - layout.radius * side
        assert layout.radius * side < layout.y * height < height - layout.radius * side


def test_batches_begin_with_pure_noise_and_go_on_from_own_pictures(rng: random.Random) -> None:
    firsts = first_examples(rng, 6, (16, 24))
    assert firsts.targets.shape == firsts.noise.shape == (6, 4, 16, 24)
    assert set(firsts.timesteps.tolist()) == {LAST}
    refined = refinement_examples(rng, 40, firsts, torch.full((6, 4, 16, 24), 9.0))
    assert len(firsts + refined) == len((firsts + refined).captions) == 46
    assert int(refined.timesteps.max()) < LAST
    again = refinement_examples(rng, 40, refined, torch.zeros(40, 4, 16, 24))
    assert any(t < max(refined.timesteps.tolist()) for t in again.timesteps.tolist())
    for one in [*refined.targets, *again.targets]:
        assert any(torch.equal(one, target) for target in firsts.targets)


def test_a_refinement_is_what_the_sampler_s_next_step_sees(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make_scheduler()
    shape = (40, 4, 8, 8)
    last = Batch(
        torch.randn(shape), torch.randn(shape), torch.full((40,), 749), torch.randn(shape), [str(i) for i in range(40)]
    )
    pictures = torch.randn(shape)
    torch.manual_seed(7)
    refined = refinement_examples(rng, 40, last, pictures)
    torch.manual_seed(7)
    fresh = torch.randn(shape)
    found = {"own": 0, "right": 0}
    for i in (i for i, timestep in enumerate(refined.timesteps.tolist()) if timestep == 499):
        row = int(refined.captions[i])
        sigma = SIGMAS[749]
        noisy = (last.base + sigma * last.noise)[row : row + 1]
        seen = (refined.base + SIGMAS[499] * refined.noise)[i]
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor",
            lambda *_, i=i, **__: fresh[i : i + 1],
        )
        for name, clean in (("own", pictures[row]), ("right", last.targets[row])):
            scheduler.set_timesteps(4)
            velocity = (noisy / (sigma**2 + 1) - clean) * (sigma**2 + 1).sqrt() / sigma
            stepped = scheduler.step(velocity, scheduler.timesteps[1], noisy).prev_sample[0]
            found[name] += torch.allclose(stepped, seen, atol=1e-3)
    assert found["own"] > found["right"] > 0
    assert sum(found.values()) == refined.timesteps.tolist().count(499)


def test_an_object_too_many_weighs_as_much_as_one_that_lacks() -> None:
    plain = torch.zeros(1, 4, 16, 16)
    with_object = plain.clone()
    with_object[:, :3, 6:10, 6:10] = 1.0
    for wanted, drawn in ((plain, with_object), (with_object, plain)):
        weights = object_weights(wanted, drawn)[0, 0]
        assert weights[8, 8] > 4 * weights[1, 1]
    assert object_weights(plain, plain).std() == 0


def test_orthogonal_updates_have_singular_values_near_one() -> None:
    for shape in ((16, 40), (40, 16)):
        values = torch.linalg.svdvals(_orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert values.min() > 0.5
        assert values.max() < 1.5


@pytest.mark.parametrize("killed", [False, True])
def test_a_stopped_or_killed_stage_goes_on_where_it_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, killed: bool
) -> None:
    def run(*, until: int | None) -> list[int]:
        module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(module.weight)
        stage = Stage(tmp_path, "toy", 220, {"module": module})
        made = []
        for step, _, losses in stage.steps():
            with torch.no_grad():
                module.weight += 1
            losses["loss"] = float(step + 1)
            made.append(step)
            monkeypatch.setattr("training.stage._SAVE_S", 0 if len(made) == 70 else 1000)
            if len(made) == until:
                if killed:
                    break
                monkeypatch.setattr("training.stage.STAGE_S", 0)
        assert module.weight.item() == made[-1] + 1
        assert stage.is_done == (made[-1] == 219)
        return made

    first = 70 if killed else 120
    assert run(until=120) == list(range(120))
    monkeypatch.setattr("training.stage.STAGE_S", 1000)
    assert run(until=None) == list(range(first, 220))
    assert Stage(tmp_path, "toy", 220, {}).is_done
    steps = [int(line.split(",")[0]) for line in (tmp_path / "toy.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps))
    assert (tmp_path / "toy.png").stat().st_size > 1000


@pytest.mark.long
@pytest.mark.only_long
@pytest.mark.timeout(300)  # slow on a busy machine
def test_the_stages_make_a_pipeline_that_computes_what_they_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in ("text.STEPS", "vae.STEPS", "vae.POLISH_STEPS", "unet.STEPS"):
        monkeypatch.setattr(f"training.{steps}", 2)
    for looking in ("unet", "vae"):
        monkeypatch.setattr(f"training.{looking}.LOOK_AT", ("a cat", "a circle"))
    monkeypatch.setattr("training.unet._BATCH", 2)
    monkeypatch.setattr("training.stage._LOG_STEPS", 1)
    # After two steps the activations are as small as the norms' epsilon, too small to scale down.
    monkeypatch.setattr("training.models._FP16_SCALE", 1)
    work, model, cpu = tmp_path / "work", tmp_path / "model", torch.device("cpu")
    assert train_text(work)
    assert train_vae(work, cpu)
    assert train_unet(work, cpu)
    assert polish_decoder(work, cpu)
    for name in ("vae-sheet", "unet-sheet", "polish-sheet", "unet"):
        with Image.open(work / f"{name}.png") as picture:
            assert picture.width > 200
    assemble(work, model)
    pipeline = AutoPipelineForText2Image.from_pretrained(model, variant="fp16", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    text = TextStage(work)
    hidden, _, pooled, _ = pipeline.encode_prompt("a red circle", do_classifier_free_guidance=False)
    for mine, theirs in zip(text(["a red circle"]), (hidden, pooled), strict=True):
        assert torch.allclose(mine, theirs, atol=0.02)
    unet = make_unet()
    unet.load_state_dict(torch.load(work / "unet.pt")["average"])
    mine = sample(unet, text, ("a red circle",), steps=3, seed=4, size=(24, 32))
    theirs = pipeline(
        "a red circle",
        num_inference_steps=3,
        guidance_scale=0.0,
        height=192,
        width=256,
        generator=torch.Generator().manual_seed(4),
        output_type="latent",
    ).images
    assert torch.allclose(mine, theirs, atol=0.02)


@torch.no_grad()
def test_a_unet_that_fits_fp16_computes_what_it_did_with_smaller_last_levels() -> None:
    torch.manual_seed(0)
    unet = make_unet().eval()
    upmost = unet.up_blocks[-2:]
    samplers = [unet.up_blocks[i].upsamplers[0].conv for i in (-3, -2)]
    for convolution in (*samplers, *(resnet.conv2 for block in upmost for resnet in block.resnets)):
        convolution.weight.mul_(1000)  # as after training; else the variance is as small as the norm's epsilon
    largest: list[float] = []
    for block in upmost:
        block.register_forward_hook(lambda _module, _inputs, output: largest.append(output.abs().max().item()))
    sample, prompt = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 192)
    conditions = {"text_embeds": torch.randn(1, 192), "time_ids": torch.full((1, 6), 128.0)}
    before = unet(sample, 500, prompt, added_cond_kwargs=conditions).sample
    fit_fp16(unet)
    after = unet(sample, 500, prompt, added_cond_kwargs=conditions).sample
    torch.testing.assert_close(after, before, rtol=0.02, atol=0.02)
    assert largest[2:] == pytest.approx([one / 64 for one in largest[:2]], rel=0.05)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (32, 32), (96, 96), (64, 96), (40, 56)])
def test_the_wires_bring_codes_and_the_signs_of_switches_to_each_cell_of_the_level_with_the_text(
    size: tuple[int, int],
) -> None:
    unet = make_unet()
    wires = Wires(unet)
    for parameter in unet.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))  # as training would
    wires.mend()
    arrived: list[torch.Tensor] = []
    unet.up_blocks[-TEXT_LEVEL - 2].upsamplers[0].register_forward_hook(lambda _, __, output: arrived.append(output))
    noise = torch.randn(2, 4, *size)
    conditions = {"text_embeds": torch.randn(2, 192), "time_ids": torch.full((2, 6), 512.0)}
    unet(noise, LAST, torch.randn(2, 77, 192), added_cond_kwargs=conditions)
    codes = torch.tensor([codes_of(one) for one in noise])[:, :, None, None]
    codes[:, SWITCHES] = codes[:, SWITCHES].sign()
    ratio = arrived[0][:, :CODES] / codes
    for part in (ratio[:, : SWITCHES.start], ratio[:, SWITCHES]):
        assert torch.allclose(part, part.flatten()[0].expand_as(part), rtol=1e-3)
