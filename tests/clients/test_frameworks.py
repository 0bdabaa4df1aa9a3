"""Frameworks for agents that call OpenAI's Images API: LangChain, LlamaIndex, Pydantic AI and Vercel's AI SDK."""

import base64
from pathlib import Path

import httpx
import pytest

from tests.clients.programs import drawn, run_node, run_python
from tests.conftest import opened

# LangChain's DallEAPIWrapper.


def test_langchain_reads_the_urls_of_dall_e_2(url: str, picture: Path) -> None:
    assert drawn(run_python("langchain_dalle", "generate", url, picture)) == [("PNG", (1024, 1024))]


def test_langchain_makes_several_pictures_with_dall_e_3(url: str, picture: Path) -> None:
    assert drawn(run_python("langchain_dalle", "generate_several", url, picture)) == [("PNG", (1792, 1024))] * 2


# LlamaIndex' OpenAIImageGenerationToolSpec.


def test_llama_index_answers_with_a_url(url: str, picture: Path) -> None:
    assert drawn(run_python("llama_index_tool", "generate_as_url", url, picture)) == [("PNG", (1024, 1024))]


def test_llama_index_writes_a_file(url: str, picture: Path) -> None:
    assert drawn(run_python("llama_index_tool", "generate_file", url, picture)) == [("PNG", (1792, 1024))]


# Pydantic AI.


def test_pydantic_ai_generates_pictures_of_given_dimensions(url: str, picture: Path) -> None:
    report = run_python("pydantic_ai_images", "generate", url, picture)
    assert drawn(report) == [("PNG", (1536, 1024))] * 2
    assert report["details"]["size"] == "1536x1024"


def test_pydantic_ai_generates_a_picture_by_default(url: str, picture: Path) -> None:
    assert drawn(run_python("pydantic_ai_images", "generate_by_default", url, picture)) == [("PNG", (512, 512))]


def test_pydantic_ai_edits_a_picture(url: str, picture: Path) -> None:
    assert drawn(run_python("pydantic_ai_images", "edit", url, picture)) == [("PNG", (1024, 1536))]


def test_pydantic_ai_shows_why_a_transparent_background_is_refused(url: str, picture: Path) -> None:
    report = run_python("pydantic_ai_images", "transparent", url, picture)
    assert report["status"] == 422
    assert "background" in report["error"]


# Vercel's AI SDK.


@pytest.mark.parametrize("provider", ["openai", "compatible"])
def test_the_ai_sdk_generates_a_picture_by_default(url: str, picture: Path, provider: str) -> None:
    report = run_node("ai_sdk.mjs", f"{provider}_by_default", url, picture)
    assert drawn(report) == [("PNG", (512, 512))]
    assert report["warnings"] == []


def test_the_ai_sdk_shows_ignored_options_in_the_headers(url: str, picture: Path) -> None:
    report = run_node("ai_sdk.mjs", "openai_with_options", url, picture)
    assert drawn(report) == [("WEBP", (1536, 1024))] * 2
    assert sorted(report["ignored"].split(", ")) == ["moderation", "quality"]


def test_the_ai_sdk_generates_with_dall_e_3(url: str, picture: Path) -> None:
    assert drawn(run_node("ai_sdk.mjs", "openai_dall_e_3", url, picture)) == [("PNG", (1024, 1792))]


def test_the_ai_sdk_edits_a_picture(url: str, picture: Path) -> None:
    assert drawn(run_node("ai_sdk.mjs", "openai_edit", url, picture)) == [("PNG", (1024, 1536))]


def test_the_ai_sdk_shows_why_a_mask_is_refused(url: str, picture: Path) -> None:
    report = run_node("ai_sdk.mjs", "openai_mask", url, picture)
    assert report["status"] == 422
    assert "mask: SDXL-Turbo changes the whole picture" in report["error"]


def test_the_ai_sdks_compatible_provider_reads_the_urls_of_dall_e_3(url: str, picture: Path) -> None:
    report = run_node("ai_sdk.mjs", "compatible_dall_e_3_by_default", url, picture)
    assert drawn(report) == [("PNG", (512, 512))]


def test_the_ai_sdks_compatible_provider_sends_the_services_own_parameters(url: str, picture: Path) -> None:
    report = run_node("ai_sdk.mjs", "compatible_with_options", url, picture)
    assert drawn(report) == [("PNG", (768, 512))] * 3
    fields = {"prompt": "a fox", "width": 768, "height": 512, "num_inference_steps": 2, "seed": 7}
    native = opened(httpx.post(f"{url}/txt2img", json=fields).content)
    assert opened(base64.b64decode(report["pictures"][0])).tobytes() == native.tobytes()


def test_the_ai_sdks_compatible_provider_edits_a_picture(url: str, picture: Path) -> None:
    assert drawn(run_node("ai_sdk.mjs", "compatible_edit", url, picture)) == [("PNG", (512, 512))]


def test_the_ai_sdks_compatible_provider_shows_why_a_size_is_refused(url: str, picture: Path) -> None:
    report = run_node("ai_sdk.mjs", "compatible_wrong_size", url, picture)
    assert report["status"] == 422
    assert "size" in report["error"]
