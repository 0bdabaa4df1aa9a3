"""Hugging Face's InferenceClients, for Python and for JavaScript."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.programs import Report, drawn, run_node, run_python

Run = Callable[[str, str, Path], Report]


def in_python(case: str, url: str, picture: Path) -> Report:
    return run_python("hugging_face", case, url, picture)


def in_node(case: str, url: str, picture: Path) -> Report:
    return run_node("hugging_face.mjs", case, url, picture)


@pytest.fixture(params=[in_python, in_node], ids=["python", "node"])
def run(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.param
    return chosen


def test_a_prompt_becomes_a_picture(run: Run, url: str, picture: Path) -> None:
    assert drawn(run("text_to_image", url, picture)) == [("PNG", (512, 512))]


def test_a_prompt_with_the_parameters_of_other_models_becomes_a_picture(run: Run, url: str, picture: Path) -> None:
    assert drawn(run("text_to_image_with_all_parameters", url, picture)) == [("PNG", (768, 256))]


def test_a_picture_becomes_a_picture(run: Run, url: str, picture: Path) -> None:
    assert drawn(run("image_to_image", url, picture)) == [("PNG", (664, 400))]


def test_a_picture_with_the_parameters_of_other_models_becomes_a_picture(run: Run, url: str, picture: Path) -> None:
    assert drawn(run("image_to_image_with_all_parameters", url, picture)) == [("PNG", (256, 384))]


def test_the_user_reads_why_a_request_is_refused(run: Run, url: str, picture: Path) -> None:
    error = run("refused", url, picture)["error"]
    assert "width: Input should be less than or equal to 2048" in error
    assert "'message':" not in error


def test_a_picture_is_returned_as_a_data_url(url: str, picture: Path) -> None:
    report = in_node("text_to_image_as_data_url", url, picture)
    assert drawn(report) == [("PNG", (512, 512))]
