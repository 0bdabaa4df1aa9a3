import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.bench import Measurement, bench, recommended_batch
from app.pipelines.base import BatchKey, LoadedPipelines, Mode
from app.pipelines.batch_sizes import BatchSizes
from app.settings import Settings
from tests.support.gated_pipeline import GatedPipeline


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cli.bench._CELL_S", 0)


def measured(batch: int, images_per_s: float, *, mode: Mode = Mode.TXT2IMG) -> Measurement:
    steps = {Mode.TXT2IMG: 1, Mode.IMG2IMG: 2, Mode.INPAINT: 4}[mode]
    return Measurement(
        mode=mode,
        width=64,
        height=64,
        num_inference_steps=steps,
        batch=batch,
        calls=3,
        p50_s=batch / images_per_s,
        p95_s=batch / images_per_s,
        images_per_s=images_per_s,
        stages={},
        deviation=None,
        memory_bytes=0,
    )


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({1: 10, 2: 15, 4: 20, 8: 20.1}, 4),
        ({1: 10, 2: 9, 4: 8}, 1),
        ({1: 10, 2: 10.1, 4: 10.2, 8: 10.25}, 1),
        ({1: 10, 2: 9, 4: 14}, 4),
        ({1: 10}, 1),
    ],
)
def test_the_recommended_batch_is_the_smallest_beyond_which_none_is_notably_faster(
    rates: dict[int, float], best: int
) -> None:
    assert recommended_batch([measured(batch, rate) for batch, rate in rates.items()], (64, 64)) == best


@pytest.mark.parametrize("mode", [Mode.IMG2IMG, Mode.INPAINT])
def test_the_recommended_batch_is_enough_for_every_mode_and_of_its_own_size(mode: Mode) -> None:
    rows = [measured(1, 10), measured(2, 10), measured(1, 10, mode=mode), measured(2, 20, mode=mode)]
    assert recommended_batch(rows, (64, 64)) == 2
    assert recommended_batch(rows, (128, 64)) == 1


def test_it_measures_no_size_above_the_first_that_does_not_pay(
    tiny_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.pipelines.batch_sizes._WORTHWHILE", 0.0)  # none pays
    calls: list[int] = []
    measure = BatchSizes.measure

    def record(sizes: BatchSizes, key: BatchKey, pictures: int, seconds: float) -> None:
        calls.append(pictures)
        measure(sizes, key, pictures, seconds)

    monkeypatch.setattr(BatchSizes, "measure", record)
    settings = Settings(model=str(tiny_folder), device="cpu", warm_up_sizes="64x64", max_batch=8)
    assert bench(settings, as_json=True) == 0
    rows = json.loads(capfd.readouterr().out)["measurements"]
    assert {row["batch"] for row in rows} == {1, 2}
    pairs = sum(row["calls"] + 3 for row in rows if row["batch"] == 2)  # the first call, the stages, the difference
    assert calls.count(2) == pairs, "a row of two is of two at once, and not of what pays"


@pytest.mark.parametrize(
    ("batching", "most"), [("exact", 2), pytest.param("fast", 4, marks=[pytest.mark.long, pytest.mark.only_long])]
)
def test_it_measures_every_mode_size_steps_and_batch_and_says_how_far_a_batch_is_from_alone(
    tiny_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, batching: str, most: int
) -> None:
    monkeypatch.setattr("app.pipelines.batch_sizes._WORTHWHILE", float("inf"))  # every size pays
    monkeypatch.setattr("app.cli.bench._CELL_S", 0)
    settings = Settings.model_validate(
        {
            "model": str(tiny_folder),
            "device": "cpu",
            "warm_up_sizes": "64x64,72x64",
            "max_batch": most,
            "batching": batching,
        }
    )
    assert bench(settings, as_json=True) == 0
    output = capfd.readouterr()
    report = json.loads(output.out)
    kinds = {(row["mode"], row["width"], row["num_inference_steps"], row["batch"]) for row in report["measurements"]}
    defaults = (("txt2img", 1), ("img2img", 2), ("inpaint", 4))
    batches = [(mode, step, batch) for mode, step in defaults for batch in (1, 2, 4) if batch <= most]
    steps = [("txt2img", 2, 1), ("txt2img", 3, 1), ("txt2img", 4, 1), ("img2img", 4, 1)]
    assert kinds == {(mode, width, step, batch) for mode, step, batch in batches + steps for width in (64, 72)}
    for row in report["measurements"]:
        assert row["calls"] >= 3
        assert 0 < row["p50_s"] <= row["p95_s"]
        assert {"text", "unet", "vae decode", "other"} <= set(row["stages"])
        assert sum(row["stages"].values()) == pytest.approx(1)
        assert row["memory_bytes"] > 1 << 20
        if row["batch"] == 1:
            assert row["deviation"] is None
        else:
            assert row["deviation"] <= (0 if batching == "exact" else 1)
    assert set(report["recommended_max_batch"]) == {"64x64", "72x64"}
    assert f"txt2img 64x64, 1 steps, {most} at once" in output.err


NOISY = """
import os
import app.cli.bench
import app.main
load = app.main.load_weights
def noisy(*arguments, **options):
    os.write(1, b"from C\\n")
    print("from a library")
    return load(*arguments, **options)
app.main.load_weights = noisy
app.cli.bench._CELL_S = 0
from app.cli.commands import main
main(["bench", "--json", "--device", "cpu", "--warm-up-sizes", "64x64", "--max-batch", "1"])
"""
"""Loads the model as CANN does, which writes to stdout."""


def test_stdout_has_the_figures_alone_whatever_libraries_write_there(tiny_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOISY],
        env={**os.environ, "TURBO_MODEL": str(tiny_folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["measurements"]) == 7
    assert "from C" in done.stderr
    assert "from a library" in done.stderr


@pytest.mark.parametrize("when", ["warming up", "measuring"])
def test_a_call_that_hangs_ends_it_with_the_reason(
    pipeline: GatedPipeline, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], when: str
) -> None:
    def load(*_: object, **__: object) -> LoadedPipelines:
        if when == "warming up":
            pipeline.gate.clear()
            return pipeline.load()
        return dataclasses.replace(pipeline.load(), on_warm=pipeline.gate.clear)

    monkeypatch.setattr("app.main.load_weights", load)
    try:
        assert bench(Settings(model="demo", device="cpu", hang_limit_s=0.2), as_json=True) == 1
    finally:
        pipeline.gate.set()
    output = capfd.readouterr()
    assert "did not return within 0." in output.err
    assert output.out == ""


def test_for_people_it_prints_a_line_for_each_kind_and_the_recommendation(
    tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"model": str(tiny_folder), "device": "cpu", "warm_up_sizes": "64x64", "max_batch": 1}
    assert bench(Settings.model_validate(settings), as_json=False) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "TURBO_BATCHING=exact" in lines[0]
    assert sum(line.startswith(("txt2img", "img2img", "inpaint")) for line in lines) == 7
    assert lines[-2] == "For 64x64: TURBO_MAX_BATCH=1"


@pytest.mark.parametrize(("model", "reason"), [("fake", "no model to measure"), ("/nowhere", "/nowhere")])
def test_what_cannot_be_measured_is_an_error_that_says_why(
    capfd: pytest.CaptureFixture[str], model: str, reason: str
) -> None:
    assert bench(Settings(model=model), as_json=False) == 1
    assert reason in capfd.readouterr().err
