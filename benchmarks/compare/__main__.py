"""Measures the service and its peers on this machine: one model, one run, one section of the report.

    python -m benchmarks.compare [--scope full] [--quick] [--only ours,plain]

benchmarks/README.md explains the measurements.
"""

import argparse
import dataclasses
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.compare import full_report, plots, report
from benchmarks.compare.full import FULL_KEYS, FullComparison
from benchmarks.compare.nano import NanoComparison
from benchmarks.compare.preparation import CACHE, say
from benchmarks.compare.results import FullResults, Results
from benchmarks.compare.sections import with_section
from benchmarks.support import machine
from benchmarks.support.contestants import CONTESTANTS, DEFAULT, ROOT


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    keys = {"nano": [contestant.key for contestant in CONTESTANTS], "full": list(FULL_KEYS)}
    defaults = {"nano": ",".join(DEFAULT), "full": ",".join(FULL_KEYS)}
    parser.add_argument("--scope", choices=keys, default="nano", help="the model's size (default %(default)s)")
    parser.add_argument(
        "--only", help="contestants, from: " + "; ".join(f"{k}: {', '.join(v)}" for k, v in keys.items())
    )
    parser.add_argument("--rounds", type=int, help="rounds of every scenario (3; full 2; quick 1)")
    parser.add_argument("--starts", type=int, help="nano: starts of the bare pipeline and of the service (3; quick 1)")
    parser.add_argument("--share", type=float, help="pictures of a round, relative to the usual number (1; quick 0.5)")
    parser.add_argument("--quick", action="store_true", help="a coarse run of a few minutes")
    parser.add_argument("--nano", action="store_true", help="test the full scope: small networks")
    parser.add_argument(
        "--out", type=Path, help="folder of the results (benchmarks; build/bench/quick if a part is left out)"
    )
    options = parser.parse_args()
    options.only = options.only or defaults[options.scope]
    if unknown := [key for key in options.only.split(",") if key not in keys[options.scope]]:
        parser.error(f"--only accepts {', '.join(keys[options.scope])}, but not {', '.join(unknown)}")
    quick = options.quick
    options.rounds = options.rounds or (1 if quick else 2 if options.scope == "full" else 3)
    options.starts = options.starts or (1 if quick else 3)
    options.share = options.share or (0.5 if quick else 1.0)
    partial = quick or options.nano or options.only != defaults[options.scope]
    options.out = options.out or (CACHE / "quick" if partial else ROOT / "benchmarks")
    return options


def main() -> None:
    """Run the comparison, and write its section of RESULTS.md, its results as JSON, and the plots."""
    options = _options()
    shown = {"rounds": str(options.rounds), "share": f"{options.share:g}"}
    # The service inherits these variables, so the results record them.
    shown |= {name: value for name, value in os.environ.items() if name.startswith("TURBO_")}
    date, described = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"), machine.describe()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # runs `finally`, which stops the servers
    began = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        if options.scope == "full":
            full = FullResults(date=date, machine=described, options=shown)
            FullComparison(options, full).run()
            _finish(full, began)
            _write(options.out, "full", full, full_report.write(full))
        else:
            nano = Results(date=date, machine=described, options={"starts": str(options.starts), **shown})
            NanoComparison(options, nano).run()
            _finish(nano, began)
            _write(options.out, "nano", nano, report.write(nano))
            plots.draw(nano, options.out / "plots")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(error.cmd)} failed:\n{error.stderr}")


def _finish(results: Results, began: float) -> None:
    results.options["minutes"] = f"{(time.perf_counter() - began) / 60:.0f}"


def _write(folder: Path, scope: str, results: Results, section: str) -> None:
    name = "results.json" if scope == "nano" else f"results-{scope}.json"
    (folder / name).write_text(json.dumps(dataclasses.asdict(results), indent=1) + "\n")
    file = folder / "RESULTS.md"
    file.write_text(with_section(file.read_text() if file.exists() else "", scope, section))
    print(section)
    say(f"written to {folder}")


if __name__ == "__main__":
    main()
