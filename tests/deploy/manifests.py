"""The shipped Kubernetes objects, and the documents that say how to start the service."""

from pathlib import Path

from tests.conftest import lacks
from tools.kubernetes import kustomize
from tools.kubernetes.kustomize import KUBERNETES
from tools.kubernetes.schemas import Manifest

ROOT = Path(__file__).parents[2]

SHIPPED = [KUBERNETES / "overlays" / name for name in ("cpu", "cuda", "npu", "npu-device-plugin")]
"""The shipped overlays. Users may have their own beside them."""


def need_renderer() -> None:
    """Skip a test if no program can render deploy/kubernetes, but fail in CI. Debian's kubectl is too old."""
    if kustomize.renderer() is None:
        lacks(kustomize.how_to_render())


def only(manifests: list[Manifest], kind: str) -> Manifest:
    """The only object of its kind."""
    (one,) = [one for one in manifests if one["kind"] == kind]
    return one


def pod(manifests: list[Manifest]) -> Manifest:
    """The pod of the Deployment."""
    spec: Manifest = only(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def documents() -> list[Path]:
    """The documents that say how to start the service."""
    return [ROOT / "README.md", *(ROOT / "deploy").rglob("*.md"), *(ROOT / "docs").glob("*.md")]
