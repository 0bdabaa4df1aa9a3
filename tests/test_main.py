import subprocess
import sys

from app.main import create_app
from app.settings import Settings
from tests.conftest import running
from tests.support.gated_pipeline import GatedPipeline


def test_importing_and_creating_the_app_loads_no_model_and_no_torch() -> None:
    code = """
import sys
from app.main import create_app
from app.settings import Settings
create_app(Settings(model="demo"))
assert not {"torch", "diffusers", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_the_pipelines_are_loaded_when_the_lifespan_starts_and_dropped_when_it_ends(
    pipeline: GatedPipeline,
) -> None:
    app = create_app(Settings(model="fake"), load_pipelines=pipeline.load)
    registry = app.state.context.registry
    assert not registry.warm
    async with running(app):
        assert registry.warm
    assert not registry.warm


async def test_two_apps_in_one_process_do_not_meet() -> None:
    one, other = (create_app(Settings(model="fake")) for _ in range(2))
    async with running(one) as client, running(other) as another:
        await client.post("/txt2img", json={"prompt": "a"})
        assert 'turbo_inference_seconds_count{mode="txt2img"} 1.0' in (await client.get("/metrics")).text
        assert 'turbo_inference_seconds_count{mode="txt2img"} 0.0' in (await another.get("/metrics")).text
