import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.conftest import StartServer

PROBLEM = "application/problem+json"

LISTS = r"^/sdapi/v1/(?!txt2img|img2img|png-info|options|progress|interrupt|skip)"
"""Routes whose answers do not depend on what is sent: most lists of Stable Diffusion WebUI's API."""


@pytest.mark.long
def test_the_service_keeps_to_its_openapi_document_whatever_is_sent(
    start_server: StartServer, tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    """schemathesis with all its checks: documented statuses, media types, headers and schemas, valid accepted, invalid
    refused. What it sends one after another it does not link: the service keeps no state that a later request could ask
    for."""
    url = start_server(model="fake", max_pixels=2048 * 2048).wait_until_started()
    done = subprocess.run(
        [
            Path(sys.executable).with_name("st"),
            "run",
            f"{url}/openapi.json",
            f"--exclude-path-regex={LISTS}",
            "--phases=examples,coverage,fuzzing,stateful",
            "--mode=all",
            f"--max-examples={rounds(20, 3000)}",
            "--seed=3",
            "--report=json",
            "--report-json-path=report.json",
        ],
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.api.schemathesis_hooks",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=rounds(110, 3500),
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["operations"]["tested"] == report["operations"]["selected"] == 20
    assert {name: phase["skip_reason"] or phase["status"] for name, phase in report["phases"].items()} == {
        "examples": "success",
        "coverage": "success",
        "fuzzing": "success",
        "stateful": "success",
    }
    assert report["test_cases"]["generated"] >= rounds(200, 5000)
    rates = {path: rate for path, rate in report["valid_rates"].items() if "fuzzing" in rate}
    accepted = {path: rate["fuzzing"]["accepted"] for path, rate in rates.items()}
    for path in ("/txt2img", "/img2img", "/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img"):
        assert accepted[f"POST {path}"] >= rounds(10, 100)
    assert accepted["POST /"] >= rounds(5, 20)  # of files and of the hooks' own JSON there are few


@pytest.mark.parametrize("path", ["/txt2img", "/img2img", "/"])
async def test_the_document_describes_pictures_headers_and_every_error(client: httpx.AsyncClient, path: str) -> None:
    responses = (await client.get("/openapi.json")).json()["paths"][path]["post"]["responses"]
    assert set(responses["200"]["content"]) == {"image/png", "image/webp", "image/jpeg", "application/json"}
    assert {"X-Seed", "X-Steps", "X-Image-Size", "X-Prompt-Tokens", "X-Request-ID"} <= set(responses["200"]["headers"])
    errors = {status: response for status, response in responses.items() if status != "200"}
    assert set(errors) == {"400", "401", "403", "406", "408", "413", "415", "422", "429", "500", "503", "504"}
    for status, response in errors.items():
        assert list(response["content"]) == [PROBLEM]
        assert ("Retry-After" in response["headers"]) == (status in {"429", "503", "504"})
