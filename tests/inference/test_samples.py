import io

import pytest
from fastapi import UploadFile

from app.api.native.routes import Img2ImgForm
from app.inference.request_validation import Txt2ImgRequest
from app.inference.samples import sample_pictures
from app.pipelines.base import Img2ImgParams, Mode


@pytest.mark.parametrize("mode", Mode)
def test_samples_are_of_one_kind_and_no_two_alike(mode: Mode) -> None:
    pictures = sample_pictures(mode, (96, 64), 4)
    assert {(params.mode, params.width, params.height) for params in pictures} == {(mode, 96, 64)}
    assert len({params.batch_key for params in pictures}) == 1
    assert len({params.prompt for params in pictures}) == len({params.seed for params in pictures}) == 4


def test_samples_are_what_a_request_asks_for_that_names_only_a_prompt() -> None:
    (from_text,) = sample_pictures(Mode.TXT2IMG, (512, 512), 1)
    assert from_text.batch_key == Txt2ImgRequest(prompt="a cat").to_params()[0].batch_key
    (from_picture,) = sample_pictures(Mode.IMG2IMG, (512, 512), 1)
    assert isinstance(from_picture, Img2ImgParams)
    form = Img2ImgForm(prompt="a cat", image=UploadFile(io.BytesIO()))
    assert from_picture.batch_key == form.to_params(from_picture.image)[0].batch_key
