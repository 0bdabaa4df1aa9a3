"""What deploy/kubernetes renders to, held to Kubernetes' schemas, to itself and to the service.

python -m tools.kubernetes              every overlay, alone and with the components that it does not have yet
python -m tools.kubernetes FOLDER...    overlays of your own

A line for each fault, as in "overlay: kind/name: what is wrong". Exit code 1: there are some. 2: there is neither
kubectl nor kustomize, or only too old ones. Asks no cluster: enumerations, quantities, names, and fields that do not go
together are the API server's, and `kubectl apply --dry-run=server` says what it thinks of them.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import yaml

from tools.kubernetes.checks import complaints, subject
from tools.kubernetes.schemas import VERSIONS, Manifest, is_foreign

ROOT = Path(__file__).parents[2]

KUBERNETES = ROOT / "deploy/kubernetes"

HOW_TO_INSTALL = (
    "One of them has to render deploy/kubernetes. Install kubectl 1.27 or later "
    "(https://kubernetes.io/docs/tasks/tools/) or kustomize 5 (https://kubectl.docs.kubernetes.io/installation/)."
)

_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")


class RenderError(Exception):
    """What kustomize cannot render, or complains of; its own words."""


# Rendering.


def renderer() -> list[str] | None:
    """Return the command that renders a folder, or None where there is no such program of a version that can."""
    commands = (["kubectl", "kustomize"], ["kustomize", "build"])
    return next((one for one in commands if (path := shutil.which(one[0])) and _is_kustomize_5(path)), None)


def how_to_render() -> str:
    """Say what has to be installed, where `renderer` finds nothing."""
    old = " and ".join(path for name in ("kubectl", "kustomize") if (path := shutil.which(name)))
    return f"{f'Too old: {old}' if old else 'Neither kubectl nor kustomize is installed'}. {HOW_TO_INSTALL}"


@functools.cache
def _is_kustomize_5(program: str) -> bool:
    command = [program, "version", *(["--client"] if program.endswith("kubectl") else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - as found in PATH
    version = re.search(r"^(?:Kustomize Version: |\{Version:kustomize/)?v(\d+)", done.stdout, re.MULTILINE)
    return version is not None and int(version[1]) >= 5  # noqa: PLR2004 - see HOW_TO_INSTALL


def render(folder: Path) -> list[Manifest]:
    """Return the objects that an overlay's folder stands for. Needs `renderer`.

    Raises:
        RenderError: It cannot be rendered, or only with warnings.
    """
    command = renderer()
    assert command is not None, HOW_TO_INSTALL  # noqa: S101 - main looks first
    done = subprocess.run([*command, folder], capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode or done.stderr:
        words = re.sub(r"^[IWEF]\d{4} .*?\] ", "", done.stderr, flags=re.MULTILINE).split()  # without the log's time
        raise RenderError(" ".join(words) or f"{command[0]} ended with {done.returncode}")
    return list(yaml.safe_load_all(done.stdout))


def render_with(overlay: Path, components: Iterable[Path]) -> list[Manifest]:
    """Return the objects of an overlay and components on top of it.

    Raises:
        RenderError: As for `render`.
    """
    with tempfile.TemporaryDirectory() as folder:
        # kustomize takes no absolute paths, and leaves symbolic links alone.
        resources, parts = (
            [os.path.relpath(one.resolve(), Path(folder).resolve()) for one in ones] for ones in ([overlay], components)
        )
        text = yaml.safe_dump({"kind": "Kustomization", "resources": resources, "components": parts})
        (Path(folder) / "kustomization.yaml").write_text(text, encoding="utf-8")
        return render(Path(folder))


# The command.


def main(folders: list[str]) -> int:
    """Print what is wrong with overlays, and give the exit code; by default with all that are there."""
    if renderer() is None:
        print(how_to_render(), file=sys.stderr)
        return 2
    found = 0
    for name, rendered in overlays([Path(folder) for folder in folders]):
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
                f"{name}: as Kubernetes {', '.join(VERSIONS)} and the service have it"
                + f"; not checked: {others}" * bool(others)
            )
    return 1 if found else 0


def overlays(folders: list[Path] | None = None) -> Iterator[tuple[str, Callable[[], list[Manifest]]]]:
    """Yield names and renderings of overlays: the folders', or each that is there, alone and with all components."""
    for folder in folders or sorted(one for one in KUBERNETES.glob("overlays/*") if _kustomization(one)):
        yield folder.name, partial(render, folder)
        if not folders:
            yield with_components(folder)


def with_components(folder: Path) -> tuple[str, Callable[[], list[Manifest]]]:
    """Return name and rendering of an overlay with the components that it lacks, `weights` before `autoscaling`."""
    missing = [one for one in sorted(KUBERNETES.glob("components/*"), reverse=True) if not _has(folder, one)]
    return " + ".join([folder.name, *(one.name for one in missing)]), partial(render_with, folder, missing)


def _kustomization(folder: Path) -> Path | None:
    return next((folder / name for name in _KUSTOMIZATIONS if (folder / name).is_file()), None)


def _has(folder: Path, component: Path) -> bool:
    """Tell whether an overlay, or one that it builds on, has a component already."""
    file = _kustomization(folder)
    text = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file else {}
    return any(
        (folder / one).resolve() == component or _has((folder / one).resolve(), component)
        for one in (*(text.get("resources") or ()), *(text.get("components") or ()))
        if (folder / one).is_dir()
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
