"""The project's documents, read with a Markdown parser."""

import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]

FOLDERS = (
    ".",
    "app/weights/demo",
    "benchmarks",
    "deploy",
    "deploy/helm",
    "deploy/kubernetes",
    "deploy/ray",
    "docs",
    "examples",
    "training",
)

CHINESE = {
    "README.md": "README.zh-CN.md",
    "docs/ascend.md": "docs/ascend.zh-CN.md",
    "docs/clients.md": "docs/clients.zh-CN.md",
    "docs/operating.md": "docs/operating.zh-CN.md",
}
"""The translated documents: the English name, and the Chinese."""

DOCUMENTS = sorted(file.relative_to(ROOT).as_posix() for folder in FOLDERS for file in (ROOT / folder).glob("*.md"))


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of code, and its file and line."""

    where: str
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Link:
    """The target of a link or a picture as written, and its file and line."""

    where: str
    target: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell: its text, the parts of it that are marked as code, and the numbers in the other parts."""

    text: str
    code: list[str]
    numbers: set[str]


@dataclass(slots=True)
class Section:
    """The content between two headings. Tables are lists of rows of cells, with the head first."""

    where: str
    level: int
    title: str
    anchor: str
    blocks: list[Block] = field(default_factory=list)
    tables: list[list[list[Cell]]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    images: list[Link] = field(default_factory=list)
    code: set[str] = field(default_factory=set)
    numbers: set[str] = field(default_factory=set)


class Document:
    """A document in sections. The text before the first heading is a section without a title."""

    def __init__(self, name: str) -> None:
        """Read the document at this path, relative to the project's folder."""
        self.name = name
        self.sections = [Section(f"{name}:1", 0, "", "")]
        self._anchors: set[str] = set()
        tokens = MarkdownIt("commonmark").enable("table").parse((ROOT / name).read_text(encoding="utf-8"))
        for before, token in zip([None, *tokens], tokens, strict=False):
            self._read(token, before)

    @property
    def blocks(self) -> Iterator[Block]:
        return (block for section in self.sections for block in section.blocks)

    @property
    def links(self) -> Iterator[Link]:
        """All links, and the pictures too."""
        return (link for section in self.sections for link in (*section.links, *section.images))

    @property
    def anchors(self) -> set[str]:
        """The anchors that links to this document may use."""
        return self._anchors

    def _read(self, token: Token, before: Token | None) -> None:
        where = f"{self.name}:{token.map[0] + 1 if token.map else '?'}"
        if before is not None and before.type == "heading_open":
            title = "".join(child.content for child in token.children or ())
            self.sections.append(Section(where, int(before.tag[1:]), title, self._anchor(title)))
        section = self.sections[-1]
        if token.type == "fence":
            section.blocks.append(Block(where, token.info, token.content))
        elif token.type == "table_open":
            section.tables.append([])
        elif token.type == "tr_open":
            section.tables[-1].append([])
        elif token.type == "inline":
            children = token.children or []
            code = [child.content for child in children if child.type == "code_inline"]
            text = " ".join(child.content for child in children if child.type == "text")
            numbers = set(re.findall(r"\d+(?:\.\d+)?", text))
            section.code.update(code)
            section.numbers.update(numbers)
            if before is not None and before.type in ("td_open", "th_open"):
                section.tables[-1][-1].append(Cell(token.content, code, numbers))
            section.links += [
                Link(where, unquote(str(child.attrs["href"]))) for child in children if child.type == "link_open"
            ]
            section.images += [Link(where, str(child.attrs["src"])) for child in children if child.type == "image"]

    def _anchor(self, title: str) -> str:
        """Return the anchor that GitHub gives the heading."""
        anchor = plain = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        number = 0
        while anchor in self._anchors:
            number += 1
            anchor = f"{plain}-{number}"
        self._anchors.add(anchor)
        return anchor


@functools.cache
def document(name: str) -> Document:
    """Return a document. Each one is read only once."""
    return Document(name)


def resolved(target: str, name: str) -> tuple[str, str]:
    """Return the file and the anchor to which a link in this document leads. A URL is returned whole."""
    if "://" in target:
        return target, ""
    file, _, anchor = target.partition("#")
    path = Path(os.path.normpath((ROOT / name).parent / file)) if file else ROOT / name
    return path.relative_to(ROOT).as_posix(), anchor


def without_comments(text: str) -> str:
    """Return shell or Python code without comments and trailing spaces."""
    return "\n".join(re.sub(r"(^|\s+)#.*$", "", line).rstrip() for line in text.splitlines())
