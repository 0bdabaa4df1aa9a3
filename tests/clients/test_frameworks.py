"""Frameworks for agents that call OpenAI's Images API: LangChain, LlamaIndex, Pydantic AI and Vercel's AI SDK.

Where a framework cannot send a seed, the picture's file has the seed that the service chose.
"""

from pathlib import Path

import pytest

from tests.clients.own_routes import WRONG_KEY, Service
from tests.clients.programs import Report, drawn, run_node, run_python, seeds

# LangChain's DallEAPIWrapper.


def test_langchain_reads_the_urls_of_dall_e_2(service: Service, picture: Path) -> None:
    report = run_python("langchain_dalle", "generate", service, picture)
    (seed,) = seeds(report)
    assert drawn(report) == [service.from_text(seed, width=1024, height=1024)]


def test_langchain_makes_several_pictures_with_dall_e_3(service: Service, picture: Path) -> None:
    report = run_python("langchain_dalle", "generate_several", service, picture)
    first, second = seeds(report)
    assert second == first + 1
    assert drawn(report) == [service.from_text(seed, width=1792, height=1024) for seed in (first, second)]


def test_langchain_shows_that_a_key_is_wrong(with_wrong_key: Service, picture: Path) -> None:
    assert WRONG_KEY in run_python("langchain_dalle", "generate", with_wrong_key, picture)["error"]


# LlamaIndex' OpenAIImageGenerationToolSpec.


def test_llama_index_answers_with_a_url(service: Service, picture: Path) -> None:
    report = run_python("llama_index_tool", "generate_as_url", service, picture)
    (seed,) = seeds(report)
    assert drawn(report) == [service.from_text(seed, width=1024, height=1024)]


def test_llama_index_writes_a_file(service: Service, picture: Path) -> None:
    (drawing,) = drawn(run_python("llama_index_tool", "generate_file", service, picture))
    assert drawing[:2] == ("PNG", (1792, 1024))  # LlamaIndex drops the metadata with the seed


def test_llama_index_shows_that_a_key_is_wrong(with_wrong_key: Service, picture: Path) -> None:
    assert WRONG_KEY in run_python("llama_index_tool", "generate_as_url", with_wrong_key, picture)["error"]


# Pydantic AI.


def test_pydantic_ai_generates_pictures_of_given_dimensions(service: Service, picture: Path) -> None:
    report = run_python("pydantic_ai_images", "generate", service, picture)
    fields = {"width": 1536, "height": 1024, "num_inference_steps": 3}
    assert drawn(report) == [service.from_text(seed, **fields) for seed in (7, 8)]
    assert report["details"]["size"] == "1536x1024"


def test_pydantic_ai_generates_a_picture_by_default(service: Service, picture: Path) -> None:
    report = run_python("pydantic_ai_images", "generate_by_default", service, picture)
    (seed,) = seeds(report)
    assert drawn(report) == [service.from_text(seed)]


def test_pydantic_ai_edits_a_picture(service: Service, picture: Path) -> None:
    report = run_python("pydantic_ai_images", "edit", service, picture)
    fields = {"width": 1024, "height": 1536, "num_inference_steps": 3, "strength": 0.75}
    assert drawn(report) == [service.from_picture(picture, 7, **fields)]


def test_pydantic_ai_keeps_a_pictures_aspect_by_default(service: Service, picture: Path) -> None:
    assert_aspect_kept(run_python("pydantic_ai_images", "edit_by_default", service, picture), service, picture)


def test_pydantic_ai_shows_why_a_transparent_background_is_refused(service: Service, picture: Path) -> None:
    report = run_python("pydantic_ai_images", "transparent", service, picture)
    assert report["status"] == 422
    assert "SDXL-Turbo's pictures are opaque." in report["error"]


def test_pydantic_ai_shows_that_a_key_is_wrong(with_wrong_key: Service, picture: Path) -> None:
    report = run_python("pydantic_ai_images", "generate", with_wrong_key, picture)
    assert report["status"] == 401
    assert WRONG_KEY in report["error"]


# Vercel's AI SDK.


@pytest.mark.parametrize("provider", ["openai", "compatible"])
def test_the_ai_sdk_generates_a_picture_by_default(service: Service, picture: Path, provider: str) -> None:
    report = run_node("ai_sdk.mjs", f"{provider}_by_default", service, picture)
    (seed,) = seeds(report)
    assert drawn(report) == [service.from_text(seed)]
    assert report["warnings"] == []


@pytest.mark.parametrize("provider", ["openai", "compatible"])
def test_the_ai_sdk_shows_that_a_key_is_wrong(with_wrong_key: Service, picture: Path, provider: str) -> None:
    report = run_node("ai_sdk.mjs", f"{provider}_by_default", with_wrong_key, picture)
    assert report["status"] == 401
    assert WRONG_KEY in report["error"]


@pytest.mark.parametrize("provider", ["openai", "compatible"])
def test_the_ai_sdk_keeps_a_pictures_aspect_by_default(service: Service, picture: Path, provider: str) -> None:
    assert_aspect_kept(run_node("ai_sdk.mjs", f"{provider}_edit_by_default", service, picture), service, picture)


def test_the_ai_sdk_shows_ignored_options_in_the_headers(service: Service, picture: Path) -> None:
    report = run_node("ai_sdk.mjs", "openai_with_options", service, picture)
    assert sorted(report["ignored"].split(", ")) == ["moderation", "quality"]
    fields = {"width": 1536, "height": 1024}
    assert drawn(report) == [service.from_text(seed, "image/webp", **fields) for seed in seeds(report)]
    assert len(drawn(report)) == 2


def test_the_ai_sdks_provider_for_openai_does_not_send_the_seed(service: Service, picture: Path) -> None:
    report = run_node("ai_sdk.mjs", "openai_with_options", service, picture)
    assert seeds(report) != [7, 8]
    assert [warning["feature"] for warning in report["warnings"]] == ["seed"]


def test_the_ai_sdk_generates_with_dall_e_3(service: Service, picture: Path) -> None:
    report = run_node("ai_sdk.mjs", "openai_dall_e_3", service, picture)
    (seed,) = seeds(report)
    assert drawn(report) == [service.from_text(seed, width=1024, height=1792)]


def test_the_ai_sdk_edits_a_picture(service: Service, picture: Path) -> None:
    report = run_node("ai_sdk.mjs", "openai_edit", service, picture)
    (seed,) = seeds(report)
    assert drawn(report) == [service.from_picture(picture, seed, width=1024, height=1536)]
    assert report["ignored"] == "input_fidelity"


@pytest.mark.parametrize("provider", ["openai", "compatible"])
def test_the_ai_sdk_sends_a_mask(service: Service, picture: Path, provider: str) -> None:
    report = run_node("ai_sdk.mjs", f"{provider}_mask", service, picture)
    (seed,) = seeds(report)
    assert drawn(report) == [service.from_mask(picture, seed)]


def test_the_ai_sdk_shows_why_a_transparent_background_is_refused(service: Service, picture: Path) -> None:
    report = run_node("ai_sdk.mjs", "openai_transparent", service, picture)
    assert report["status"] == 422
    assert "SDXL-Turbo's pictures are opaque." in report["error"]


def test_the_ai_sdks_compatible_provider_reads_the_urls_of_dall_e_3(service: Service, picture: Path) -> None:
    report = run_node("ai_sdk.mjs", "compatible_dall_e_3_by_default", service, picture)
    (seed,) = seeds(report)
    assert drawn(report) == [service.from_text(seed)]


def test_the_ai_sdks_compatible_provider_sends_the_services_own_parameters(service: Service, picture: Path) -> None:
    report = run_node("ai_sdk.mjs", "compatible_with_options", service, picture)
    fields = {"width": 768, "height": 512, "num_inference_steps": 3}
    assert drawn(report) == [service.from_text(seed, **fields) for seed in (7, 8, 9)]


def test_the_ai_sdks_compatible_provider_edits_a_picture(service: Service, picture: Path) -> None:
    report = run_node("ai_sdk.mjs", "compatible_edit", service, picture)
    fields = {"width": 512, "height": 512, "num_inference_steps": 3, "strength": 0.75}
    assert drawn(report) == [service.from_picture(picture, 7, **fields)]


def test_the_ai_sdks_compatible_provider_shows_why_a_size_is_refused(service: Service, picture: Path) -> None:
    report = run_node("ai_sdk.mjs", "compatible_wrong_size", service, picture)
    assert report["status"] == 422
    assert "size: The size is auto, or WIDTHxHEIGHT" in report["error"]


def assert_aspect_kept(report: Report, service: Service, picture: Path) -> None:
    (drawing,), (seed,) = drawn(report), seeds(report)
    assert drawing.size == (664, 400)
    assert drawing == service.from_picture(picture, seed)
