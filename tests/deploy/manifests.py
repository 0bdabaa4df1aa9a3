"""The Kubernetes objects that are shipped, and the documents that say how the service is started."""

from pathlib import Path

from tests.conftest import lacks
from tools.kubernetes import __main__ as check_deploy
from tools.kubernetes.__main__ import KUBERNETES
from tools.kubernetes.schemas import Manifest

ROOT = Path(__file__).parents[2]

SHIPPED = [KUBERNETES / "overlays" / name for name in ("cpu", "cuda", "npu", "npu-device-plugin")]
"""Overlays; others beside them are the reader's own."""


def need_renderer() -> None:
    """Skip a test where nothing renders deploy/kubernetes, but fail in CI. Debian's kubectl is too old for it."""
    if check_deploy.renderer() is None:
        lacks(check_deploy.how_to_render())


def only(manifests: list[Manifest], kind: str) -> Manifest:
    """The object of a kind of which there is one."""
    (one,) = [one for one in manifests if one["kind"] == kind]
    return one


def pod(manifests: list[Manifest]) -> Manifest:
    """The pod of the Deployment."""
    spec: Manifest = only(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def documents() -> list[Path]:
    """Where people read how the service is started."""
    return [ROOT / "README.md", *(ROOT / "deploy").rglob("*.md"), *(ROOT / "docs").glob("*.md")]
