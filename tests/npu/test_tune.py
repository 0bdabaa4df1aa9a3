"""Tuning on the simulated NPU, with costs, failures and deviations that its owner may meet."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from app.cli.tuning.tune import Options, tune
from app.settings import Settings

WORKER = (
    sys.executable,
    "-c",
    "import tests.npu.child, runpy; runpy.run_module('app.cli.tuning.trial', run_name='__main__')",
)

pytestmark = pytest.mark.timeout(600)

PINNED = {"vae_dtype": "fp32", "channels_last": "off", "batching": "off"}
"""Switches that these tests do not vary, to take less time."""


def tuned(
    folder: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    hardware: dict[str, Any],
    **pinned: str,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Tune on hardware with these properties; return the trials by their change, and the report."""
    monkeypatch.setenv("NPU_SETTINGS", json.dumps(hardware))
    settings = Settings.model_validate(
        {"model": str(model), "device": "npu", "dtype": "fp16", "warm_up_sizes": "64x64", **PINNED, **pinned}
    )
    options = Options(output=folder / "turbo.env", budget_s=300, as_json=True)
    assert tune(settings, options, worker=WORKER) == 0
    report = json.loads(capsys.readouterr().out)
    return {trial["change"]: trial for trial in report["trials"]}, report


@pytest.mark.long
@pytest.mark.only_long
def test_a_graph_that_crashes_costs_one_trial(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.cli.tuning.paired_rounds._TIMING_S", 0.0)
    trials, report = tuned(
        tmp_path, tiny_folder, capsys, monkeypatch, hardware={"graph_fault": "exit"}, fused_operators="auto"
    )
    assert trials["npu_graphs=true"]["verdict"] == "failed"
    assert "exit code 139" in trials["npu_graphs=true"]["reason"]
    assert report["winner"]["npu_graphs"] == "false"
    assert report["device"].startswith("Ascend910B4")
    assert {"torch_npu", "torch"} <= set(report["versions"])
    assert "TURBO_NPU_GRAPHS=false" in (tmp_path / "turbo.env").read_text()


@pytest.mark.long
@pytest.mark.only_long
def test_fused_operators_win_without_a_slow_attention_and_a_graph_that_crashes_costs_one_trial(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware = {
        "launch_s": 0.0002,
        "costs_s": {"npu_fused_infer_attention_score": 0.05},
        "graph_fault": "exit",
    }
    trials, report = tuned(tmp_path, tiny_folder, capsys, monkeypatch, hardware=hardware)
    without_attention = "group_norm_silu,geglu,gelu,quick_gelu,add_layer_norm"
    assert trials["fused_operators=auto"]["verdict"] == "slower"
    assert trials[f"fused_operators={without_attention}"]["verdict"] == "accepted"
    assert trials["npu_graphs=true"]["verdict"] == "failed"
    assert "exit code 139" in trials["npu_graphs=true"]["reason"]
    assert report["winner"]["fused_operators"] == without_attention
    assert report["winner"]["npu_graphs"] == "false"
    assert report["verified"]
    assert report["pinned"] == {"dtype": "fp16", **PINNED}
    assert f"TURBO_FUSED_OPERATORS={without_attention}" in (tmp_path / "turbo.env").read_text()


@pytest.mark.long
@pytest.mark.only_long
def test_an_operator_that_computes_something_else_is_found_by_its_pictures_and_the_others_are_kept(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes the check at the start."""
    hardware = {"launch_s": 0.0002, "later_lies": ["npu_add_layer_norm"]}
    trials, report = tuned(tmp_path, tiny_folder, capsys, monkeypatch, hardware=hardware, npu_graphs="false")
    assert trials["fused_operators=auto"]["verdict"] == "differs"
    assert "add_layer_norm" not in report["winner"]["fused_operators"]
    assert "attention" in report["winner"]["fused_operators"]
    assert report["verified"]
