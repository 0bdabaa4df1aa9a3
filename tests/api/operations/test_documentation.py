import re
from pathlib import Path

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.conftest import running, serving


async def test_the_first_page_is_the_playground_with_a_policy_that_lets_nothing_else_in(
    client: httpx.AsyncClient,
) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy.pop("img-src") == "'self' blob:"
    assert {policy.pop(name) for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert {policy.pop(name) for name in ("default-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert policy == {"require-trusted-types-for": "'script'"}
    assert not re.search(r"<script>|<style|\sstyle=|\son\w+=", page.text)


async def test_the_playground_is_asked_for_again_and_sent_again_only_if_it_has_changed(
    client: httpx.AsyncClient,
) -> None:
    page = (await client.get("/")).text
    assets = re.findall(r'"(playground/[^"]+)"', page)
    assert {Path(asset).suffix for asset in assets} == {".css", ".js", ".svg"}
    for path in ("/", *(f"/{asset}" for asset in assets)):
        first = await client.get(path)
        assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
        again = await client.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(("docs", "status"), [(True, 307), (False, 405)])
async def test_without_the_playground_the_first_page_leads_to_the_documentation_if_there_is_one(
    docs: bool, status: int
) -> None:
    async with running(create_app(Settings(model="fake", playground=False, docs=docs))) as client:
        response = await client.get("/")
        assert response.status_code == status
        assert response.headers.get("location") == ("docs" if docs else None)
        assert (await client.get("/playground/playground.js")).status_code == 404


async def test_the_documentation_loads_nothing_from_another_host(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) == 3
    assert not re.search(r"https?://", page)
    for address in loaded:
        asset = await client.get(f"/{address}")
        assert asset.status_code == 200
        assert len(asset.content) > 1000


async def test_the_page_s_document_is_the_app_s_own(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    paths = {path for path in document["paths"] if not path.startswith("/sdapi/v1/")}
    assert paths == {
        *("/", "/txt2img", "/img2img", "/inpaint", "/healthz/live", "/healthz/ready"),
        *("/v1/images/generations", "/v1/images/edits", "/v1/models", "/v1/models/{model}"),
    }


async def test_metrics_count_requests_queue_inference_and_rejections() -> None:
    async with running(create_app(Settings(model="fake"))) as client:
        await client.post("/txt2img", json={"prompt": "a"})
        await client.post("/txt2img", json={})
        await client.get("/nothing/a-path-of-any-client")
        response = await client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        metrics = response.text
    assert 'turbo_requests_total{method="POST",route="/txt2img",status="200"} 1.0' in metrics
    assert 'turbo_requests_total{method="POST",route="/txt2img",status="422"} 1.0' in metrics
    assert 'turbo_requests_total{method="GET",route="unmatched",status="404"} 1.0' in metrics
    assert 'turbo_errors_total{code="invalid_request"} 1.0' in metrics
    assert 'turbo_inference_seconds_count{mode="txt2img"} 1.0' in metrics
    assert 'turbo_queue_seconds_count{mode="txt2img"} 1.0' in metrics
    assert 'turbo_encode_seconds_count{media_type="image/png"} 1.0' in metrics
    assert "turbo_decode_seconds_count 0.0" in metrics
    assert 'turbo_pictures_total{mode="txt2img"} 1.0' in metrics
    assert "turbo_device_calls_total 1.0" in metrics
    assert "turbo_queue_depth 0.0" in metrics
    assert "a-path-of-any-client" not in metrics


# HEAD.


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/playground/playground.js",
        "/healthz/live",
        "/healthz/ready",
        "/metrics",
        "/v1/models",
        "/v1/models/fake",
        "/docs",
        "/docs/assets/swagger-ui.css",
        "/openapi.json",
    ],
)
def test_head_is_answered_as_get_is_without_the_body(path: str) -> None:
    with serving(create_app(Settings(model="fake"))) as url:
        got, asked = httpx.get(f"{url}{path}"), httpx.head(f"{url}{path}")
    assert (asked.status_code, asked.content) == (200, b"")
    varying = {"date", "x-request-id", "content-length" if path == "/metrics" else ""}
    assert {name: value for name, value in asked.headers.items() if name not in varying} == {
        name: value for name, value in got.headers.items() if name not in varying
    }
    assert int(asked.headers["content-length"]) > 0


async def test_under_a_proxy_s_prefix_the_document_names_it(client: httpx.AsyncClient) -> None:
    assert "servers" not in (await client.get("/openapi.json")).json()
    transport = httpx.ASGITransport(app=create_app(Settings(model="fake")), root_path="/turbo")
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as behind:
        assert (await behind.get("/turbo/openapi.json")).json()["servers"] == [{"url": "/turbo"}]


async def test_what_takes_no_get_takes_no_head_and_says_what_it_takes(client: httpx.AsyncClient) -> None:
    refused = await client.head("/img2img")
    assert (refused.status_code, refused.content, refused.headers["allow"]) == (405, b"", "OPTIONS, POST")
    assert (await client.delete("/healthz/live")).headers["allow"] == "GET, HEAD, OPTIONS"
    assert (await client.delete("/")).headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert (await client.head("/nothing")).status_code == 404


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/txt2img", "GET, HEAD, OPTIONS, POST"),
        ("/img2img", "OPTIONS, POST"),
        ("/v1/images/generations", "OPTIONS, POST"),  # SillyTavern probes it
        ("/sdapi/v1/options", "GET, HEAD, OPTIONS, POST"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/v1/models/a/b", "GET, HEAD, OPTIONS"),
        ("/healthz/live", "GET, HEAD, OPTIONS"),
        ("/metrics", "GET, HEAD, OPTIONS"),
        ("/", "GET, HEAD, OPTIONS, POST"),
        ("/docs", "GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
        ("/playground/playground.js", "GET, HEAD, OPTIONS"),
    ],
)
async def test_options_says_what_a_route_takes(client: httpx.AsyncClient, path: str, allow: str) -> None:
    asked = await client.options(path)
    assert (asked.status_code, asked.content, asked.headers["allow"]) == (204, b"", allow)
    assert (await client.options("/nothing")).status_code == 404


@pytest.mark.parametrize("path", ["/playground/playground.js", "/docs/assets/swagger-ui.css"])
@pytest.mark.parametrize("sent", ["bytes=0-10", "bytes=0-1,5-6", "bytes=abc", "bytes=99999999-"])
async def test_an_asset_is_sent_as_a_whole_whatever_range_is_asked_for(
    client: httpx.AsyncClient, path: str, sent: str
) -> None:
    whole = await client.get(path)
    assert whole.headers["accept-ranges"] == "none"
    for fields in ({"Range": sent}, {"Range": sent, "If-Range": whole.headers["etag"]}):
        got, asked = await client.get(path, headers=fields), await client.head(path, headers=fields)
        assert (got.status_code, got.content) == (200, whole.content)
        assert (asked.status_code, asked.content) == (200, b"")
        assert asked.headers["content-length"] == whole.headers["content-length"]


@pytest.mark.parametrize("docs", [True, False])
async def test_a_missing_route_leads_to_the_documentation_if_there_is_one(docs: bool) -> None:
    async with running(create_app(Settings(model="fake", docs=docs))) as client:
        for path in ("/nothing", "/playground/nothing.js"):
            missing = await client.get(path)
            assert missing.status_code == 404
            assert ("/docs" in missing.json()["detail"]) == docs


async def test_a_head_request_is_logged_and_counted_as_one(client: httpx.AsyncClient) -> None:
    await client.head("/v1/models")
    counted = (await client.get("/metrics")).text
    assert 'turbo_requests_total{method="HEAD",route="/v1/models",status="200"} 1.0' in counted


async def test_head_needs_the_key_that_get_needs(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice: 0123456789abcdef")
    async with running(create_app(Settings(model="fake", api_keys_file=tmp_path / "keys", metrics="key"))) as client:
        for path in ("/v1/models", "/metrics"):
            assert (await client.head(path)).status_code == 401
            assert (await client.head(path, headers={"X-API-Key": "0123456789abcdef"})).status_code == 200
