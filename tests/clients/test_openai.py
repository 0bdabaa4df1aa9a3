"""OpenAI's own SDKs, for Python and for Node."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.own_routes import WRONG_KEY, Service
from tests.clients.programs import Report, drawn, files, run_node, run_python, seeds

Run = Callable[[str, Service, Path], Report]


def in_python(case: str, service: Service, picture: Path) -> Report:
    return run_python("openai_images", case, service, picture)


def in_node(case: str, service: Service, picture: Path) -> Report:
    return run_node("openai_images.mjs", case, service, picture)


@pytest.fixture(params=[in_python, in_node], ids=["python", "node"])
def run(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.param
    return chosen


def test_pictures_are_those_of_the_services_own_route(run: Run, service: Service, picture: Path) -> None:
    report = run("generate", service, picture)
    fields = {"width": 1536, "height": 1024, "num_inference_steps": 3}
    assert drawn(report) == [service.from_text(seed, "image/webp", **fields) for seed in (7, 8)]
    assert report["seeds"] == [7, 8]
    assert report["size"] == "1536x1024"


def test_parameters_without_effect_are_ignored_and_named(run: Run, service: Service, picture: Path) -> None:
    report = run("generate", service, picture)
    assert sorted(report["ignored"].split(", ")) == ["moderation", "quality"]
    assert sorted(warning.split()[0] for warning in report["warnings"]) == ["moderation", "quality"]


def test_a_picture_is_answered_as_a_url(run: Run, service: Service, picture: Path) -> None:
    report = run("generate_as_urls", service, picture)
    assert drawn(report) == [service.from_text(7, width=1792, height=1024)]
    assert sorted(warning.split()[0] for warning in report["warnings"]) == ["quality", "style"]


def test_a_picture_is_streamed(run: Run, service: Service, picture: Path) -> None:
    report = run("stream", service, picture)
    assert report["events"] == ["image_generation.completed"]
    assert drawn(report) == [service.from_text(7, num_inference_steps=3)]


def test_edits_are_those_of_the_services_own_route(run: Run, service: Service, picture: Path) -> None:
    report = run("edit", service, picture)
    fields = {"width": 1024, "height": 1536, "num_inference_steps": 3, "strength": 0.75}
    assert drawn(report) == [service.from_picture(picture, seed, "image/jpeg", **fields) for seed in (7, 8)]
    assert sorted(warning.split()[0] for warning in report["warnings"]) == ["input_fidelity", "quality"]


def test_an_edit_without_a_size_keeps_the_pictures_aspect(run: Run, service: Service, picture: Path) -> None:
    report = run("edit_by_default", service, picture)
    (drawing,) = drawn(report)
    assert drawing.size == (664, 400)
    assert report["seeds"] == seeds(report)
    assert drawing == service.from_picture(picture, report["seeds"][0])


def test_a_mask_draws_its_part_and_keeps_the_rest_with_its_size(run: Run, service: Service, picture: Path) -> None:
    report = run("edit_with_mask", service, picture)
    (drawing,) = drawn(report)
    assert drawing.size == (320, 192)
    assert report["seeds"] == seeds(report)
    assert drawing == service.from_mask(picture, report["seeds"][0])


def test_edits_with_a_mask_are_those_of_the_services_own_route(run: Run, service: Service, picture: Path) -> None:
    report = run("edit_with_mask_and_parameters", service, picture)
    fields = {"width": 1024, "height": 1024, "num_inference_steps": 3, "strength": 0.75}
    assert drawn(report) == [service.from_mask(picture, seed, "image/webp", **fields) for seed in (7, 8)]
    assert report["seeds"] == [7, 8]


def test_a_wrong_key_is_refused_with_the_reason(run: Run, with_wrong_key: Service, picture: Path) -> None:
    report = run("generate", with_wrong_key, picture)
    assert report["status"] == 401
    assert report["code"] == "invalid_api_key"
    assert WRONG_KEY in report["error"]


def test_ten_pictures_are_made_at_once(service: Service, picture: Path) -> None:
    report = in_python("generate_ten", service, picture)
    assert drawn(report) == [service.from_text(seed, width=256, height=256) for seed in range(7, 17)]


def test_the_compression_sets_the_quality_of_the_file(service: Service, picture: Path) -> None:
    report = in_python("generate_compressed", service, picture)
    usual, compressed = drawn(report)
    assert usual == service.from_text(7, "image/jpeg")
    assert compressed.format == "JPEG"
    assert len(files(report)[1]) < len(files(report)[0])


def test_dall_e_answers_with_urls_by_default(service: Service, picture: Path) -> None:
    report = in_python("generate_with_the_models_default_format", service, picture)
    assert report["seeds"] == seeds(report)
    assert drawn(report) == [service.from_text(report["seeds"][0], width=1024, height=1024)]


def test_several_input_pictures_are_refused(service: Service, picture: Path) -> None:
    report = in_python("edit_two_pictures", service, picture)
    assert report["param"] == "image"
    assert "Send one image, not several." in report["error"]


def test_a_transparent_background_is_refused(service: Service, picture: Path) -> None:
    report = in_python("transparent", service, picture)
    assert report["status"] == 422
    assert report["param"] == "background"
    assert "SDXL-Turbo's pictures are opaque." in report["error"]
