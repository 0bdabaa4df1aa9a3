from pathlib import Path

import pytest
from PIL import Image

from app.inference.samples import sample_pictures, warm_up_batches
from app.modes.img2img import Img2ImgParams
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import Mode
from app.pipelines.sdxl_turbo import load_sdxl_turbo
from app.pipelines.work import StageTimes
from app.settings import Settings

STAGES_S = {"text": 1.0, "unet": 8.0, "vae decode": 9.0}


def picture(width: int = 512, height: int = 512, steps: int = 1) -> Txt2ImgParams:
    return Txt2ImgParams(prompt="a cat", seed=0, num_inference_steps=steps, width=width, height=height)


def from_picture(side: int = 512, steps: int = 2, strength: float = 0.5) -> Img2ImgParams:
    image = Image.new("RGB", (side, side))
    return Img2ImgParams(prompt="a cat", seed=0, num_inference_steps=steps, strength=strength, image=image)


def test_before_anything_is_measured_work_is_sdxl_turbo_s_flops() -> None:
    work = StageTimes().work
    assert work(picture()) == pytest.approx(4.21)
    # Counted by FlopCounterMode at 1024x1024: UNet 6.76, VAE decode 10.47, text encoders 0.11 TFLOP.
    assert work(picture(1024, 1024)) == pytest.approx(17.34, rel=0.02)
    assert work(picture(1024, 1024, steps=4)) == pytest.approx(37.62, rel=0.02)


def test_work_follows_from_the_seconds_of_the_stages_of_one_picture() -> None:
    times = StageTimes()
    times.learn(picture(), STAGES_S)
    times.settle()
    assert times.work(picture()) == pytest.approx(18)
    assert times.work(picture(steps=4)) == pytest.approx(1 + 4 * 8 + 9)
    assert times.work(from_picture()) == pytest.approx(18 + 9 * 1.12 / 2.51), "the encoder has the decoder's pace"
    assert times.work(from_picture(steps=4, strength=0.5)) == pytest.approx(26 + 9 * 1.12 / 2.51)
    assert times.work(picture(512, 256)) == pytest.approx(1 + 17 / 2, rel=0.01)


def test_stages_that_were_measured_at_another_size_and_with_more_steps_are_scaled() -> None:
    times = StageTimes()
    times.learn(from_picture(256, steps=4, strength=1), {"text": 1, "unet": 8, "vae encode": 1, "vae decode": 2})
    times.settle()
    assert times.work(picture()) == pytest.approx(1 + 8 + 8, rel=0.02)


def test_while_a_stage_is_not_measured_no_other_counts() -> None:
    times = StageTimes()
    times.learn(picture(), {"text": 1.0, "vae decode": 9.0})
    times.settle()
    assert times.work(picture()) == pytest.approx(4.21)


def test_the_loader_measures_every_stage_while_it_warms_up_and_none_later(tiny_folder: Path) -> None:
    loaded = load_sdxl_turbo(tiny_folder, Settings(device="cpu"), model="tiny")
    before = loaded.work(picture())
    batches = list(warm_up_batches(loaded, [(64, 64)]))
    modes = [(batch[0].mode, len(batch)) for batch in batches]
    assert modes == [*((mode, 1) for mode in Mode), (Mode.TXT2IMG, 1)], "the last is measured"
    assert batches[-1][0].prompt != batches[0][0].prompt, "a prompt that comes again is not encoded again"
    for batch in batches:
        loaded.by_mode[batch[0].mode](batch)
    assert loaded.work(picture()) == before == pytest.approx(4.21)
    loaded.on_warm()
    measured = loaded.work(picture())
    assert 0 < measured != before
    loaded.by_mode[Mode.TXT2IMG](sample_pictures(Mode.TXT2IMG, (64, 64), 1))
    assert loaded.work(picture()) == measured
