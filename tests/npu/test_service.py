"""The whole service over HTTP, with the demo model on the simulated NPU."""

import io
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from app.errors import DeviceUnavailableError
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import LoadedPipelines, Mode
from app.pipelines.sdxl_turbo import load_sdxl_turbo
from app.settings import Settings
from app.weights.source import DemoSource
from app.weights.store import locate
from tests.conftest import StartServer, opened, png
from tests.npu.conftest import Service, asking, service_on_npu
from tests.npu.simulator import Npu


def pictures(service: Service) -> list[bytes]:
    """Pictures of all modes with different numbers of steps."""
    made = [service.txt2img(num_inference_steps=steps) for steps in (1, 2, 3, 4)]
    made += [
        service.img2img(made[0].content, num_inference_steps=steps, strength=strength)
        for steps, strength in ((1, 1.0), (2, 0.5), (4, 0.6))
    ]
    made += [
        service.inpaint(made[0].content, half_white(), **fields)
        for fields in ({}, {"num_inference_steps": 2, "strength": 0.5, "fill": "noise", "padding": 16})
    ]
    for response in made:
        assert response.status_code == 200, response.text
    return [response.content for response in made]


def half_white(size: tuple[int, int] = (64, 64)) -> bytes:
    """A mask whose left half is drawn."""
    mask, file = Image.new("L", size), io.BytesIO()
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    mask.save(file, "PNG")
    return file.getvalue()


def test_in_fp32_every_picture_is_the_cpu_s_byte_for_byte(npu: Npu, start_server: StartServer) -> None:
    """The CPU's pictures come from a process without the simulator, with the NPU's networks and memory layout."""
    same_networks = (
        "from app.pipelines.networks import choice, lean, operators\n"
        "choice.fit_to_cpu = lambda pipe: lean.make_lean(pipe.unet, pipe.vae, operators.Operators())"
    )
    settings = {"model": "demo", "device": "cpu", "channels_last": "off"}
    url = start_server(prelude=same_networks, warm=True, **settings).wait_until_started()
    with asking(url) as cpu, service_on_npu() as service:
        assert service.client.get("/healthz/ready").json()["device"] == "npu:0"
        assert pictures(service) == pictures(cpu)
    assert npu.calls["aten::convolution"] > 100
    assert npu.calls["torch_npu.npu_geglu"] > 0


def test_fp32_is_rounded_to_hf32_only_where_that_is_allowed(npu: Npu) -> None:
    """By default torch_npu rounds convolutions in fp32, also those of a VAE in fp32."""
    with service_on_npu() as service:
        assert npu.hf32 == {"conv": False, "matmul": False}
        exact = service.txt2img()
    npu.heal()
    with service_on_npu(allow_tf32=True) as service:
        assert npu.hf32 == {"conv": True, "matmul": True}
        rounded = service.txt2img()
    assert rounded.status_code == exact.status_code == 200
    difference = np.abs(_pixels(exact) - _pixels(rounded))
    assert 0 < difference.max() < 16


@pytest.mark.usefixtures("npu")
def test_in_a_batch_every_picture_has_the_bytes_that_it_has_alone_unless_fast_is_asked_for() -> None:
    """Batches round differently here. `exact` must detect that while warming up, and disable batches."""
    batch = [
        Txt2ImgParams(prompt=f"a cat {seed}", seed=seed, num_inference_steps=2, width=64, height=64)
        for seed in range(4)
    ]
    for batching, deviation in (("exact", 0), ("fast", 1)):
        with service_on_npu(batching=batching, max_batch=4) as service:
            requests = [
                {"prompt": params.prompt, "seed": params.seed, "num_inference_steps": 2, "width": 64, "height": 64}
                for params in batch
            ]
            alone = [_pixels(service.txt2img(**request)) for request in requests]
            with ThreadPoolExecutor(4) as clients:
                together = list(clients.map(lambda request: _pixels(service.txt2img(**request)), requests * 2))
            assert max(np.abs(one - other).max() for one, other in zip(alone * 2, together, strict=True)) <= deviation
            served = service.client.get("/metrics").text
            shared = float(re.search(r'turbo_batch_pictures_sum\{mode="txt2img"\} (\S+)', served)[1])  # type: ignore[index] # the metric exists
            assert batching == "exact" or shared > len(alone) + len(together), "no requests shared a call"


def _pixels(response: httpx.Response) -> npt.NDArray[np.int_]:
    assert response.status_code == 200, response.text
    return np.asarray(opened(response.content), dtype=int)


@pytest.mark.usefixtures("npu")
def test_by_default_it_runs_in_fp16_and_paints_the_same() -> None:
    with service_on_npu() as service:
        exact = pictures(service)
    with service_on_npu(dtype="auto") as service:
        ready = service.client.get("/healthz/ready").json()
        assert (ready["device"], ready["dtype"]) == ("npu:0", "float16")
        half = pictures(service)
    for one, other in zip(exact, half, strict=True):
        difference = np.abs(np.asarray(opened(one), dtype=int) - np.asarray(opened(other), dtype=int))
        assert difference.mean() < 0.5


def load(device: str = "npu", **options: Any) -> LoadedPipelines:
    settings = Settings(device=device, **options)
    return load_sdxl_turbo(locate(DemoSource(), settings.weights_dir), settings, model="demo")


def test_every_component_is_on_the_npu_that_was_asked_for(npu: Npu) -> None:
    npu.count = 2
    loaded = load("npu:1")
    assert loaded.device_name == "npu:1"
    for mode in Mode:
        components = loaded.by_mode[mode].pipe.components  # type: ignore[attr-defined] # what is behind the seam
        modules = [part for part in components.values() if isinstance(part, torch.nn.Module)]
        assert len(modules) == 4
        assert {tensor.device for part in modules for tensor in (*part.parameters(), *part.buffers())} == {
            torch.device("npu", 1)
        }


def test_the_second_npu_serves_too_and_is_the_device_thread_s_current_one(npu: Npu) -> None:
    npu.count = 2
    with service_on_npu(device="npu:1") as service:
        assert len(pictures(service)) == 9
    [thread] = npu.set_device_threads
    assert thread.startswith("device")


def test_torch_npu_is_told_not_to_compile_every_shape_nor_to_keep_private_layouts(npu: Npu) -> None:
    with service_on_npu():
        assert npu.calls["jit_compile=False"] == 1
        assert npu.calls["config.allow_internal_format=False"] == 1


@pytest.mark.usefixtures("npu")
def test_auto_takes_the_npu_where_there_is_one() -> None:
    with service_on_npu(device="auto") as service:
        assert service.client.get("/healthz/ready").json()["device"] == "npu:0"


def test_the_cpu_can_be_asked_for_where_torch_npu_is_installed(npu: Npu) -> None:
    """diffusers calls torch_npu's kernels for CPU tensors too, but the kernels reject them."""
    with service_on_npu(device="cpu") as service:
        npu.calls.clear()
        assert service.txt2img().status_code == 200
    assert npu.calls["torch_npu.npu_geglu"] == 0


@pytest.mark.usefixtures("npu")
def test_an_npu_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(DeviceUnavailableError, match=r"TURBO_DEVICE=npu:1 is not available: 1 visible npu devices"):
        load("npu:1")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"fused_operators": "geglu", "device": "cpu"}, "TURBO_FUSED_OPERATORS=geglu needs an NPU"),
        ({"npu_graphs": True, "device": "cpu"}, "TURBO_NPU_GRAPHS needs an NPU"),
    ],
)
@pytest.mark.usefixtures("npu")
def test_options_that_cannot_work_are_refused_at_start(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(DeviceUnavailableError, match=reason):
        load(**settings)


@pytest.mark.usefixtures("npu")
def test_the_vae_keeps_the_dtype_that_it_was_given_at_load() -> None:
    loaded = load(vae_dtype="bf16")
    pipe = loaded.by_mode[Mode.TXT2IMG].pipe  # type: ignore[attr-defined] # what is behind the seam
    assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.float16, torch.bfloat16)


def test_a_white_upload_that_is_kept_white_is_a_picture(service: Service) -> None:
    made = service.img2img(png((64, 64), "white"), prompt="a red circle on a white background", strength=0.5)
    assert made.status_code == 200
