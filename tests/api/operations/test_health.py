import asyncio
import statistics
import time

import httpx

from app import __version__
from app.errors import DeviceLostError
from app.main import create_app
from app.settings import Settings
from tests.conftest import running, until
from tests.support.gated_pipeline import GatedPipeline


async def test_a_warm_service_is_live_and_ready_and_says_what_it_runs(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz/live")).json() == {"status": "live"}
    ready = await client.get("/healthz/ready")
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "warm": True,
        "model": "fake",
        "vae": None,
        "loras": [],
        "modes": ["txt2img", "img2img", "inpaint"],
        "device": "none",
        "dtype": "none",
        "queue": {"waiting": 0, "limit": 32, "running_s": 0.0},
        "version": __version__,
    }


async def test_health_answers_within_50_ms_while_a_call_runs_and_others_wait(pipeline: GatedPipeline) -> None:
    async with running(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as client:
        pipeline.close()
        requests = [asyncio.create_task(client.post("/txt2img", json={"prompt": "a"})) for _ in range(4)]
        await until(lambda: pipeline.calls)
        durations_s = []
        for path in ["/healthz/live", "/healthz/ready"] * 10:
            started = time.monotonic()
            response = await client.get(path)
            durations_s.append(time.monotonic() - started)
            assert response.status_code == 200
        queue = (await client.get("/healthz/ready")).json()["queue"]
        assert queue["waiting"] == 3
        assert queue["running_s"] > 0
        assert statistics.median(durations_s) < 0.05
        pipeline.gate.set()
        assert {response.status_code for response in await asyncio.gather(*requests)} == {200}


async def test_a_hung_call_is_answered_and_fails_both_checks(pipeline: GatedPipeline) -> None:
    settings = Settings(model="fake", hang_limit_s=0.1)
    async with running(create_app(settings, load_pipelines=pipeline.load)) as client:
        pipeline.close()
        request = asyncio.create_task(client.post("/txt2img", json={"prompt": "a"}))
        await until(lambda: pipeline.calls)
        told = await request  # though its call has not returned
        assert (told.status_code, told.json()["code"]) == (503, "device_lost")
        for path in ("/healthz/live", "/healthz/ready"):
            response = await client.get(path)
            assert (response.status_code, response.json()["health"]["status"]) == (503, "hung")
        pipeline.gate.set()


async def test_a_lost_device_fails_both_checks_for_good(pipeline: GatedPipeline) -> None:
    async with running(create_app(Settings(model="fake"), load_pipelines=pipeline.load)) as client:
        pipeline.error = DeviceLostError()
        lost = await client.post("/txt2img", json={"prompt": "a"})
        assert (lost.status_code, lost.json()["code"], lost.headers["retry-after"]) == (503, "device_lost", "30")
        pipeline.error = None
        assert (await client.post("/txt2img", json={"prompt": "a"})).status_code == 503
        for path in ("/healthz/live", "/healthz/ready"):
            response = await client.get(path)
            assert (response.status_code, response.json()["health"]["status"]) == (503, "device_lost")


async def test_a_draining_service_is_live_but_not_ready_and_closes_connections() -> None:
    app = create_app(Settings(model="fake"))
    async with running(app) as client:
        app.state.context.engine.admission.drain()
        assert (await client.get("/healthz/live")).status_code == 200
        assert (await client.get("/healthz/ready")).json()["health"]["status"] == "draining"
        for path, body in (("/txt2img", {"json": {"prompt": "a"}}), ("/img2img", {"files": {"image": b""}})):
            refused = await client.post(path, **body)
            assert (refused.status_code, refused.json()["code"]) == (503, "draining")
            assert refused.headers["connection"] == "close"
            assert int(refused.headers["retry-after"]) >= 1
