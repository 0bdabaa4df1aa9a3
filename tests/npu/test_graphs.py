"""NPU graphs: which networks have them, when they are compiled, kept between starts, and what a failure costs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import Mode
from app.pipelines.sdxl_turbo import load_sdxl_turbo
from app.settings import Settings
from tests.npu.conftest import service_on_npu
from tests.npu.launches import count
from tests.npu.simulator import Npu
from tests.npu.test_service import half_white

NETWORKS = 5
"""Two text encoders, the UNet, and the VAE's encoder and decoder."""


def test_every_network_is_compiled_while_warming_up_and_none_in_a_request_whatever_its_size(
    npu: Npu, tiny_folder: Path
) -> None:
    with service_on_npu(model=str(tiny_folder), npu_graphs=True) as service:
        compiled = npu.calls["npugraph_ex"]
        assert compiled == NETWORKS, "all modes share the UNet"
        for width in (64, 96):
            for steps in (1, 2):
                kind = {"width": width, "height": 64, "num_inference_steps": steps}
                made = service.txt2img(**kind)
                changed = service.img2img(made.content, strength=1, **kind)
                inpainted = service.inpaint(made.content, half_white((width, 64)), **kind)
                assert {response.status_code for response in (made, changed, inpainted)} == {200}
        long = service.txt2img(prompt="fox " * 100, prompt_mode="chunked", width=64, height=64)
        assert (long.status_code, long.headers["x-prompt-tokens"]) == (200, "308")
        assert npu.calls["npugraph_ex"] == compiled


@pytest.mark.long
@pytest.mark.only_long
def test_a_graph_that_cannot_be_compiled_costs_a_log_line_and_not_the_start(
    npu: Npu, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    npu.graph_fault = "raise"
    with service_on_npu(model=str(tiny_folder), npu_graphs=True) as service:
        assert service.txt2img(width=64, height=64).status_code == 200
    assert caplog.text.count("unet at 1x4x8x8 works without a graph") == 1
    assert "the networks have 0 graphs" in caplog.text


@pytest.mark.long
@pytest.mark.only_long
@pytest.mark.usefixtures("npu")
def test_more_graphs_than_the_limit_are_not_compiled(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.pipelines.networks.choice.CAPTURE_LIMIT", 1)
    loaded = load_sdxl_turbo(tiny_folder, Settings(device="npu", dtype="fp32", npu_graphs=True), model="tiny")
    for width in (64, 96):
        picture = Txt2ImgParams(prompt="a cat", seed=0, num_inference_steps=1, width=width, height=64)
        assert loaded.by_mode[Mode.TXT2IMG]([picture])
    assert caplog.text.count("unet has 1 graphs, which is the limit: 1x4x8x12 works without") == 1


@pytest.mark.long
@pytest.mark.only_long
def test_graphs_are_kept_for_the_next_start_of_the_same_service(npu: Npu, tmp_path: Path, tiny_folder: Path) -> None:
    picture = Txt2ImgParams(prompt="a cat", seed=0, num_inference_steps=1, width=64, height=64)

    def start(**options: Any) -> tuple[int, int]:
        npu.calls.clear()
        torch._dynamo.reset()
        settings = {"device": "npu", "dtype": "fp32", "npu_graphs": True, "graph_cache_dir": tmp_path, **options}
        loaded = load_sdxl_turbo(tiny_folder, Settings.model_validate(settings), model="tiny")
        assert loaded.by_mode[Mode.TXT2IMG]([picture])
        return npu.calls["graphs into the cache"], npu.calls["graphs from the cache"]

    networks = NETWORKS - 1  # no VAE encoder
    assert start() == (networks, 0)
    assert start() == (0, networks)
    npu.lies = {"npu_geglu"}
    assert start() == (networks, 0), "the operator is not used any more"
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.only_long
def test_a_folder_that_cannot_be_written_costs_the_cache_only(
    npu: Npu, tmp_path: Path, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    settings = Settings(device="npu", dtype="fp32", npu_graphs=True, graph_cache_dir=tmp_path / "file")
    loaded = load_sdxl_turbo(tiny_folder, settings, model="tiny")
    picture = Txt2ImgParams(prompt="a cat", seed=0, num_inference_steps=1, width=64, height=64)
    assert loaded.by_mode[Mode.TXT2IMG]([picture])
    assert "graphs are not cached in" in caplog.text
    assert npu.calls["npugraph_ex"] > 0
    assert count(npu, lambda: loaded.by_mode[Mode.TXT2IMG]([picture])).launches < 40, "graphs are a launch each"
