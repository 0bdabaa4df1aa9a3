"""Plots of the results: CPU time per image, and latency under load."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.compare.results import SCENARIOS, Key, Results
from benchmarks.support.contestants import CONTESTANTS

_TITLES = {contestant.key: contestant.title for contestant in CONTESTANTS}
_COLOURS = {
    "ours": "#c1272d",
    "ours-exact": "#e0666b",
    "ours-fast": "#7d0f14",
    "plain": "#4d4d4d",
    "litserve": "#0072b2",
    "bentoml": "#56b4e9",
    "ray": "#009e73",
    "openvino": "#e69f00",
}


def draw(results: Results, folder: Path) -> None:
    """Write cpu.svg and latency.svg to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    # The same results give the same file.
    with mpl.rc_context({"svg.hashsalt": "benchmarks", "font.size": 9}):
        _cpu(results).savefig(folder / "cpu.svg", metadata={"Date": None})
        _latency(results).savefig(folder / "latency.svg", metadata={"Date": None})


def _cpu(results: Results) -> Figure:
    keys = [key for key in _COLOURS if any(m.server == key for m in results.measurements)]
    figure = Figure(figsize=(10, 0.9 + 0.35 * len(keys)), layout="constrained")
    for axes, scenario in zip(figure.subplots(1, len(SCENARIOS), sharey=True), SCENARIOS, strict=True):
        costs = [results.cpu_s(key, scenario.key) for key in keys]
        axes.barh(
            [_TITLES[key] for key in keys],
            [1000 * (cost or 0) for cost in costs],
            color=[_COLOURS[key] for key in keys],
        )
        for row, cost in enumerate(costs):
            text = "no server" if cost is None else f"{1000 * cost:.0f}"
            axes.annotate(text, (1000 * (cost or 0), row), (2, 0), textcoords="offset points", va="center")
        axes.set_title(scenario.title.replace(", ", "\n"), fontsize=9)
        axes.margins(x=0.25)
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.suptitle("CPU-milliseconds for each image", fontsize=10)
    return figure


def _latency(results: Results) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    kinds = {
        Key.SMALL_EIGHT: "128 px, eight clients",
        Key.OPEN: "128 px, open loop at 70 %",
        Key.LARGE_EIGHT: "512 px, eight clients",
    }
    for axes, (scenario, title) in zip(figure.subplots(1, len(kinds)), kinds.items(), strict=True):
        for key, colour in _COLOURS.items():
            latencies = sorted(1000 * latency for m in results.of(key, scenario) for latency in m.latencies_s)
            if latencies:
                shares = [(i + 1) / len(latencies) for i in range(len(latencies))]
                axes.step(latencies, shares, where="post", color=colour, label=_TITLES[key])
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("latency in ms")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("share of answers")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure
