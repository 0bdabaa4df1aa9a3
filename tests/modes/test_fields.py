import io
from typing import Any

import numpy as np
import pytest
from fastapi import UploadFile
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.api.native.routes import Img2ImgForm
from app.images.encoding import MediaType, encode_image
from app.modes.fields import MAX_SEED, smallest_strength
from app.modes.txt2img import Txt2ImgRequest
from app.pipelines.base import effective_steps
from app.settings import Settings

prompts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=100)
sides = st.integers(8, 256).map(lambda eighth: eighth * 8)
steps = st.integers(1, 4)
strengths = st.floats(0, 1, exclude_min=True)
anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers(), max_size=2)
)


def form(**fields: Any) -> Img2ImgForm:
    return Img2ImgForm(image=UploadFile(io.BytesIO(b"")), **fields)


@given(
    prompt=prompts,
    seed=st.integers(0, MAX_SEED - 3),
    num_inference_steps=steps,
    width=sides,
    height=sides,
    num_images=st.integers(1, 4),
)
def test_everything_in_bounds_is_taken_and_passed_on_unchanged(**fields: Any) -> None:
    params = Txt2ImgRequest(**fields).to_params()
    assert [one.seed for one in params] == list(range(fields["seed"], fields["seed"] + fields["num_images"]))
    for one in params:
        for name in ("prompt", "num_inference_steps", "width", "height"):
            assert getattr(one, name) == fields[name]


@given(num_images=st.integers(1, 4))
def test_a_drawn_seed_leaves_room_for_every_picture(num_images: int) -> None:
    params = Txt2ImgRequest(prompt="", num_images=num_images).to_params()
    assert 0 <= params[0].seed <= params[-1].seed <= MAX_SEED


@given(num_images=st.integers(1, 4), below=st.integers(0, 4))
def test_seeds_end_at_the_largest_there_is(num_images: int, below: int) -> None:
    seed = MAX_SEED - below
    if seed + num_images - 1 <= MAX_SEED:
        assert Txt2ImgRequest(prompt="", seed=seed, num_images=num_images).to_params()[-1].seed <= MAX_SEED
    else:
        with pytest.raises(ValidationError, match="must not pass 4294967295"):
            Txt2ImgRequest(prompt="", seed=seed, num_images=num_images)


@given(num_inference_steps=steps, strength=strengths)
def test_image_to_image_is_taken_exactly_when_a_step_runs(num_inference_steps: int, strength: float) -> None:
    if int(num_inference_steps * strength) >= 1:
        params = form(prompt="", num_inference_steps=num_inference_steps, strength=strength).to_params(
            {"image": lambda: encode_image(np.zeros((64, 64, 3), np.uint8), MediaType.PNG)}, Settings()
        )
        assert 1 <= params[0].effective_steps <= num_inference_steps
    else:
        with pytest.raises(ValidationError, match="must be at least 1"):
            form(prompt="", num_inference_steps=num_inference_steps, strength=strength)


@given(steps)
def test_the_smallest_strength_is_the_smallest_of_four_decimals(num_inference_steps: int) -> None:
    smallest = smallest_strength(num_inference_steps)
    assert effective_steps(num_inference_steps, smallest) == 1
    assert effective_steps(num_inference_steps, smallest - 0.0001) == 0


@given(
    st.fixed_dictionaries(
        {"prompt": prompts | anything},
        optional=dict.fromkeys(["seed", "num_inference_steps", "width", "height", "num_images", "other"], anything),
    )
)
def test_whatever_is_sent_is_taken_or_refused_and_never_corrected(fields: dict[str, Any]) -> None:
    try:
        taken = Txt2ImgRequest(**fields)
    except ValidationError:
        return
    for name, value in fields.items():
        assert getattr(taken, name) == value
        assert type(getattr(taken, name)) is (int if isinstance(value, float) else type(value))  # 512.0 is 512 in JSON


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\x7f", "\ud800"])
def test_characters_that_no_prompt_needs_are_refused(character: str) -> None:
    with pytest.raises(ValidationError):
        Txt2ImgRequest(prompt=f"a{character}b")


@pytest.mark.parametrize("prompt", ["a\nb", "a\tb", "一只猫", "🐈", "café", ""])
def test_every_language_s_prompts_are_taken(prompt: str) -> None:
    assert Txt2ImgRequest(prompt=prompt).prompt == prompt
