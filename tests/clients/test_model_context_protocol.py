"""Clients of the Model Context Protocol: its SDKs for Python and for TypeScript, and an agent of Pydantic AI."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.own_routes import WRONG_KEY, Drawing, Service
from tests.clients.programs import Report, drawn, run_node, run_python

Run = Callable[[str, Service, Path], Report]


def in_python(case: str, service: Service, picture: Path) -> Report:
    return run_python("model_context_protocol", case, service, picture)


def in_node(case: str, service: Service, picture: Path) -> Report:
    return run_node("model_context_protocol.mjs", case, service, picture)


@pytest.fixture(params=[in_python, in_node], ids=["python", "node"])
def run(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.param
    return chosen


@pytest.fixture
def fox(service: Service) -> Drawing:
    return service.from_text(7, "image/webp", width=256, height=384, num_inference_steps=3)


def test_the_tools_are_listed(run: Run, service: Service, picture: Path) -> None:
    assert run("list_tools", service, picture)["tools"] == ["text_to_image", "image_to_image"]


def test_a_prompt_becomes_a_webp_file_by_default(run: Run, service: Service, picture: Path, fox: Drawing) -> None:
    report = run("text_to_image", service, picture)
    assert not report["is_error"]
    assert report["types"] == ["image/webp"]
    assert drawn(report) == [fox]


def test_the_caller_may_choose_the_format(run: Run, service: Service, picture: Path) -> None:
    report = run("text_to_png", service, picture)
    assert report["types"] == ["image/png"]
    assert drawn(report) == [service.from_text(7)]


def test_a_picture_becomes_a_webp_file_of_its_aspect(run: Run, service: Service, picture: Path) -> None:
    report = run("image_to_image", service, picture)
    assert not report["is_error"]
    assert report["types"] == ["image/webp"]
    (drawing,) = drawn(report)
    assert drawing.size == (664, 400)
    fields = {"num_inference_steps": 3, "strength": 0.75}
    assert drawing == service.from_picture(picture, 7, "image/webp", **fields)


def test_the_language_model_reads_why_a_call_is_refused(run: Run, service: Service, picture: Path) -> None:
    report = run("wrong_size", service, picture)
    assert report["is_error"]
    assert "width: Input should be less than or equal to 2048" in " ".join(report["texts"])


def test_the_user_reads_that_the_key_is_wrong(run: Run, with_wrong_key: Service, picture: Path) -> None:
    assert WRONG_KEY in run("list_tools", with_wrong_key, picture)["error"]


def test_an_agent_of_pydantic_ai_draws(service: Service, picture: Path, fox: Drawing) -> None:
    report = run_python("pydantic_ai_agent", "text_to_image", service, picture)
    assert report["types"] == ["image/webp"]
    assert drawn(report) == [fox]
    assert report["output"] == "Here is the fox."


def test_an_agent_of_pydantic_ai_reports_that_the_key_is_wrong(with_wrong_key: Service, picture: Path) -> None:
    assert WRONG_KEY in run_python("pydantic_ai_agent", "text_to_image", with_wrong_key, picture)["error"]
