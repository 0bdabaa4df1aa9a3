from functools import partial

import pytest

from app.inference.samples import sample_pictures
from app.modes.catalogue import MODES
from app.modes.img2img import Img2ImgRequest
from app.modes.txt2img import Txt2ImgRequest
from app.pipelines.base import Mode
from app.settings import Settings
from tests.conftest import png


@pytest.mark.parametrize("mode", Mode)
def test_samples_are_of_one_kind_and_no_two_alike(mode: Mode) -> None:
    pictures = sample_pictures(mode, (96, 64), 4)
    assert {(params.mode, params.width, params.height) for params in pictures} == {(mode, 96, 64)}
    assert len({params.batch_key for params in pictures}) == 1
    assert len({params.prompt for params in pictures}) == len({params.seed for params in pictures}) == 4


def test_samples_are_what_a_request_asks_for_that_names_only_a_prompt_and_a_picture() -> None:
    files = {"image": partial(bytes, png((512, 512), "white"))}
    (from_text,) = sample_pictures(Mode.TXT2IMG, (512, 512), 1)
    assert from_text.batch_key == Txt2ImgRequest(prompt="a cat").to_params()[0].batch_key
    (from_picture,) = sample_pictures(Mode.IMG2IMG, (512, 512), 1)
    assert from_picture.batch_key == Img2ImgRequest(prompt="a cat").to_params(files, Settings())[0].batch_key


@pytest.mark.parametrize("mode", Mode)
def test_a_sample_takes_one_step_so_that_a_start_stays_short(mode: Mode) -> None:
    (sample,) = sample_pictures(mode, (512, 512), 1)
    assert sample.effective_steps == 1


def test_every_mode_is_in_the_catalogue_under_its_own_name() -> None:
    assert {mode: params.mode for mode, params in MODES.items()} == {mode: mode for mode in Mode}
