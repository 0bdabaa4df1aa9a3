import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.cli.commands import main
from app.cli.tuning.paired_rounds import PairedRounds
from app.cli.tuning.picture_difference import Difference, difference_of
from app.cli.tuning.trial_process import TrialError, TrialProcess
from app.cli.tuning.tune import Options, tune
from app.cli.tuning.tuned_file import is_tuned, read_table, write_tuned
from app.pipelines.base import Mode
from app.settings import FUSED_OPERATORS, Settings, read_env_file
from tests.conftest import wait_until

WORKER = Path(__file__).parent.parent / "support" / "trial_worker.py"
LESS_FUSED = "fused_operators=group_norm_silu,geglu,gelu,quick_gelu,add_layer_norm"

Effects = Mapping[str, Mapping[str, Any]]


@pytest.fixture(autouse=True)
def _notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes").mkdir()
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr("app.cli.tuning.paired_rounds._TIMING_S", 0)


def command(effects: Effects) -> list[str]:
    return [sys.executable, str(WORKER), json.dumps(effects)]


def starts(tmp_path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (tmp_path / "notes" / "starts.jsonl").read_text().splitlines()]


Tune = Callable[..., dict[str, Any]]


@pytest.fixture
def tuned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Tune:
    """Tune a simulated device: returns the report, with the trials by their change, and the lines of progress."""

    def run(effects: Effects, *, budget_s: float = 60, code: int = 0, **settings: Any) -> dict[str, Any]:
        options = Options(output=tmp_path / "turbo.env", as_json=True, budget_s=budget_s)
        assert tune(Settings(model="demo", **settings), options, worker=command(effects)) == code
        output = capfd.readouterr()
        report: dict[str, Any] = json.loads(output.out)
        report["trials"] = {row["change"]: row for row in report["trials"]}
        report["progress"] = output.err.splitlines()
        return report

    return run


def verdicts(report: Mapping[str, Any], *changes: str) -> list[str]:
    return [report["trials"][change]["verdict"] for change in changes]


# The search.


def test_a_faster_setting_is_kept_verified_against_the_reference_and_written(tuned: Tune, tmp_path: Path) -> None:
    report = tuned({"fused_operators=auto": {"seconds": 0.5}, "npu_graphs=true": {"seconds": 0.5, "largest": 9}})
    assert verdicts(report, "fused_operators=auto", "npu_graphs=true") == ["accepted", "accepted"]
    assert report["winner"]["npu_graphs"] == "true"
    last = report["trials"]["all changes, against the reference"]
    assert last["verdict"] == "verified"
    assert last["txt2img_ratio"] == pytest.approx(0.25)
    assert last["largest"] == 9
    assert last["mean"] < 0.1
    lines = (tmp_path / "turbo.env").read_text().splitlines()
    assert {"TURBO_FUSED_OPERATORS=auto", "TURBO_NPU_GRAPHS=true", "TURBO_BATCHING=off"} <= set(lines)
    assert not any(line.startswith(("TURBO_MODEL", "TURBO_COMPILE", "TURBO_THREADS")) for line in lines)


def test_the_two_fast_modes_are_timed_and_inpainting_is_not(tuned: Tune, tmp_path: Path) -> None:
    report = tuned({"npu_graphs=true": {"seconds": 0.5}})
    assert report["trials"]["npu_graphs=true"]["img2img_ratio"] == pytest.approx(0.5)
    timed = {json.loads(line) for line in (tmp_path / "notes" / "timed.jsonl").read_text().splitlines()}
    assert timed == {"txt2img", "img2img"}


def test_a_slower_setting_is_not_chosen_and_neither_is_one_without_a_gain(tuned: Tune) -> None:
    report = tuned({"fused_operators=auto": {"seconds": 1.2}, "npu_graphs=true": {"seconds": 0.98}})
    assert verdicts(report, "fused_operators=auto", "npu_graphs=true") == ["slower", "no gain"]
    assert report["winner"]["npu_graphs"] == "false"
    assert report["result"] == "No change is better than the reference."


@pytest.mark.parametrize(
    ("effect", "verdict"), [({"levels": 3}, "differs"), ({"dead": ["txt2img 1 steps 0"]}, "dead pictures")]
)
def test_pictures_beyond_the_bound_are_never_chosen_even_if_they_are_fastest(
    tuned: Tune, effect: dict[str, Any], verdict: str
) -> None:
    report = tuned({"npu_graphs=true": {"seconds": 0.1, **effect}})
    assert verdicts(report, "npu_graphs=true") == [verdict]
    assert report["winner"]["npu_graphs"] == "false"


def test_pictures_that_differ_in_a_batch_are_never_chosen(tuned: Tune) -> None:
    report = tuned({"batching=exact": {"at_once": 4}, "batching=fast": {"at_once": 16, "batched": 3}})
    assert verdicts(report, "batching=exact, max_batch=8", "batching=fast, max_batch=8") == ["accepted", "differs"]
    assert report["winner"]["batching"] == "exact"


def test_batching_that_makes_more_pictures_per_second_is_kept(tuned: Tune) -> None:
    report = tuned({"batching=exact": {"at_once": 4}, "max_batch=16": {"at_once": 16}})
    row = report["trials"]["batching=exact, max_batch=16"]
    assert row["verdict"] == "accepted"
    assert row["throughput_ratio"] == pytest.approx(2)
    assert report["winner"]["max_batch"] == "16"
    assert "times the pictures per second" in report["result"]


def test_if_one_fused_operator_is_wrong_the_sound_ones_are_found(tuned: Tune) -> None:
    def effect(names: tuple[str, ...]) -> dict[str, Any]:
        seconds = 0.8 if "attention" in names else 1.0
        return {"seconds": seconds * (0.9 if "gelu" in names else 1), "levels": 50 if "geglu" in names else 0}

    subsets = itertools.chain.from_iterable(
        itertools.combinations(FUSED_OPERATORS, count) for count in range(1, len(FUSED_OPERATORS) + 1)
    )
    effects = {f"fused_operators={','.join(names)}": effect(names) for names in subsets}
    report = tuned({**effects, "fused_operators=auto": {"seconds": 0.5, "levels": 50}})
    assert verdicts(report, "fused_operators=auto", LESS_FUSED) == ["differs", "differs"]
    assert "geglu" not in report["winner"]["fused_operators"].split(",")
    assert {"attention", "gelu"} <= set(report["winner"]["fused_operators"].split(","))


def test_if_attention_is_slower_the_other_operators_are_used(tuned: Tune) -> None:
    report = tuned({"fused_operators=auto": {"seconds": 1.1}, LESS_FUSED: {"seconds": 0.8}})
    assert report["winner"]["fused_operators"] == LESS_FUSED.partition("=")[2]
    assert "fused_operators=attention" not in report["trials"]


@pytest.mark.parametrize("command_name", ["start", "time"])
def test_a_crash_costs_one_trial_and_its_row_quotes_the_last_line_of_the_log(tuned: Tune, command_name: str) -> None:
    report = tuned({"npu_graphs=true": {"end": command_name}, "channels_last=on": {"seconds": 0.5}})
    row = report["trials"]["npu_graphs=true"]
    assert (row["verdict"], row["reason"]) == ("failed", "ended by SIGSEGV: Fatal: the operator crashed")
    assert report["winner"]["channels_last"] == "on"


def test_a_refusal_costs_one_trial_and_its_row_says_why(tuned: Tune) -> None:
    report = tuned({"npu_graphs=true": {"error": "device_unavailable"}})
    assert report["trials"]["npu_graphs=true"]["reason"] == "This device refuses."


def test_a_hang_is_killed(tuned: Tune) -> None:
    started = time.monotonic()
    report = tuned({"npu_graphs=true": {"hang": "time"}, "channels_last=on": {"seconds": 0.5}}, hang_limit_s=0.5)
    assert report["trials"]["npu_graphs=true"]["reason"].startswith("no answer within ")
    assert report["winner"]["channels_last"] == "on"
    assert time.monotonic() - started < 30


def test_if_memory_is_too_small_for_two_processes_trials_are_measured_alone(tuned: Tune) -> None:
    report = tuned({"*": {"alone": True}, "npu_graphs=true": {"seconds": 0.5}})
    row = report["trials"]["npu_graphs=true"]
    assert (row["verdict"], row["unpaired"]) == ("accepted", True)
    assert row["txt2img_ratio"] == pytest.approx(0.5)
    assert report["trials"]["all changes, against the reference"]["verdict"] == "verified"


def test_what_the_operator_has_set_is_not_varied_and_is_part_of_the_reference(tuned: Tune, tmp_path: Path) -> None:
    report = tuned(
        {}, vae_dtype="bf16", fused_operators="geglu", batching="off", prompt_cache_bytes=0, warm_up_sizes="64x64,72x64"
    )
    assert report["pinned"] == {"vae_dtype": "bf16", "fused_operators": "geglu", "batching": "off"}
    assert set(report["trials"]) == {"reference", "npu_graphs=true", "channels_last=on"}
    for environment in starts(tmp_path):
        assert environment["TURBO_FUSED_OPERATORS"] == "geglu"
        assert environment["TURBO_PROMPT_CACHE_BYTES"] == "0"
        assert environment["TURBO_WARM_UP_SIZES"] == "64x64"


@pytest.mark.parametrize(("crashing", "kept"), [("TURBO_NPU_GRAPHS", "false"), ("TURBO_CHANNELS_LAST", "true")])
def test_if_the_verification_fails_the_last_changes_are_given_up_until_it_succeeds(
    tmp_path: Path, crashing: str, kept: str
) -> None:
    """The trial of `fast`, the last one, lets later starts of a change crash."""
    last = tmp_path / "last"
    script = f"""
import json, os, pathlib, runpy, sys
effects = {{"npu_graphs=true": {{"seconds": 0.5}}, "channels_last=on": {{"seconds": 0.5}}}}
if os.environ[{crashing!r}] in ("true", "on") and pathlib.Path({str(last)!r}).exists():
    effects["*"] = {{"end": "time"}}
if os.environ["TURBO_BATCHING"] == "fast":
    pathlib.Path({str(last)!r}).touch()
sys.argv[1:] = [json.dumps(effects)]
runpy.run_path({str(WORKER)!r}, run_name="__main__")
"""
    options = Options(output=tmp_path / "turbo.env")
    assert tune(Settings(model="demo"), options, worker=[sys.executable, "-c", script]) == 0
    text = (tmp_path / "turbo.env").read_text()
    assert f"\nTURBO_NPU_GRAPHS={kept}\nTURBO_VAE_DTYPE=auto\n" in text
    assert "TURBO_CHANNELS_LAST=auto" in text
    assert "Given up, because its verification failed: channels_last=on" in text
    assert ("No change is better than the reference." in text) is (kept == "false")


# The end.


def test_when_the_budget_is_used_up_the_other_trials_are_listed_and_the_file_is_written(
    tuned: Tune, tmp_path: Path
) -> None:
    report = tuned({}, budget_s=0.1)
    assert set(verdicts(report, "fused_operators=auto", "npu_graphs=true", "channels_last=on")) == {"not tried"}
    assert is_tuned(tmp_path / "turbo.env")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_processes_and_writes_what_was_found(tmp_path: Path, number: int, code: int) -> None:
    effects: Effects = {"fused_operators=auto": {"seconds": 0.5}, "npu_graphs=true": {"hang": "time"}}
    script = f"""
import sys
from pathlib import Path
from app.cli.tuning.picture_difference import Difference, difference_of
from app.cli.tuning.trial_process import TrialError, TrialProcess
from app.cli.tuning.tune import Options, tune
from app.settings import Settings
worker = {command(effects)!r}
sys.exit(tune(Settings(model="demo"), Options(output=Path({str(tmp_path / "turbo.env")!r})), worker=worker))
"""
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=file)
    wait_until(lambda: sum(start["TURBO_NPU_GRAPHS"] == "true" for start in starts_or_none(tmp_path)))
    time.sleep(0.3)
    process.send_signal(number)
    assert process.wait(20) == code
    text = (tmp_path / "turbo.env").read_text()
    assert "TURBO_FUSED_OPERATORS=auto" in text
    assert "the winner was not verified" in text
    pids = [int(path.stem) for path in (tmp_path / "notes").glob("*.lock")]
    assert len(pids) >= 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def starts_or_none(tmp_path: Path) -> list[dict[str, str]]:
    try:
        return starts(tmp_path)
    except (OSError, ValueError):
        return []


@pytest.mark.parametrize(
    ("settings", "effects", "reason"),
    [
        ({"model": "fake"}, {}, "no model to measure"),
        ({"model": "hf:nobody"}, {}, "not HUB:OWNER/NAME"),
        ({"model": "demo"}, {"*": {"error": "weights_unusable"}}, "cannot be measured: This device refuses."),
        ({"model": "demo"}, {"*": {"dead": ["img2img 2 steps 0"]}}, "make dead pictures: img2img 2 steps 0"),
    ],
)
def test_a_reference_that_cannot_be_measured_is_an_error_that_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], settings: dict[str, str], effects: Effects, reason: str
) -> None:
    options = Options(output=tmp_path / "turbo.env")
    assert tune(Settings.model_validate(settings), options, worker=command(effects)) == 1
    assert reason in capfd.readouterr().err
    assert not options.output.exists()


# The file.


def test_the_file_gives_exactly_the_winner_s_settings_through_the_variable_that_names_it(
    tuned: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tuned(
        {"fused_operators=auto": {"seconds": 0.5}, "batching=fast": {"at_once": 8}}, vae="/a folder/of 'mine'"
    )
    path = tmp_path / "turbo.env"
    monkeypatch.setattr("os.environ", {**os.environ})
    read_env_file(path)
    settings = Settings()
    assert report["winner"]["vae"] == "/a folder/of 'mine'"
    for name, text in report["winner"].items():
        value = getattr(settings, name)
        assert (str(value).lower() if isinstance(value, bool) else str(value)) == text
    assert settings.model_fields_set == set(report["winner"])


def test_the_file_s_table_can_be_read_back_and_states_the_bound_and_the_versions(tuned: Tune, tmp_path: Path) -> None:
    report = tuned({"fused_operators=auto": {"seconds": 0.5}})
    path = tmp_path / "turbo.env"
    table = read_table(path)
    assert table is not None
    assert len(table.splitlines()) == len(report["trials"]) + 1
    assert "fused_operators=auto" in table
    assert "# Bound: the mean difference from the reference's pictures is at most 2 of 255 levels" in path.read_text()
    assert "# Versions: torch 1" in path.read_text()
    other = tmp_path / "other.env"
    other.write_text("TURBO_PORT=1\n")
    assert read_table(other) is None


def test_a_file_that_tune_did_not_write_is_replaced_by_force_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "turbo.env"
    path.write_text("TURBO_PORT=1\n")
    worker = command({"*": {"kind": "cpu"}})
    assert tune(Settings(model="demo"), Options(output=path), worker=worker) == 2
    assert "was not written by `tune`" in capfd.readouterr().err
    assert path.read_text() == "TURBO_PORT=1\n"
    assert tune(Settings(model="demo"), Options(output=path, force=True), worker=worker) == 0
    assert tune(Settings(model="demo"), Options(output=path), worker=worker) == 0


def test_a_folder_that_is_not_there_is_found_before_anything_is_measured(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tune(Settings(model="demo"), Options(output=tmp_path / "no" / "turbo.env"), worker=["false"]) == 2
    assert "cannot be written: No such file or directory" in capfd.readouterr().err


@pytest.mark.parametrize(("of_tune", "pinned"), [(True, False), (False, True)])
def test_a_second_run_varies_what_the_first_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_tune: bool, pinned: bool
) -> None:
    path = tmp_path / "turbo.env"
    write_tuned(path, facts=[], table=[], settings={"channels_last": "on"})
    if not of_tune:
        path.write_text("TURBO_CHANNELS_LAST=on\n")
    seen: list[Settings] = []

    def record(settings: Settings, _: object) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr("app.cli.commands._COMMANDS", {"tune": record})
    monkeypatch.setattr("os.environ", {**os.environ})
    assert main(["tune", "--env-file", str(path)]) == 0
    assert ("channels_last" in seen[0].model_fields_set) is pinned


# Rounds.


def test_disturbed_rounds_do_not_count() -> None:
    rounds = PairedRounds()
    for candidate_s, best_s in [(1.0, 2.0), (27.0, 2.1), (1.1, 40.0), (1.02, 2.0), (1.0, 2.02)]:
        rounds.add(candidate_s, best_s)
    assert rounds.result.ratio == pytest.approx(0.5, abs=0.02)
    assert rounds.result.seconds == pytest.approx(1.0, abs=0.02)
    assert rounds.are_enough
    assert rounds.are_clear


def test_if_all_rounds_are_disturbed_the_fastest_calls_are_compared() -> None:
    rounds = PairedRounds()
    rounds.add(1.0, 9.0)
    rounds.add(9.0, 2.0)
    assert rounds.result.ratio == pytest.approx(0.5)
    assert not rounds.are_enough


# With real pipelines.


def test_a_trial_of_a_real_pipeline_answers_every_command(tiny_folder: Path, tmp_path: Path) -> None:
    settings = {"MODEL": str(tiny_folder), "DEVICE": "cpu", "WARM_UP_SIZES": "64x64", "BATCHING": "fast"}
    environment = {**os.environ, **{f"TURBO_{name}": text for name, text in settings.items()}}
    process = TrialProcess([sys.executable, "-m", "app.cli.tuning.trial"], environment, log=tmp_path / "log")
    try:
        process.wait_until_warm(limit_s=60)
        assert process.facts["kind"] == "cpu"
        assert process.facts["dtypes"]["vae"] == "float32"
        assert {"torch", "diffusers", "transformers"} <= set(process.facts["versions"])
        files = [tmp_path / name for name in ("first.npz", "again.npz", "alone.npz", "together.npz")]
        for file in files[:2]:
            assert process.ask("pictures", file=str(file), limit_s=60) == {"dead": []}
        assert difference_of(*files[:2]) == Difference()
        process.ask("batch", pictures=3, alone=str(files[2]), together=str(files[3]), limit_s=60)
        assert difference_of(*files[2:]).largest <= 1
        with np.load(files[0]) as made:
            assert {name.partition(" ")[0] for name in made.files} == set(Mode)
        seconds = process.ask("time", mode="img2img", calls=3, limit_s=60)["seconds"]
        assert len(seconds) == 3
        assert min(seconds) > 0
        assert 1 <= process.ask("learn", limit_s=60)["at_once"] <= 8
        assert process.ask("throughput", waiting=5, limit_s=60)["pictures_per_s"] > 0
    finally:
        process.close()
    assert process.alive is False


def test_a_start_that_fails_is_an_error_that_says_why(tmp_path: Path) -> None:
    environment = {**os.environ, "TURBO_MODEL": str(tmp_path / "none")}
    process = TrialProcess([sys.executable, "-m", "app.cli.tuning.trial"], environment, log=tmp_path / "log")
    with pytest.raises(TrialError, match=r"There is no folder .*none"):
        process.wait_until_warm(limit_s=60)
    assert process.alive is False


def test_the_command_measures_a_real_pipeline_and_writes_the_file(tiny_folder: Path, tmp_path: Path) -> None:
    pinned = ["--threads", "1", "--dtype", "fp32", "--channels-last", "auto", "--batching", "off"]
    done = subprocess.run(
        [sys.executable, "-m", "app", "tune", "--json", "-o", str(tmp_path / "turbo.env"), *pinned],
        env={**os.environ, "TURBO_MODEL": str(tiny_folder), "TURBO_DEVICE": "cpu", "TURBO_WARM_UP_SIZES": "64x64"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (row,) = report["trials"]
    assert (row["verdict"], row["largest"]) == ("reference", 0)
    assert report["pinned"] == {"dtype": "fp32", "channels_last": "auto", "threads": "1", "batching": "off"}
    assert "TURBO_THREADS=1" in (tmp_path / "turbo.env").read_text()
