"""Renders deploy/kubernetes and deploy/helm, and checks the objects against Kubernetes' schemas and the service.

python -m tools.kubernetes              every overlay, alone and with each choice of the components that it
                                        lacks; and the chart with the values for each overlay and each choice
python -m tools.kubernetes FOLDER...    your own overlays
python -m tools.kubernetes FILE...      the chart with your own values

Prints a line for each fault: "overlay: kind/name: fault". Exit code 1: there are faults. 2: there is no kubectl or
kustomize, or only versions that are too old, or no helm-python-sdk. The check uses no cluster. Only the API server
checks enumerations, quantities, names and conflicting fields; `kubectl apply --dry-run=server` shows its errors.
"""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.kubernetes import helm, kustomize
from tools.kubernetes.checks import complaints, subject
from tools.kubernetes.rendering import RenderError, Rendering
from tools.kubernetes.schemas import is_foreign, versions


def main(arguments: list[str]) -> int:
    """Print the faults of overlays and of the chart with values, by default of all; return the exit code."""
    paths = [Path(one) for one in arguments]
    files, folders = ([one for one in paths if one.is_file() == wanted] for wanted in (True, False))
    if missing := _missing(kustomizes=bool(folders) or not paths, helms=bool(files) or not paths):
        print(missing, file=sys.stderr)
        return 2
    found = 0
    for name, rendered in _renderings(folders, files):
        try:
            manifests = rendered()
            wrong = list(complaints(manifests))
        except RenderError as error:
            manifests, wrong = [], [f"cannot be rendered: {error}"]
        found += len(wrong)
        for complaint in wrong:
            print(f"{name}: {complaint}")
        if not wrong:
            others = ", ".join(subject(one) for one in manifests if one and is_foreign(one))
            print(
                f"{name}: no faults for Kubernetes {', '.join(versions(manifests))} and the service"
                + f"; not checked: {others}" * bool(others)
            )
    return 1 if found else 0


def _missing(*, kustomizes: bool, helms: bool) -> str | None:
    """Return what to install if a renderer is missing."""
    if kustomizes and kustomize.renderer() is None:
        return kustomize.how_to_render()
    return helm.HOW_TO_INSTALL if helms and not helm.is_installed() else None


def _renderings(folders: list[Path], files: list[Path]) -> Iterator[Rendering]:
    if folders or files:
        return itertools.chain(kustomize.overlays(folders) if folders else (), map(helm.release, files))
    return itertools.chain(kustomize.overlays(), helm.releases())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
