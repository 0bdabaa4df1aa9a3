"""The comparison at full size, with small networks; and the sections of RESULTS.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compare.full import CELLS, EIGHT, FOUR, IMG2IMG, OPENVINO, OURS, PLAIN, SMALL, TXT2IMG
from benchmarks.compare.full_report import targets, write
from benchmarks.compare.results import FullResults, Measurement, Peak, Start
from benchmarks.compare.sections import with_section

GIB = 2**30


def measured(server: str, scenario: str, *cpu_s: float) -> list[Measurement]:
    """One picture in each round."""
    return [
        Measurement(
            server=server,
            scenario=scenario,
            round=number,
            images=1,
            cpu_s=each,
            wall_s=each,
            others_cpu_s=0,
            latencies_s=[each],
            bad=[],
        )
        for number, each in enumerate(cpu_s)
    ]


def started(server: str, ready_s: float) -> Start:
    return Start(server=server, ready_s=ready_s, first_picture_s=ready_s, cpu_s=ready_s)


@pytest.fixture
def results() -> FullResults:
    return FullResults(
        date="2026-01-01",
        machine={"cores": "2"},
        options={},
        starts=[started("bare", 20), started(OURS, 22)],
        peaks=[
            Peak(server=OURS, under_load_bytes=7 * GIB, since_start_bytes=9 * GIB),
            Peak(server=OURS, under_load_bytes=8 * GIB, since_start_bytes=9 * GIB),
            Peak(server=OPENVINO, under_load_bytes=16 * GIB, since_start_bytes=16 * GIB),
        ],
        weights_bytes=5 * GIB,
        measurements=[
            *measured(OURS, TXT2IMG.key, 6, 12, 8),
            *measured(OPENVINO, TXT2IMG.key, 10, 20, 10),
            *measured(PLAIN, TXT2IMG.key, 12, 30, 40),
            *measured(OURS, IMG2IMG.key, 9, 18, 12),
            *measured(OURS, FOUR.key, 4, 6, 4),
            *measured(OURS, SMALL.key, 3, 3, 3),
            *measured(OURS, EIGHT.key, 2, 2, 2),
        ],
    )


def test_the_targets_compare_cells_of_the_same_round_and_say_what_was_not_measured(results: FullResults) -> None:
    assert [(target.value, target.verdict) for target in targets(results)] == [
        (0.6, "met"),
        (0.4, "met"),
        (None, "not measured"),
        (None, "not measured"),
        (1.5, "**missed**"),
        (2.0, "met"),
        (1.5, "**missed**"),
        (0.5, "met"),
        (1.6, "**missed**"),
        (1.1, "met"),
    ]


def test_the_table_has_the_median_and_the_range_of_the_rounds(results: FullResults) -> None:
    row = next(line for line in write(results).splitlines() if line.startswith("| this service |"))
    assert row.split(" | ")[1] == "8.00 (6.00 to 12.00)"


def test_each_scope_replaces_its_own_section_and_keeps_the_other_s() -> None:
    full = with_section("", "full", "### Targets\n\nold full\n")
    both = with_section(full, "nano", "### Targets\n\nnano")
    again = with_section(both, "full", "new full")
    assert both.index("nano") < both.index("old full")
    assert "old full" not in again
    assert "### Targets\n\nnano\n" in again
    assert "new full" in again
    assert with_section(again, "full", "new full") == again


@pytest.mark.long
@pytest.mark.only_long
def test_the_service_is_measured_in_every_cell_and_its_answers_are_pictures(tmp_path: Path) -> None:
    options = ["--nano", "--only", "ours", "--rounds", "1", "--share", "0.1", "--out", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "benchmarks.compare", "--scope", "full", *options], check=True)
    found = json.loads((tmp_path / "results-full.json").read_text())
    assert [(m["server"], m["scenario"], m["bad"]) for m in found["measurements"]] == [
        ("ours", cell.key, []) for cell in CELLS
    ]
    assert all(m["images"] and m["cpu_s"] for m in found["measurements"])
    assert [start["server"] for start in found["starts"]] == ["bare", "ours"]
    (peak,) = found["peaks"]
    assert found["weights_bytes"] < peak["under_load_bytes"] <= peak["since_start_bytes"]
    assert "this service" in (tmp_path / "RESULTS.md").read_text()
