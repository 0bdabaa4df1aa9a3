import pytest
from PIL import Image

from app.inference.cost import CostModel
from app.pipelines.base import GenerationParams, Img2ImgParams, Txt2ImgParams

SIZE = (64, 64)


def picture(side: int = 64, steps: int = 1) -> Txt2ImgParams:
    return Txt2ImgParams(prompt="a cat", seed=0, num_inference_steps=steps, width=side, height=side)


def pixels_times_steps(params: GenerationParams) -> float:
    return params.width * params.height * params.effective_steps / 64**2


@pytest.fixture
def costs() -> CostModel:
    """A device that takes 0.5 s for 64x64 in one step, and in proportion for others."""
    model = CostModel(pixels_times_steps, size=SIZE)
    model.calibrate([(picture(), 0.5)])
    return model


def test_what_was_measured_at_one_size_tells_of_others(costs: CostModel) -> None:
    assert costs.expected_s(costs.work([picture(128, steps=4)])) == pytest.approx(8)
    assert costs.expected_s(costs.work([picture()] * 3)) == pytest.approx(1.5)
    assert costs.least_s(costs.work([picture(128)])) == pytest.approx(2)


def test_a_large_request_changes_nothing_that_is_expected_of_small_ones(costs: CostModel) -> None:
    for _ in range(3):
        costs.learn([[picture()]], 0.5)
    costs.learn([[picture(256, steps=4)]], 32.0)
    assert costs.usual_work == 1
    assert costs.expected_s(costs.work([picture()])) == pytest.approx(0.5)
    assert costs.hang_limit_s([picture()], hang_limit_s=6) == 6


def test_calls_that_become_slower_are_expected_to_be_slow(costs: CostModel) -> None:
    for _ in range(20):
        costs.learn([[picture()]], 2.0)
    assert costs.expected_s(1) == pytest.approx(2)
    assert costs.least_s(1) == pytest.approx(0.5), "it could be done in that time"
    costs.learn([[picture()]], 0.3)
    assert costs.least_s(1) == pytest.approx(0.3)


def test_what_a_batch_gains_is_expected_of_those_who_wait_and_not_of_one_alone(costs: CostModel) -> None:
    costs.learn([[picture()]] * 8, 1.0)
    assert costs.expected_s(8) == pytest.approx(1)
    assert costs.least_s(1) == pytest.approx(0.5)


def test_the_hang_limit_grows_with_pixels_steps_and_pictures(costs: CostModel) -> None:
    def limit_s(*request: GenerationParams) -> float:
        return costs.hang_limit_s(request, hang_limit_s=6)

    start = Image.new("RGB", (128, 64))
    assert limit_s(picture()) == 6
    assert limit_s(picture(128)) == 24
    assert limit_s(picture(128, steps=4)) == 96
    assert limit_s(picture(), picture()) == 12
    assert limit_s(Img2ImgParams(prompt="", seed=0, num_inference_steps=4, strength=0.5, image=start)) == 24
    assert costs.hang_limit_s([picture()], hang_limit_s=0.1) == pytest.approx(4), "eight times what is expected"


def test_a_smaller_picture_than_the_warm_up_s_may_take_as_long_as_that() -> None:
    costs = CostModel(pixels_times_steps, size=(512, 512))
    assert costs.hang_limit_s([picture()], hang_limit_s=6) == 6
    assert costs.hang_limit_s([picture(512)], hang_limit_s=6) == 6


def test_before_anything_is_measured_nothing_is_expected() -> None:
    costs = CostModel(pixels_times_steps)
    assert (costs.expected_s(1), costs.least_s(1)) == (0, 0)


def test_the_last_call_of_the_warm_up_is_what_is_expected_as_first_ones_are_slower() -> None:
    costs = CostModel(pixels_times_steps, size=SIZE)
    costs.calibrate([(picture(), 9.0), (picture(128), 2.0), (picture(), 0.6)])
    assert costs.expected_s(1) == pytest.approx(0.6)
    assert costs.least_s(1) == pytest.approx(0.5)
