import time

import pytest
from PIL import Image

from app.inference.cost import CostModel
from app.modes.img2img import Img2ImgParams
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import GenerationParams


def picture(side: int = 512, steps: int = 1) -> Txt2ImgParams:
    return Txt2ImgParams(prompt="a cat", seed=0, num_inference_steps=steps, width=side, height=side)


def pixels_times_steps(params: GenerationParams) -> float:
    return params.width * params.height * params.effective_steps / 512**2


def calibrated(*, reference_s: float = 0.5, side: int = 512, first_call_is_slow: bool = False) -> CostModel:
    model = CostModel(pixels_times_steps, size=(side, side), first_call_is_slow=first_call_is_slow)
    model.calibrate([(picture(side), reference_s)])
    return model


@pytest.fixture
def costs() -> CostModel:
    """A device that took 0.5 s for 512x512 in one step while it warmed up."""
    return calibrated()


def test_a_kind_that_was_not_measured_is_expected_to_take_what_its_work_says(costs: CostModel) -> None:
    assert costs.expected_s([picture(1024, steps=4)]) == pytest.approx(8)
    assert costs.expected_s([picture()] * 3) == pytest.approx(1.5)


def test_a_kind_that_was_measured_is_expected_to_take_that_and_no_other_kind_is(costs: CostModel) -> None:
    for _ in range(3):
        costs.learn([picture(64)], 0.3)  # 38 times its share of the pixels
        costs.learn([picture(1024, steps=4)], 5.0)
    assert costs.expected_s([picture(64)] * 2) == pytest.approx(0.6)
    assert costs.expected_s([picture(1024, steps=4)]) == pytest.approx(5)
    assert costs.expected_s([picture()]) == pytest.approx(0.5)
    assert costs.expected_s([picture(768)]) == pytest.approx(1.125)


def test_a_first_call_that_may_compile_is_not_measured_where_the_loader_says_so() -> None:
    costs = calibrated(first_call_is_slow=True)
    costs.learn([picture(64)], 30.0)
    assert costs.expected_s([picture(64)]) == pytest.approx(0.5 / 64)
    assert costs.hang_limit_s([picture()], hang_limit_s=6) == 6
    costs.learn([picture(64)], 0.02)
    assert costs.expected_s([picture(64)]) == pytest.approx(0.02)
    costs.learn([picture()], 0.6)  # warmed up, and so not the first
    assert costs.expected_s([picture()]) == pytest.approx(0.6)


def test_a_first_call_with_several_pictures_may_compute_them_twice_and_is_not_measured(costs: CostModel) -> None:
    costs.learn([picture()] * 2, 2.0)
    assert costs.expected_s([picture()]) == pytest.approx(0.5)
    costs.learn([picture()] * 2, 0.6)
    assert costs.expected_s([picture()]) == pytest.approx(0.3)
    assert costs.least_s([picture()]) == pytest.approx(0.3)


def test_one_large_request_does_not_move_what_an_unread_request_is_taken_for(costs: CostModel) -> None:
    costs.learn([picture(1024, steps=4)], 8.0)
    costs.learn_requests([[picture(1024, steps=4)]])
    assert costs.usual_s == pytest.approx(0.5)
    for _ in range(3):
        costs.learn_requests([[picture(1024, steps=4)]])
    assert costs.usual_s == pytest.approx(8)


def test_what_a_batch_gains_is_expected_of_those_who_wait_and_shortens_no_hang_limit(costs: CostModel) -> None:
    for _ in range(50):
        costs.learn([picture()] * 16, 0.5)
    assert costs.expected_s([picture()]) == pytest.approx(0.5 / 16)
    assert costs.hang_limit_s([picture()], hang_limit_s=0.1) == pytest.approx(4), "eight times a picture alone"


def test_calls_that_become_slower_are_expected_to_be_slow_and_may_take_longer(costs: CostModel) -> None:
    for _ in range(30):
        costs.learn([picture()], 2.0)
    assert costs.expected_s([picture()]) == pytest.approx(2)
    assert costs.hang_limit_s([picture()], hang_limit_s=6) == pytest.approx(16)
    assert costs.least_s([picture()]) == pytest.approx(0.5), "it could be done in that time"


def test_an_unmeasured_kind_takes_a_part_of_its_share_at_the_least(costs: CostModel) -> None:
    assert costs.least_s([picture()] * 2) == pytest.approx(1)
    assert costs.least_s([picture(1024, steps=4)]) == pytest.approx(0.7 * 8)
    costs.learn([picture(1024, steps=4)], 7.0)
    costs.learn([picture(1024, steps=4)], 7.5)
    assert costs.least_s([picture(1024, steps=4)]) == pytest.approx(7)


def test_from_a_small_reference_nothing_is_extrapolated_but_the_part_above_512x512() -> None:
    costs = calibrated(side=64, reference_s=0.1)
    assert costs.least_s([picture(1024, steps=4)]) == pytest.approx(0.7 * 0.1 * 16)
    assert costs.hang_limit_s([picture(1024, steps=4)], hang_limit_s=0.5) == pytest.approx(8 * 0.1 * 64 * 16)


def test_a_measurement_is_no_reason_to_refuse_for_ever(costs: CostModel, monkeypatch: pytest.MonkeyPatch) -> None:
    costs.learn([picture(768)], 90.0)
    assert costs.least_s([picture(768)]) == pytest.approx(90)
    assert not costs.is_stale
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    assert costs.least_s([picture(768)]) == pytest.approx(0.7 * 1.125)
    assert costs.is_stale
    costs.learn([picture(768)], 2.0)
    assert costs.least_s([picture(768)]) == pytest.approx(2)


def test_the_hang_limit_grows_with_pixels_steps_and_pictures(costs: CostModel) -> None:
    def limit_s(*request: GenerationParams) -> float:
        return costs.hang_limit_s(request, hang_limit_s=6)

    start = Image.new("RGB", (1024, 512))
    assert limit_s(picture()) == 6
    assert limit_s(picture(64)) == 6
    assert limit_s(picture(1024)) == 24
    assert limit_s(picture(1024, steps=4)) == 96
    assert limit_s(picture(), picture()) == 12
    assert limit_s(Img2ImgParams(prompt="", seed=0, num_inference_steps=4, strength=0.5, image=start)) == 24
    assert costs.hang_limit_s([picture()], hang_limit_s=0.1) == pytest.approx(4), "eight times what is expected"


def test_the_last_call_of_the_warm_up_is_what_is_expected_and_the_fastest_what_is_possible() -> None:
    costs = CostModel(pixels_times_steps)
    costs.calibrate([(picture(), 9.0), (picture(), 0.5), (picture(1024), 3.0), (picture(), 0.6)])
    assert costs.expected_s([picture()]) == pytest.approx(0.6)
    assert costs.least_s([picture()]) == pytest.approx(0.5)


def test_before_anything_is_measured_nothing_is_expected() -> None:
    costs = CostModel(pixels_times_steps)
    assert (costs.expected_s([picture()]), costs.least_s([picture()])) == (0, 0)
    assert costs.hang_limit_s([picture(1024)], hang_limit_s=6) == 24


def test_the_kinds_that_are_remembered_are_bounded_and_the_reference_is_always_one(costs: CostModel) -> None:
    for width in range(64, 2048, 8):
        for steps in (1, 2):
            costs.learn([Txt2ImgParams(prompt="", seed=0, num_inference_steps=steps, width=width, height=64)], 1.0)
    assert costs.least_s([picture()]) == pytest.approx(0.5)
    latest = Txt2ImgParams(prompt="", seed=0, num_inference_steps=2, width=2040, height=64)
    assert costs.least_s([latest]) == pytest.approx(1)
    assert len(costs._kinds) == 256  # noqa: SLF001 - how much memory it takes has no public door
