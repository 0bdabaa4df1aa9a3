from collections.abc import Sequence
from functools import partial

import pytest

from app.inference.samples import sample_pictures
from app.modes.catalogue import MODES
from app.modes.img2img import Img2ImgRequest
from app.modes.inpaint import InpaintRequest
from app.modes.txt2img import Txt2ImgRequest
from app.pipelines.base import GenerationParams, Mode
from app.settings import Settings
from tests.conftest import png


@pytest.mark.parametrize("mode", Mode)
def test_samples_are_of_one_kind_and_no_two_alike(mode: Mode) -> None:
    pictures = sample_pictures(mode, (96, 64), 4)
    assert {(params.mode, params.width, params.height) for params in pictures} == {(mode, 96, 64)}
    assert len({params.batch_key for params in pictures}) == 1
    assert len({params.prompt for params in pictures}) == len({params.seed for params in pictures}) == 4


@pytest.mark.parametrize("mode", Mode)
def test_samples_are_what_a_request_asks_for_that_names_only_a_prompt_and_its_files(mode: Mode) -> None:
    (sample,) = sample_pictures(mode, (512, 512), 1)
    files = {name: partial(bytes, png((512, 512), "white")) for name in ("image", "mask")}
    asked: Sequence[GenerationParams]
    if mode is Mode.TXT2IMG:
        asked = Txt2ImgRequest(prompt="a cat").to_params()
    else:
        request = {Mode.IMG2IMG: Img2ImgRequest, Mode.INPAINT: InpaintRequest}[mode](prompt="a cat")
        asked = request.to_params(files, Settings())
    assert sample.batch_key == asked[0].batch_key


def test_every_mode_is_in_the_catalogue_under_its_own_name() -> None:
    assert {mode: params.mode for mode, params in MODES.items()} == {mode: mode for mode in Mode}
