import re

import httpx

from app.main import create_app
from app.settings import Settings
from tests.conftest import running


async def test_the_first_page_leads_to_the_documentation(client: httpx.AsyncClient) -> None:
    response = await client.get("/", follow_redirects=True)
    assert response.url.path == "/docs"
    assert "swagger-ui" in response.text


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
    assert set(document["paths"]) == {
        *("/", "/txt2img", "/img2img", "/healthz/live", "/healthz/ready"),
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
