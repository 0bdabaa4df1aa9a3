"""The documents of the site: their languages, their pages, and the table of contents.

A README.md becomes the page index.html of its folder. X.zh-CN.md is the Chinese X.md, and has a page of the same name.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

ENGLISH, CHINESE = "en", "zh-CN"

HOME = "index"

OTHER_LANGUAGE = "other-language"
"""The scheme of links to a page in the other language, which Sphinx builds separately."""

LEFT_OUT = {"app/weights/sdxl_turbo/README.md": "says where two packaged files come from, beside these files"}
"""Documents that are not in the site, with the reason."""

_NOT_OURS = {"build", "dist", "node_modules"}


@dataclass(frozen=True, slots=True)
class Group:
    """A group of the table of contents: its captions, and its documents in English, of which some are translated."""

    english: str
    chinese: str
    documents: tuple[str, ...]


CONTENTS = (
    Group(
        "Use it",
        "使用",
        (
            "docs/clients.md",
            "docs/checkpoints.md",
            "docs/provenance.md",
            "examples/README.md",
            "app/weights/demo/README.md",
        ),
    ),
    Group(
        "Operate it",
        "运维",
        (
            "docs/operating.md",
            "docs/observability.md",
            "docs/performance.md",
            "docs/hardware.md",
            "docs/scale-out.md",
            "docs/promises.md",
            "SECURITY.md",
        ),
    ),
    Group(
        "Deploy it",
        "部署",
        ("deploy/README.md", "deploy/helm/README.md", "deploy/kubernetes/README.md", "deploy/ray/README.md"),
    ),
    Group("Ascend", "昇腾", ("docs/ascend.md",)),
    Group("Reference", "参考", ("docs/api.md", "docs/command-line.md", "CHANGELOG.md", "THIRD_PARTY.md")),
    Group(
        "Project",
        "项目",
        (
            "docs/architecture.md",
            "docs/decisions.md",
            "docs/playground-design.md",
            "CONTRIBUTING.md",
            "SUPPORT.md",
            "CODE_OF_CONDUCT.md",
            "training/README.md",
            "benchmarks/README.md",
            "benchmarks/RESULTS.md",
            "benchmarks/SOAK.md",
        ),
    ),
)
"""The table of contents. Sphinx warns of a document that is in none of the groups."""


@functools.cache
def documents() -> frozenset[str]:
    """Return the paths of all documents of the site, relative to the project's folder."""
    found = set()
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _NOT_OURS]
        found |= {(Path(folder) / name).relative_to(ROOT).as_posix() for name in files if name.endswith(".md")}
    return frozenset(found - LEFT_OUT.keys())


def language_of(document: str) -> str:
    """Return the language of a document."""
    return CHINESE if document.endswith(f".{CHINESE}.md") else ENGLISH


def page_of(document: str) -> str:
    """Return the name of a document's page, which is the same in both languages."""
    path = Path(document.removesuffix(".md").removesuffix(f".{CHINESE}"))
    return (path.with_name(HOME) if path.name == "README" else path).as_posix()


def pages(language: str) -> set[str]:
    """Return the names of all pages in a language."""
    return {page_of(document) for document in documents() if language_of(document) == language}


def address(page: str, language: str) -> str:
    """Return the path of a page's file in the site."""
    return f"{page}.html" if language == ENGLISH else f"{language}/{page}.html"
