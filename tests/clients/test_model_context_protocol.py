"""Clients of the Model Context Protocol: its SDKs for Python and for TypeScript, and an agent of Pydantic AI."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.programs import Report, drawn, run_node, run_python

Run = Callable[[str, str, Path], Report]


def in_python(case: str, url: str, picture: Path) -> Report:
    return run_python("model_context_protocol", case, url, picture)


def in_node(case: str, url: str, picture: Path) -> Report:
    return run_node("model_context_protocol.mjs", case, url, picture)


@pytest.fixture(params=[in_python, in_node], ids=["python", "node"])
def run(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.param
    return chosen


def test_the_tools_are_listed(run: Run, url: str, picture: Path) -> None:
    assert run("list_tools", url, picture)["tools"] == ["text_to_image", "image_to_image"]


def test_a_prompt_becomes_a_picture(run: Run, url: str, picture: Path) -> None:
    report = run("text_to_image", url, picture)
    assert not report["is_error"]
    assert report["types"] == ["image/webp"]
    assert drawn(report) == [("WEBP", (256, 384))]


def test_a_picture_becomes_a_picture(run: Run, url: str, picture: Path) -> None:
    report = run("image_to_image", url, picture)
    assert not report["is_error"]
    assert drawn(report) == [("WEBP", (664, 400))]


def test_the_language_model_reads_why_a_call_is_refused(run: Run, url: str, picture: Path) -> None:
    report = run("wrong_size", url, picture)
    assert report["is_error"]
    assert "width: Input should be less than or equal to 2048" in " ".join(report["texts"])


def test_an_agent_of_pydantic_ai_draws(url: str, picture: Path) -> None:
    report = run_python("pydantic_ai_agent", "text_to_image", url, picture)
    assert drawn(report) == [("WEBP", (256, 384))]
    assert report["output"] == "Here is the fox."
