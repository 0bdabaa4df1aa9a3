"""The results of the simulation: JSON in this folder, tables, and plots in benchmarks/plots."""

import json
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.fleet.autoscaling import ALL_RULES, CAPACITY, CHOSEN, RAY_CHOSEN, RULES, WORLDS, try_rule, try_world

_FILE = Path(__file__).parent / "autoscaling.json"
_PLOTS = Path(__file__).parents[1] / "plots"
_OURS, _OTHER, _GREY = "#c1272d", "#0072b2", "#4d4d4d"
_MOST_SEEN = 0.001


def measure(names: Collection[str]) -> None:
    """Try the rules and worlds with these names, all if there are none, on all cores, and keep the results."""
    rules = [rule.name for rule in ALL_RULES if not names or rule.name in names]
    worlds = [world for world in WORLDS if not names or world in names]
    found = _load()
    with ProcessPoolExecutor() as pool:
        for name, (result, flapping) in zip(rules, pool.map(try_rule, rules), strict=True):
            found["rules"][name] = {**asdict(result), "flapping": flapping}
        for name, result in zip(worlds, pool.map(try_world, worlds), strict=True):
            found["worlds"][name] = asdict(result)
    _FILE.write_text(json.dumps(_rounded(found)) + "\n", encoding="utf-8")


def tables() -> Iterator[str]:
    """Yield the lines of the tables of rules and worlds."""
    found = _load()
    yield "| signal and target | p99 | no picture | 429 at an attempt | devices | of the ideal | turns an hour |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for rule in ALL_RULES:
        if one := found["rules"].get(rule.name):
            name = f"**{rule.name}**" if rule in (CHOSEN, RAY_CHOSEN) else rule.name
            yield f"| {name} {_figures(one)} | {one['flapping']:.1f} |"
    yield ""
    yield "| changed | p99 | no picture | 429 at an attempt | devices | of the ideal |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for world in WORLDS:
        if one := found["worlds"].get(world):
            yield f"| {world} {_figures(one)} |"


def _figures(one: dict[str, Any]) -> str:
    return f"| {one['p99_s']:.1f} s | {one['seen']:.2%} | {one['raw']:.1%} | {one['devices']:.2f} | {one['cost']:.2f}"


def draw() -> None:
    """Write fleet-day.svg and fleet-rules.svg."""
    found = _load()["rules"]
    with mpl.rc_context({"svg.hashsalt": "benchmarks", "font.size": 9}):  # the same results give the same file
        for name, figure in (("day", _day(found)), ("rules", _rules(found))):
            figure.savefig(_PLOTS / f"fleet-{name}.svg", metadata={"Date": None})


def _day(found: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(8, 5), layout="constrained")
    shown = {CHOSEN.name: _OURS, RULES[0].name: _OTHER}
    above, below = figure.subplots(2, 1, sharex=True)
    asked = found[CHOSEN.name]["asked"]
    hours = [minute / 60 for minute in range(len(asked))]
    above.plot(hours, [per_second / CAPACITY for per_second in asked], color=_GREY, linewidth=0.6, label="load")
    for name, colour in shown.items():
        moments, sizes = zip(*found[name]["sizes"], strict=True)
        ends = [*(moment / 3600 for moment in moments), 24]
        above.step(ends, [*sizes, sizes[-1]], where="post", color=colour, linewidth=1, label=name)
        slowest = found[name]["slowest_s"]
        below.step([part / 6 for part in range(len(slowest))], slowest, where="post", color=colour, linewidth=1)
    above.set_ylabel("replicas, and the load in replicas")
    below.set_ylabel("p99 of ten minutes in s")
    below.set_xlabel("hour")
    below.set_xlim(0, 24)
    _plain(above, below)
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def _rules(found: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for rule in reversed(ALL_RULES):
        one = found[rule.name]
        good = one["seen"] < _MOST_SEEN
        colour = _OURS if rule in (CHOSEN, RAY_CHOSEN) else _OTHER if good else _GREY
        axes.barh(rule.name, one["cost"], color=colour)
        axes.annotate(f" {one['cost']:.2f}, {one['raw']:.1%}", (one["cost"], rule.name), va="center")
    axes.axvline(1, color="black", linewidth=0.8)
    figure.supxlabel("devices relative to the ideal, and the share of attempts that got 429", fontsize=9)
    axes.margins(x=0.3)
    _plain(axes)
    return figure


def _plain(*all_axes: Axes) -> None:
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)


def _load() -> dict[str, Any]:
    return dict(json.loads(_FILE.read_text(encoding="utf-8"))) if _FILE.exists() else {"rules": {}, "worlds": {}}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value
