"""OpenAI's own SDKs, for Python and for Node."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.programs import Report, drawn, run_node, run_python

Run = Callable[[str, str, Path], Report]


def in_python(case: str, url: str, picture: Path) -> Report:
    return run_python("openai_images", case, url, picture)


def in_node(case: str, url: str, picture: Path) -> Report:
    return run_node("openai_images.mjs", case, url, picture)


@pytest.fixture(params=[in_python, in_node], ids=["python", "node"])
def run(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.param
    return chosen


def test_parameters_without_effect_are_ignored_and_named(run: Run, url: str, picture: Path) -> None:
    report = run("generate", url, picture)
    assert drawn(report) == [("WEBP", (1536, 1024))] * 2
    assert report["size"] == "1536x1024"
    assert sorted(report["ignored"].split(", ")) == ["moderation", "quality"]
    assert all(any(name in warning for warning in report["warnings"]) for name in ("moderation", "quality"))


def test_a_picture_is_answered_as_a_url(run: Run, url: str, picture: Path) -> None:
    report = run("generate_as_urls", url, picture)
    assert drawn(report) == [("PNG", (1792, 1024))]
    assert all(any(name in warning for warning in report["warnings"]) for name in ("style", "quality"))


def test_a_picture_is_streamed(run: Run, url: str, picture: Path) -> None:
    report = run("stream", url, picture)
    assert report["events"] == ["image_generation.completed"]
    assert drawn(report) == [("PNG", (512, 512))]


def test_a_picture_is_edited(run: Run, url: str, picture: Path) -> None:
    report = run("edit", url, picture)
    assert drawn(report) == [("JPEG", (1024, 1536))]
    assert any("input_fidelity" in warning for warning in report["warnings"])


def test_a_mask_is_refused(run: Run, url: str, picture: Path) -> None:
    report = run("edit_with_mask", url, picture)
    assert report["param"] == "mask"
    assert "mask: SDXL-Turbo changes the whole picture" in report["error"]


def test_ten_pictures_are_made_at_once(url: str, picture: Path) -> None:
    assert drawn(in_python("generate_ten", url, picture)) == [("PNG", (256, 256))] * 10


def test_dall_e_answers_with_urls_by_default(url: str, picture: Path) -> None:
    report = in_python("generate_with_the_models_default_format", url, picture)
    assert drawn(report) == [("PNG", (1024, 1024))]


def test_several_input_pictures_are_refused(url: str, picture: Path) -> None:
    report = in_python("edit_two_pictures", url, picture)
    assert report["param"] == "image"
    assert "one" in report["error"]


def test_a_transparent_background_is_refused(url: str, picture: Path) -> None:
    report = in_python("transparent", url, picture)
    assert report["param"] == "background"
