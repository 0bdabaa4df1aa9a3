"""The checker of hardware reports: the published reports pass, and each fault of a report is named."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tools import hardware
from tools.hardware import BENCH, DOCUMENT, MACHINE, TUNE, faults, reports

ROOT = Path(__file__).parents[2]

SUBMITTED = (Path(__file__).parent / "fixtures/hardware-report.txt").read_text(encoding="utf-8")
"""An invented report, as GitHub writes the answers of the issue form."""


def check(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "report.md"
    file.write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "tools.hardware", file], cwd=ROOT, capture_output=True, text=True, check=False
    )


def reasons(text: str, folder: Path) -> list[str]:
    file = folder / "report.md"
    file.write_text(text, encoding="utf-8")
    return [reason for report in reports(file) for reason in faults(report)]


@pytest.mark.parametrize("number", range(len(reports(DOCUMENT))))
def test_a_published_report_is_well_formed_and_plausible(number: int) -> None:
    assert list(faults(reports(DOCUMENT)[number])) == []


def test_the_document_has_a_report_and_the_checker_reads_it_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert hardware.main([]) == 0
    assert capsys.readouterr().out.count("well-formed and plausible") == len(reports(DOCUMENT)) > 0


def test_the_document_says_which_hardware_nobody_has_reported() -> None:
    devices = " ".join(report.bench.splitlines()[0] for report in reports(DOCUMENT))
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, device in (("Ascend NPU", "npu"), ("CUDA GPU", "cuda")):
        assert (f"no {name}" in text) == (f" on {device}" not in devices)


def test_the_text_of_an_issue_is_a_report(tmp_path: Path) -> None:
    done = check(SUBMITTED, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("report.md:1: well-formed and plausible.\n")


def test_the_issue_form_has_the_headings_of_a_report() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/hardware.yml").read_text(encoding="utf-8"))
    fields = {entry["attributes"]["label"]: entry for entry in form["body"] if "label" in entry["attributes"]}
    assert [name for name in fields if name in (MACHINE, TUNE, BENCH)] == [MACHINE, TUNE, BENCH]
    assert all(fields[name]["attributes"]["render"] == "text" for name in (TUNE, BENCH))


def test_every_fault_is_printed_and_the_exit_code_is_1(tmp_path: Path) -> None:
    done = check(SUBMITTED.replace("p95    71.0", "p95    69.0").replace("Size: 512x512\n", ""), tmp_path)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert re.search(r"report\.md:1: Output of tune: the line `Size:` is missing\.$", first)
    assert second.endswith(
        "Output of bench: txt2img 512x512  1 steps  batch 1: p95 (69.0 ms) is less than p50 (70.0 ms)."
    )


def test_a_file_without_a_report_fails(tmp_path: Path) -> None:
    done = check("# Something else\n", tmp_path)
    assert done.returncode == 1
    assert "there is no report" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        # Machine, and missing parts.
        ("Atlas 800I A2, one 910B4 with 32 GB, driver 25.2.0, CANN 9.1.0", "_No response_", "Machine: name the proc"),
        ("### Output of bench", "### Other", "Output of bench: there is no block"),
        ("### Output of tune", "### Other", "Output of tune: there is no block"),
        # The facts of tune.
        ("Service: sdxl-turbo-server 4.5.6\n", "", "the line `Service:` is missing"),
        ("Service: sdxl-turbo-server 4.5.6", "Service: sdxl-turbo-server", "`Service: sdxl-turbo-server` is not as"),
        ("Device: Ascend910B4 (npu:0, of 1 visible)\n", "", "the line `Device:` is missing"),
        ("Model: openmind:PyTorch-NPU/sdxl-turbo\n", "", "the line `Model:` is missing"),
        ("Versions: torch 2.12.0, ", "Versions: ", "`Versions: torch_npu 2.12.0, diffusers 0.42.0` is not as"),
        ("2026-01-02T03:04:05+00:00", "2026-13-02T03:04:05+00:00", "'2026-13-02T03:04:05+00:00' is not a date"),
        # The table of tune.
        ("  txt2img ms  ratio", "  txt2img s  ratio", "the table with the columns"),
        ("100.0      -       120.0", "100,0      -       120.0", "row 0: txt2img ms is '100,0', not a number"),
        ("100.0      -       120.0", "  0.0      -       120.0", "row 0: txt2img ms is not positive"),
        ("100.0      -       120.0", "    -      -       120.0", "row 0: it is reference without times"),
        ("   12   0.20   0.30  accepted", "   12   0.40   0.30  accepted", "row 1: mean, worst and largest"),
        ("   12   0.20   0.30  accepted", "  256   0.20   0.30  accepted", "row 1: mean, worst and largest"),
        ("  failed (it", "  broken (it", "row 2: 'broken' is not a verdict of tune"),
        (
            "0.00   0.00  reference",
            "0.00   0.00  accepted",
            "row 0: the first row, and no other, must be the reference",
        ),
        ("  3  all", "  4  all", "row 3: its number is 4"),
        ("  1  compile=graphs  ", "  1  compile=graphs  x  ", "row 1: "),
        # The output of bench.
        (" on npu:0 as float16, ", " as float16, ", "the first line must name model, device"),
        ("/sdxl-turbo on npu:0", "/other on npu:0", "the model is openmind:PyTorch-NPU/other, and that of tune is"),
        (" on npu:0 as", " on cpu as", "the device is cpu, and that of tune is Ascend910B4"),
        ("p50    70.0 ms", "p50  70.0 ms", "batch 1: the columns are not as bench writes them"),
        ("p50    70.0 ms", "p50    70.0 s ", "is not a line of bench"),
        ("p50    70.0 ms", "p50     0.0 ms", "batch 1: a number is not positive"),
        ("   14.29 images/s", "   14.39 images/s", "batch 1: 14.39 images/s are not 1 in 70.0 ms"),
        ("   15.38 images/s", "    7.69 images/s", "batch 2: 7.69 images/s are not 2 in 130.0 ms"),
        ("11.11 images/s    9500", "11.11 images/s    9400", "the peak memory is less than in the row before"),
        ("(text 3%, unet 60%", "(text 3%, unet 50%", "batch 1: the stages are 90 % in sum"),
        (", within 0/255 of alone", "", "batch 2: a row has `within N/255 of alone` if it has a batch"),
        ("inpaint 512x512  4 steps  batch 1 ", "inpaint 512x512  4 steps  batch 2 ", "no row of inpaint with batch 1"),
        ("PNG     512x512  1.9 ms, on other threads in parallel with the device\n", "", "no line with PNG for each"),
        ("For 512x512: TURBO_MAX_BATCH=2\n", "", "no line with TURBO_MAX_BATCH for each size"),
    ],
)
def test_a_fault_of_a_report_is_named(tmp_path: Path, old: str, new: str, reason: str) -> None:
    assert old in SUBMITTED
    found = reasons(SUBMITTED.replace(old, new, 1), tmp_path)
    assert any(reason in one for one in found), found


def test_each_of_several_reports_is_checked(tmp_path: Path) -> None:
    broken = SUBMITTED.replace("p95    71.0", "p95    69.0")
    assert len(reasons(SUBMITTED + broken + SUBMITTED, tmp_path)) == 1
