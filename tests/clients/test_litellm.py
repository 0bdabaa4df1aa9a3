"""LiteLLM: its SDK, and its proxy in front of the service."""

import json
import os
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.clients.programs import WITHOUT_NETWORK, Report, drawn, python_program, run_python
from tests.conftest import wait_until

Ask = Callable[[str], Report]


@pytest.fixture
def ask(url: str, picture: Path) -> Ask:
    return lambda case: run_python("litellm_images", case, url, picture, environment="litellm")


def test_the_sdk_generates_pictures(ask: Ask) -> None:
    assert drawn(ask("generate")) == [("PNG", (1536, 1024))] * 2


def test_the_sdk_reads_pictures_from_urls(ask: Ask) -> None:
    assert drawn(ask("generate_as_urls")) == [("PNG", (1024, 1792))]


def test_the_sdk_edits_a_picture(ask: Ask) -> None:
    assert drawn(ask("edit")) == [("PNG", (512, 512))]


def test_the_sdk_shows_why_a_mask_is_refused(ask: Ask) -> None:
    assert "mask: SDXL-Turbo changes the whole picture" in ask("edit_with_mask")["error"]


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/liveliness").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def through_proxy(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, Path], Report]]:
    """Start LiteLLM's proxy. Yield a function that runs a case of OpenAI's SDK through it."""
    program, folder = python_program("litellm", "litellm"), tmp_path_factory.mktemp("proxy")
    models = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": f"{url}/v1", "api_key": "none"}}
        for name in ("gpt-image-1", "dall-e-3")
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
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder) as proxy,
    ):
        try:
            wait_until(lambda: proxy.poll() is not None or answers(address), within_s=100)
            assert proxy.poll() is None, (folder / "log").read_text()
            yield lambda case, picture: run_python(
                "openai_images", case, address, picture, variables={"OPENAI_API_KEY": key}
            )
        finally:
            proxy.kill()


def test_the_proxy_generates_pictures(through_proxy: Callable[[str, Path], Report], picture: Path) -> None:
    assert drawn(through_proxy("generate", picture)) == [("WEBP", (1536, 1024))] * 2


def test_the_proxy_forwards_urls(through_proxy: Callable[[str, Path], Report], picture: Path) -> None:
    assert drawn(through_proxy("generate_as_urls", picture)) == [("PNG", (1792, 1024))]


def test_the_proxy_edits_a_picture(through_proxy: Callable[[str, Path], Report], picture: Path) -> None:
    assert drawn(through_proxy("edit", picture)) == [("JPEG", (1024, 1536))]


def test_the_proxy_forwards_the_reason_why_a_mask_is_refused(
    through_proxy: Callable[[str, Path], Report], picture: Path
) -> None:
    assert "mask: SDXL-Turbo changes the whole picture" in through_proxy("edit_with_mask", picture)["error"]
