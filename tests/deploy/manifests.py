"""The Kubernetes objects that are shipped, in files and in documents."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]

Manifest = dict[str, Any]


def manifests() -> list[Manifest]:
    """Kubernetes objects, in files and in documents."""
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "deploy").rglob("*.y*ml")]
    for file in documents():
        texts += re.findall(r"^```ya?ml\n(.*?)^```", file.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [one for text in texts for one in yaml.safe_load_all(text) if "kind" in one]


def documents() -> list[Path]:
    """Where people read how the service is started."""
    return [ROOT / "README.md", *(ROOT / "deploy").rglob("*.md"), *(ROOT / "docs").glob("*.md")]
