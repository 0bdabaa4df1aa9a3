"""Checks hardware reports: a machine, and what `python -m app tune` and `python -m app bench` print on it.

python -m tools.hardware [FILE...]    without files: docs/hardware.md

A file is Markdown. It may be the text of an issue with the form "Hardware report": a report has the headings Machine,
Output of tune and Output of bench, in this order, and the outputs are blocks of code. Exit code 1: each fault is on
stderr.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from markdown_it import MarkdownIt

from app.cli.bench import Measurement
from app.cli.tuning.switches import Verdict
from app.pipelines.base import Mode

DOCUMENT = Path(__file__).parents[1] / "docs/hardware.md"

MACHINE, TUNE, BENCH = "Machine", "Output of tune", "Output of bench"

_NOTHING = "_No response_"
"""GitHub's text for a field of an issue form that was left empty."""

# The output of tune.

_FACTS = {
    "Date": r"(?P<date>\S+), after \d+ s",
    "Service": r"sdxl-turbo-server \d+\.\d+\.\d+",
    "Model": r"\S.*",
    "Device": r"\S.*",
    "Versions": r".*\btorch \d+\.\d+.*",
    "Size": r"\d+x\d+",
    "Bound": r"the mean difference .* is at most \S+ of 255 levels.*",
    "Reference": r"\S.*",
    "Result": r"\S.*",
}
"""The lines before the table that a report must have, each with a pattern for the whole text after the colon."""

_HEAD = ["#", "change", "txt2img ms", "ratio", "img2img ms", "ratio", "pictures/s", "ratio"]
_HEAD += ["largest", "mean", "worst", "verdict"]

_MOST = 255
"""The largest difference of two colour values."""

# The output of bench.

_TITLE = re.compile(r"(?P<model>\S.*) on (?P<device>\S.*) as (?P<dtype>\w+), TURBO_BATCHING=(?:off|exact|fast)")

_ROW = re.compile(
    rf"(?P<mode>{'|'.join(Mode)}) +(?P<width>\d+)x(?P<height>\d+)  (?P<num_inference_steps>\d+) steps  "
    r"batch (?P<batch>\d+) +"
    r"p50 +(?P<p50>[\d.]+) ms  p95 +(?P<p95>[\d.]+) ms +(?P<images_per_s>[\d.]+) images/s +(?P<memory>\d+) MiB  "
    r"\((?P<stages>[^)]*)\)(?:, within (?P<deviation>\d+)/255 of alone)?"
)
_PNG = re.compile(r"PNG +(?P<size>\d+x\d+)  (?P<ms>[\d.]+) ms, on other threads in parallel with the device")
_ADVICE = re.compile(r"For (?P<size>\d+x\d+): TURBO_MAX_BATCH=(?P<batch>\d+)")

_MIB = 1 << 20


@dataclass(slots=True)
class Report:
    """A report as submitted. `where` is the file and the line of its first heading."""

    where: str
    machine: str = ""
    tune: str = ""
    bench: str = ""


def reports(file: Path) -> list[Report]:
    """Return the reports in a Markdown file, in their order."""
    found: list[Report] = []
    heading = ""
    tokens = MarkdownIt("commonmark").parse(file.read_text(encoding="utf-8"))
    for before, token in zip([None, *tokens], tokens, strict=False):
        if before is not None and before.type == "heading_open":
            heading = token.content
            if heading == MACHINE or (heading in (TUNE, BENCH) and not found):
                found.append(Report(f"{file}:{before.map[0] + 1 if before.map else 1}"))
        elif heading == MACHINE and token.type == "inline":
            found[-1].machine += token.content
        elif heading == TUNE and token.type == "fence":
            found[-1].tune += token.content
        elif heading == BENCH and token.type == "fence":
            found[-1].bench += token.content
    return found


def faults(report: Report) -> Iterator[str]:
    """Yield each reason why a report is not well-formed or not plausible."""
    if report.machine in ("", _NOTHING):
        yield f"{MACHINE}: name the processor, its cores, and the accelerator with its driver"
    if not report.tune.strip():
        yield f"{TUNE}: there is no block of code with it"
    if not report.bench.strip():
        yield f"{BENCH}: there is no block of code with it"
    if report.tune.strip() and report.bench.strip():
        facts = dict(re.findall(r"^([A-Z][a-z]+): (.*)$", report.tune, re.MULTILINE))
        yield from (f"{TUNE}: {fault}" for fault in _tune_faults(report.tune, facts))
        yield from (f"{BENCH}: {fault}" for fault in _bench_faults(report.bench, facts))


def _tune_faults(text: str, facts: dict[str, str]) -> Iterator[str]:
    for name, pattern in _FACTS.items():
        if name not in facts:
            yield f"the line `{name}:` is missing"
        elif (found := re.fullmatch(pattern, facts[name])) is None:
            yield f"`{name}: {facts[name]}` is not as tune writes it"
        elif name == "Date" and not _is_date(found["date"]):
            yield f"{found['date']!r} is not a date"
    lines = text.splitlines()
    heads = [number for number, line in enumerate(lines) if re.split(r"\s{2,}", line.strip()) == _HEAD]
    if not heads:
        yield f"the table with the columns {', '.join(_HEAD)} is missing"
        return
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=len(_HEAD) - 1) for line in lines[heads[0] + 1 :]]
    rows = rows[: rows.index([""])] if [""] in rows else rows
    if not rows:
        yield "the table is empty"
    for number, cells in enumerate(rows):
        yield from (f"row {number}: {fault}" for fault in _tune_row_faults(number, cells))


def _is_date(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _tune_row_faults(number: int, cells: list[str]) -> Iterator[str]:
    if len(cells) != len(_HEAD):
        yield f"{len(cells)} columns instead of {len(_HEAD)}"
        return
    if cells[0] != str(number):
        yield f"its number is {cells[0]}"
    figures = dict(zip(["txt2img ms", "its ratio", "img2img ms", "its ratio ", *_HEAD[6:11]], cells[2:11], strict=True))
    values: dict[str, float] = {}
    for name, cell in figures.items():
        if re.fullmatch(r"\d+(\.\d+)?", cell):
            values[name] = float(cell)
        elif cell != "-":
            yield f"{name.strip()} is {cell!r}, not a number"
    differences = [values[name] for name in ("mean", "worst", "largest") if name in values]
    yield from (f"{name.strip()} is not positive" for name in list(figures)[:6] if values.get(name, 1) <= 0)
    if differences != sorted(differences) or any(value > _MOST for value in differences):
        yield "mean, worst and largest difference are not in ascending order up to 255"
    verdict = cells[11].partition(" (")[0]
    if verdict not in list(Verdict):
        yield f"{verdict!r} is not a verdict of tune"
    if (number == 0) != (verdict == Verdict.REFERENCE):
        yield "the first row, and no other, must be the reference"
    if (
        verdict in (Verdict.REFERENCE, Verdict.ACCEPTED, Verdict.VERIFIED)
        and not {"txt2img ms", "img2img ms"} <= values.keys()
    ):
        yield f"it is {verdict} without times"


def _bench_faults(text: str, facts: dict[str, str]) -> Iterator[str]:
    title, *lines = text.strip().splitlines()
    if (found := _TITLE.fullmatch(title)) is None:
        yield f"the first line must name model, device, number format and batching, and is {title!r}"
    else:
        if found["model"].partition(" with the VAE ")[0] != facts.get("Model"):
            yield f"the model is {found['model']}, and that of tune is {facts.get('Model')}"
        if found["device"].lower() not in facts.get("Device", "").lower():
            yield f"the device is {found['device']}, and that of tune is {facts.get('Device')}"
    rows = [row for line in lines if (row := _ROW.fullmatch(line))]
    sizes = {f"{row['width']}x{row['height']}" for row in rows}
    others = [line for line in lines if not _ROW.fullmatch(line)]
    yield from (
        f"{line!r} is not a line of bench"
        for line in others
        if not (_PNG.fullmatch(line) or _ADVICE.fullmatch(line) or line.startswith("Batch sizes that are not listed"))
    )
    for mode in Mode:
        if mode not in {row["mode"] for row in rows if row["batch"] == "1"}:
            yield f"there is no row of {mode} with batch 1"
    for name, pattern in (("PNG", _PNG), ("TURBO_MAX_BATCH", _ADVICE)):
        if {line["size"] for one in others if (line := pattern.fullmatch(one))} != sizes:
            yield f"there is no line with {name} for each size, or one too many"
    before = 0
    for row in rows:
        yield from (f"{row[0].partition('  p50')[0].strip()}: {fault}" for fault in _bench_row_faults(row))
        if int(row["memory"]) < before:
            yield f"{row[0].partition('  p50')[0].strip()}: the peak memory is less than in the row before"
        before = int(row["memory"])


def _bench_row_faults(row: re.Match[str]) -> Iterator[str]:
    batch, p50_ms, p95_ms, rate = int(row["batch"]), float(row["p50"]), float(row["p95"]), float(row["images_per_s"])
    if not (batch >= 1 and int(row["num_inference_steps"]) >= 1 and p50_ms > 0 and int(row["memory"]) > 0):
        yield "a number is not positive"
        return
    if str(_measurement(row)) != row[0]:
        yield "the columns are not as bench writes them"
    if p95_ms < p50_ms:
        yield f"p95 ({p95_ms} ms) is less than p50 ({p50_ms} ms)"
    # Both are rounded: p50 to 0.1 ms, the rate to 0.01.
    if not batch * 1000 / (p50_ms + 0.05) - 0.0051 <= rate <= batch * 1000 / max(p50_ms - 0.05, 0.001) + 0.0051:
        yield f"{rate} images/s are not {batch} in {p50_ms} ms"
    shares = [int(share) for share in re.findall(r"(-?\d+)%", row["stages"])]
    if abs(sum(shares) - 100) > len(shares) / 2:  # each is rounded to 1 %
        yield f"the stages are {sum(shares)} % in sum"
    if (row["deviation"] is None) != (batch == 1) or int(row["deviation"] or 0) > _MOST:
        yield "a row has `within N/255 of alone` if it has a batch"


def _measurement(row: re.Match[str]) -> Measurement:
    """Return the row's figures as bench has them, so that bench's own code can write the row again."""
    stages = dict(re.findall(r"(?:^|, )([a-z ]+) (-?\d+)%", row["stages"]))
    return Measurement(
        mode=Mode(row["mode"]),
        width=int(row["width"]),
        height=int(row["height"]),
        num_inference_steps=int(row["num_inference_steps"]),
        batch=int(row["batch"]),
        calls=0,
        p50_s=float(row["p50"]) / 1000,
        p95_s=float(row["p95"]) / 1000,
        images_per_s=float(row["images_per_s"]),
        stages={name: int(share) / 100 for name, share in stages.items()},
        deviation=None if row["deviation"] is None else int(row["deviation"]),
        memory_bytes=int(row["memory"]) * _MIB,
    )


def main(arguments: Sequence[str]) -> int:
    """Check files, print what was found, and return the exit code."""
    bad = False
    for file in [Path(argument) for argument in arguments] or [DOCUMENT]:
        found = reports(file)
        if not found:
            print(f"{file}: there is no heading {MACHINE!r}, so there is no report.", file=sys.stderr)
            bad = True
        for report in found:
            if reasons := list(faults(report)):
                print(*(f"{report.where}: {reason}." for reason in reasons), sep="\n", file=sys.stderr)
                bad = True
            else:
                print(f"{report.where}: well-formed and plausible.")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
