"""LiteLLM: its SDK, and its proxy in front of the service."""

import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.support.ports import free_port
from tests.clients.own_routes import WRONG_KEY, Service
from tests.clients.programs import WITHOUT_NETWORK, Report, drawn, python_program, run_python, seeds
from tests.conftest import wait_until

Ask = Callable[[str], Report]


@pytest.fixture
def ask(service: Service, picture: Path) -> Ask:
    return lambda case: run_python("litellm_images", case, service, picture, environment="litellm")


def test_the_sdk_sends_the_services_own_parameters(ask: Ask, service: Service) -> None:
    fields = {"width": 1536, "height": 1024, "num_inference_steps": 3}
    assert drawn(ask("generate")) == [service.from_text(seed, **fields) for seed in (7, 8)]


def test_the_sdk_reads_pictures_from_urls(ask: Ask, service: Service) -> None:
    assert drawn(ask("generate_as_urls")) == [service.from_text(7, width=1024, height=1792)]


def test_the_sdk_sends_a_style_and_a_format_for_dall_e_3(ask: Ask, service: Service) -> None:
    assert drawn(ask("generate_in_a_style")) == [service.from_text(7)]


@pytest.mark.parametrize("name", ["response_format", "style"])
def test_the_sdk_itself_rejects_these_parameters_for_gpt_image_1(ask: Ask, name: str) -> None:
    report = ask(f"generate_with_{name}")
    assert report["kind"] == "UnsupportedParamsError"
    assert f"`{name}` is not supported by openai, gpt-image-1" in report["error"]


def test_the_sdk_sends_the_services_own_parameters_of_edits(ask: Ask, service: Service, picture: Path) -> None:
    fields = {"width": 512, "height": 512, "num_inference_steps": 3, "strength": 0.75}
    assert drawn(ask("edit")) == [service.from_picture(picture, 7, **fields)]


def test_the_sdk_keeps_a_pictures_aspect_by_default(ask: Ask, service: Service, picture: Path) -> None:
    report = ask("edit_by_default")
    (drawing,), (seed,) = drawn(report), seeds(report)
    assert drawing.size == (664, 400)
    assert drawing == service.from_picture(picture, seed)


def test_the_sdk_sends_a_mask(ask: Ask, service: Service, picture: Path) -> None:
    fields = {"num_inference_steps": 3, "strength": 0.75}
    assert drawn(ask("edit_with_mask")) == [service.from_mask(picture, 7, **fields)]


def test_the_sdk_shows_why_a_request_is_refused(ask: Ask) -> None:
    report = ask("edit_with_wrong_size")
    assert (report["kind"], report["status"]) == ("BadRequestError", 422)
    assert "size: The size is auto, or WIDTHxHEIGHT" in report["error"]


def test_the_sdk_shows_that_a_key_is_wrong(with_wrong_key: Service, picture: Path) -> None:
    report = run_python("litellm_images", "generate", with_wrong_key, picture, environment="litellm")
    assert (report["kind"], report["status"]) == ("AuthenticationError", 401)
    assert WRONG_KEY in report["error"]


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/liveliness").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def proxy(service: Service, with_wrong_key: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """LiteLLM's proxy, with a key of its own. It sends a wrong key to the service for the model dall-e-2."""
    program, folder = python_program("litellm", "litellm"), tmp_path_factory.mktemp("proxy")
    keys = {"gpt-image-1": service.key, "dall-e-3": service.key, "dall-e-2": with_wrong_key.key}
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": f"openai/{name}", "api_base": f"{service.url}/v1", "api_key": key},
        }
        for name, key in keys.items()
    ]
    config = folder / "config.yaml"
    config.write_text(json.dumps({"model_list": models}))  # JSON is YAML
    key, port = f"sk-{secrets.token_hex()}", free_port()
    environment = {**os.environ, **WITHOUT_NETWORK, "LITELLM_MASTER_KEY": key}
    command = [
        str(program),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--telemetry",
        "False",
    ]
    address = f"http://127.0.0.1:{port}"
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder) as process,
    ):
        try:
            wait_until(lambda: process.poll() is not None or answers(address), within_s=240)
            assert process.poll() is None, (folder / "log").read_text()
            yield Service(url=address, key=key)
        finally:
            process.kill()


@pytest.fixture
def ask_proxy(proxy: Service, picture: Path) -> Ask:
    """Run a case of OpenAI's SDK through the proxy."""
    return lambda case: run_python("openai_images", case, proxy, picture)


def test_the_proxy_forwards_the_services_own_parameters(ask_proxy: Ask, service: Service) -> None:
    report = ask_proxy("generate")
    fields = {"width": 1536, "height": 1024, "num_inference_steps": 3}
    assert drawn(report) == [service.from_text(seed, "image/webp", **fields) for seed in (7, 8)]


def test_the_proxy_drops_what_tells_of_ignored_parameters(ask_proxy: Ask) -> None:
    report = ask_proxy("generate")
    assert report["pictures"]
    assert report["warnings"] is None
    assert report["ignored"] is None


def test_the_proxy_forwards_urls(ask_proxy: Ask, service: Service) -> None:
    assert drawn(ask_proxy("generate_as_urls")) == [service.from_text(7, width=1792, height=1024)]


def test_the_proxy_forwards_the_services_own_parameters_of_edits(
    ask_proxy: Ask, service: Service, picture: Path
) -> None:
    fields = {"width": 1024, "height": 1536, "num_inference_steps": 3, "strength": 0.75}
    assert drawn(ask_proxy("edit")) == [service.from_picture(picture, seed, "image/jpeg", **fields) for seed in (7, 8)]


def test_the_proxy_cannot_stream(ask_proxy: Ask) -> None:
    report = ask_proxy("stream")
    assert report["status"] == 500
    assert "'str' object has no attribute 'model_dump'" in report["error"]  # LiteLLM reads the events as one answer


def test_the_proxy_forwards_a_mask(ask_proxy: Ask, service: Service, picture: Path) -> None:
    report = ask_proxy("edit_with_mask_and_parameters")
    fields = {"width": 1024, "height": 1024, "num_inference_steps": 3, "strength": 0.75}
    assert drawn(report) == [service.from_mask(picture, seed, "image/webp", **fields) for seed in (7, 8)]


def test_the_proxy_forwards_the_reason_why_a_request_is_refused(ask_proxy: Ask) -> None:
    report = ask_proxy("transparent")
    assert report["status"] == 422
    assert "SDXL-Turbo's pictures are opaque." in report["error"]


def test_the_proxy_forwards_that_its_key_is_wrong(ask_proxy: Ask) -> None:
    report = ask_proxy("generate_ten")
    assert report["status"] == 401
    assert WRONG_KEY in report["error"]
