"""Renders deploy/helm with Helm's own code (the package helm-python-sdk). Warnings of `helm lint` are errors."""

import importlib.util
import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tools.kubernetes.kustomize import ALTERNATIVES
from tools.kubernetes.rendering import RenderError, Rendering
from tools.kubernetes.schemas import Manifest

CHART = Path(__file__).parents[2] / "deploy/helm"

RELEASE = "sdxl-turbo-server"
"""The release that gives objects the names of deploy/kubernetes."""

HOW_TO_INSTALL = "Helm's code is not installed: `pip install helm-python-sdk`, or `make test` once."

Values = dict[str, Any]
"""Values of the chart, which override those of values.yaml."""

OVERLAYS: dict[str, Values] = {
    "cpu": {"target": "cpu"},
    "cuda": {"target": "cuda"},
    "npu": {"target": "npu"},
    "npu-device-plugin": {"target": "npu", "npu": {"driver": "host"}},
}
"""The values for each overlay of deploy/kubernetes."""

COMPONENTS: dict[str, Values] = {
    "weights": {"weights": {"enabled": True}},
    "weights-image": {"weights": {"image": {"reference": "registry.example/sdxl-turbo-weights:1"}}},
    "service-monitor": {"serviceMonitor": {"enabled": True}},
    "autoscaling": {
        "autoscaling": {"enabled": True, "picturesPerSecond": 11.4},
        "weights": {"accessMode": "ReadWriteMany"},
    },
    "keda": {
        "autoscaling": {"enabled": True, "engine": "keda", "picturesPerSecond": 11.4},
        "weights": {"accessMode": "ReadWriteMany"},
    },
    "api-keys": {"apiKeys": {"existingSecret": f"{RELEASE}-api-keys"}},
}
"""The values for each component of deploy/kubernetes."""

_WARNING = 2
"""The severity in `helm lint`; errors have a higher one."""


def is_installed() -> bool:
    """Return whether Helm's code can be imported."""
    return importlib.util.find_spec("helm_python") is not None


def render(values: Values, *, release: str = RELEASE) -> list[Manifest]:
    """Return the objects of a release with these values.

    Raises:
        RenderError: `helm lint` warns, the schema rejects the values, or a template fails.
    """
    texts = templates(values, release=release).values()
    return [one for text in texts for one in yaml.load_all(text, yaml.CSafeLoader) if one]  # much faster than safe_load


def templates(values: Values, *, release: str = RELEASE, notes: bool = False) -> dict[str, str]:
    """Return the rendered text of each template, by its file's name; with `notes`, of NOTES.txt alone.

    Raises:
        RenderError: As in `render`.
    """
    import helm_python  # noqa: PLC0415 - a development dependency

    try:
        with helm_python.Chart.load(CHART) as chart:
            rendered = chart.render(values, name=release)
        report = helm_python.lint(CHART, values, strict=True)
    except helm_python.HelmError as error:
        raise RenderError(" ".join(str(error).split())) from error
    if faults := [one["error"] for one in report["messages"] if one["severity"] >= _WARNING] + report["errors"]:
        raise RenderError(" ".join(" ".join(faults).split()))
    named = {Path(name).name: text for name, text in rendered.items()}
    return {name: text for name, text in named.items() if (name == "NOTES.txt") == notes}


def releases() -> Iterator[Rendering]:
    """Yield name and rendering of the chart for every overlay with every choice of components."""
    for overlay in OVERLAYS:
        usual = () if overlay == "cpu" else ("weights",)
        others = [one for one in COMPONENTS if one not in usual]
        for number in range(len(others) + 1):
            for chosen in itertools.combinations(others, number):
                if any(set(pair) <= set(chosen) for pair in zip(*ALTERNATIVES, strict=True)):
                    continue
                yield " + ".join([f"helm {overlay}", *chosen]), partial(render, values_of(overlay, chosen))


def values_of(overlay: str, components: Iterable[str]) -> Values:
    """Return the values for an overlay with components on top."""
    values = dict(OVERLAYS[overlay])
    for component in components:
        for group, its in COMPONENTS[component].items():
            values[group] = {**values.get(group, {}), **its}
    return values


def release(file: Path) -> Rendering:
    """Return name and rendering of the chart with the values in a file."""
    return file.name, partial(_render_file, file)


def _render_file(file: Path) -> list[Manifest]:
    try:
        return render(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except yaml.YAMLError as error:
        raise RenderError(" ".join(str(error).split())) from error
