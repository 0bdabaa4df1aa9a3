"""Renders deploy/kubernetes with kubectl or kustomize: overlays, alone and with components on top."""

import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import yaml

from tools.kubernetes.rendering import RenderError, Rendering
from tools.kubernetes.schemas import Manifest

ROOT = Path(__file__).parents[2]

KUBERNETES = ROOT / "deploy/kubernetes"

HOW_TO_INSTALL = (
    "One of them must render deploy/kubernetes. Install kubectl 1.27 or later "
    "(https://kubernetes.io/docs/tasks/tools/) or kustomize 5 (https://kubectl.docs.kubernetes.io/installation/)."
)

ALTERNATIVES = (("weights", "autoscaling"), ("weights-image", "keda"))
"""Components of which an overlay takes one: weights from a volume or an image, an autoscaler with or without KEDA."""

_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")


def renderer() -> list[str] | None:
    """Return the command that renders a folder, or None if no program of a suitable version is installed."""
    commands = (["kubectl", "kustomize"], ["kustomize", "build"])
    return next((one for one in commands if (path := shutil.which(one[0])) and _is_kustomize_5(path)), None)


def how_to_render() -> str:
    """Return what to install if `renderer` finds nothing."""
    old = " and ".join(path for name in ("kubectl", "kustomize") if (path := shutil.which(name)))
    return f"{f'Too old: {old}' if old else 'Neither kubectl nor kustomize is installed'}. {HOW_TO_INSTALL}"


@functools.cache
def _is_kustomize_5(program: str) -> bool:
    command = [program, "version", *(["--client"] if program.endswith("kubectl") else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the program in PATH
    version = re.search(r"^(?:Kustomize Version: |\{Version:kustomize/)?v(\d+)", done.stdout, re.MULTILINE)
    return version is not None and int(version[1]) >= 5  # noqa: PLR2004 - see HOW_TO_INSTALL


def render(folder: Path) -> list[Manifest]:
    """Return the objects of an overlay's folder. Needs a `renderer`.

    Raises:
        RenderError: The folder cannot be rendered, or only with warnings.
    """
    command = renderer()
    assert command is not None, HOW_TO_INSTALL  # noqa: S101 - main checks first
    done = subprocess.run([*command, folder], capture_output=True, text=True, check=False)  # noqa: S603 - from `renderer`
    if done.returncode or done.stderr:
        words = re.sub(r"^[IWEF]\d{4} .*?\] ", "", done.stderr, flags=re.MULTILINE).split()  # remove log prefixes
        raise RenderError(" ".join(words) or f"{command[0]} ended with {done.returncode}")
    return list(yaml.safe_load_all(done.stdout))


def render_with(overlay: Path, components: Iterable[Path]) -> list[Manifest]:
    """Return the objects of an overlay with these components on top.

    Raises:
        RenderError: The overlay cannot be rendered, or only with warnings.
    """
    with tempfile.TemporaryDirectory() as folder:
        # kustomize rejects absolute paths and does not resolve symbolic links.
        resources, parts = (
            [os.path.relpath(one.resolve(), Path(folder).resolve()) for one in ones] for ones in ([overlay], components)
        )
        text = yaml.safe_dump({"kind": "Kustomization", "resources": resources, "components": parts})
        (Path(folder) / "kustomization.yaml").write_text(text, encoding="utf-8")
        return render(Path(folder))


def overlays(folders: list[Path] | None = None) -> Iterator[Rendering]:
    """Yield name and rendering of each folder; without folders, of every overlay, alone and with components."""
    for folder in folders or sorted(one for one in KUBERNETES.glob("overlays/*") if _kustomization(one)):
        yield folder.name, partial(render, folder)
        if not folders:
            yield from with_components(folder)


def with_components(folder: Path) -> Iterator[Rendering]:
    """Yield name and rendering of an overlay with its missing components, once for each of the alternatives.

    `weights` come before the autoscaler, which patches them.
    """
    missing = [one for one in sorted(KUBERNETES.glob("components/*"), reverse=True) if not _has(folder, one)]
    for names in ALTERNATIVES:
        others = {one for alternative in ALTERNATIVES if alternative != names for one in alternative}
        chosen = [one for one in missing if one.name not in others]
        yield " + ".join([folder.name, *(one.name for one in chosen)]), partial(render_with, folder, chosen)


def _kustomization(folder: Path) -> Path | None:
    return next((folder / name for name in _KUSTOMIZATIONS if (folder / name).is_file()), None)


def _has(folder: Path, component: Path) -> bool:
    """Return whether an overlay, or an overlay that it builds on, has a component."""
    file = _kustomization(folder)
    text = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file else {}
    return any(
        (folder / one).resolve() == component or _has((folder / one).resolve(), component)
        for one in (*(text.get("resources") or ()), *(text.get("components") or ()))
        if (folder / one).is_dir()
    )
