"""Hugging Face's InferenceClients, for Python and for JavaScript."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.own_routes import WRONG_KEY, Service
from tests.clients.programs import Report, drawn, run_node, run_python, seeds

Run = Callable[[str, Service, Path], Report]


def in_python(case: str, service: Service, picture: Path) -> Report:
    return run_python("hugging_face", case, service, picture)


def in_node(case: str, service: Service, picture: Path) -> Report:
    return run_node("hugging_face.mjs", case, service, picture)


@pytest.fixture(params=[in_python, in_node], ids=["python", "node"])
def run(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.param
    return chosen


def test_a_prompt_becomes_a_picture(run: Run, service: Service, picture: Path) -> None:
    assert drawn(run("text_to_image", service, picture)) == [service.from_text(7)]


def test_of_the_parameters_of_other_models_those_that_count_are_used(run: Run, service: Service, picture: Path) -> None:
    report = run("text_to_image_with_all_parameters", service, picture)
    assert drawn(report) == [service.from_text(7, width=768, height=256, num_inference_steps=4)]


def test_a_picture_alone_becomes_a_picture_of_its_aspect(run: Run, service: Service, picture: Path) -> None:
    (drawing,) = drawn(run("image_to_image", service, picture))
    assert drawing[:2] == ("PNG", (664, 400))


def test_a_picture_alone_is_edited_without_a_prompt(service: Service, picture: Path) -> None:
    report = in_node("image_to_image", service, picture)  # in Python the client returns no file that has the seed
    (seed,) = seeds(report)
    assert drawn(report) == [service.from_picture(picture, seed, prompt="")]


def test_a_picture_becomes_a_picture_of_its_aspect(run: Run, service: Service, picture: Path) -> None:
    (drawing,) = drawn(run("image_to_image_with_seed", service, picture))
    assert drawing.size == (664, 400)
    assert drawing == service.from_picture(picture, 7)


def test_of_the_parameters_of_other_models_those_that_count_are_used_for_edits(
    run: Run, service: Service, picture: Path
) -> None:
    report = run("image_to_image_with_all_parameters", service, picture)
    fields = {"width": 256, "height": 384, "num_inference_steps": 4, "strength": 0.75}
    assert drawn(report) == [service.from_picture(picture, 7, **fields)]


def test_a_mask_draws_its_part_of_a_picture(run: Run, service: Service, picture: Path) -> None:
    report = run("image_to_image_with_mask", service, picture)
    assert drawn(report) == [service.from_mask(picture, 7, padding=16)]


def test_the_user_reads_why_a_request_is_refused(run: Run, service: Service, picture: Path) -> None:
    error = run("refused", service, picture)["error"]
    assert "width: Input should be less than or equal to 2048" in error
    assert "'message':" not in error


def test_the_user_reads_that_the_key_is_wrong(run: Run, with_wrong_key: Service, picture: Path) -> None:
    assert WRONG_KEY in run("text_to_image", with_wrong_key, picture)["error"]


def test_a_picture_is_returned_as_a_data_url(service: Service, picture: Path) -> None:
    report = in_node("text_to_image_as_data_url", service, picture)
    (seed,) = seeds(report)
    assert drawn(report) == [service.from_text(seed)]
