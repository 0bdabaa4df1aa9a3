"""The Kubernetes objects that say how the service ends, in files and in documents."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import check_deploy

ROOT = Path(__file__).parents[2]

Manifest = dict[str, Any]


def manifests() -> list[Manifest]:
    """Kubernetes objects with pods and their grace period; patches say only what they change."""
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "deploy").rglob("*.y*ml")]
    for file in documents():
        texts += re.findall(r"^```ya?ml\n(.*?)^```", file.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    objects = [one for text in texts for one in yaml.safe_load_all(text) if "kind" in one]
    return [one for one in objects if "terminationGracePeriodSeconds" in _pod(one)]


def _pod(manifest: Manifest) -> Manifest:
    pod: Manifest = manifest.get("spec", {}).get("template", {}).get("spec", {})
    return pod


def need_renderer() -> None:
    """Skip a test where nothing renders deploy/kubernetes, but fail in CI. Debian's kubectl is too old for it."""
    if check_deploy.renderer() is None:
        fail_or_skip = pytest.fail if "CI" in os.environ else pytest.skip
        fail_or_skip(check_deploy.HOW_TO_INSTALL)


def documents() -> list[Path]:
    """Where people read how the service is started."""
    return [ROOT / "README.md", *(ROOT / "deploy").rglob("*.md"), *(ROOT / "docs").glob("*.md")]
