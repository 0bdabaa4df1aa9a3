"""Copies the documents of one language to a folder from which Sphinx makes pages.

The documents contain no directives and link to each other as on a forge. The copies have the table of contents and
links that Sphinx checks.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tools.api_reference import service_document
from tools.site.documents import (
    CONTENTS,
    ENGLISH,
    HOME,
    OTHER_LANGUAGE,
    ROOT,
    address,
    documents,
    language_of,
    page_of,
    pages,
)

_API = "docs/api.md"


class LinkError(Exception):
    """A document links to a file that does not exist."""


def stage(language: str, folder: Path, *, source: str = "") -> None:
    """Write the documents of a language to an empty folder, and what they show.

    `source` is the repository's address on a forge. If it is empty, links to files other than documents become text.

    Raises:
        LinkError: a document links to a file that does not exist.
    """
    for document in sorted(documents()):
        if language_of(document) == language:
            staged = folder / f"{page_of(document)}.md"
            staged.parent.mkdir(parents=True, exist_ok=True)
            text = Rewriter(document, folder, source=source).rewritten((ROOT / document).read_text(encoding="utf-8"))
            if document == _API:
                text = _with_openapi_document(text, staged.parent)
            staged.write_text(text, encoding="utf-8")
    with (folder / f"{HOME}.md").open("a", encoding="utf-8") as home:
        home.writelines(_table_of_contents(language))


def _table_of_contents(language: str) -> Iterator[str]:
    translated = pages(language)
    for group in CONTENTS:
        names = [page for document in group.documents if (page := page_of(document)) in translated]
        if names:
            caption = group.english if language == ENGLISH else group.chinese
            yield "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```", ""])


_CODE_OR_LINK = re.compile(
    r"""
      ^[ ]*```.*?^[ ]*```$  # a block of code
    | (?P<picture>!?)\[(?P<text>(?:`[^`]*`|[^\[\]`])*)\]\((?P<target>[^()\s]+)\)
    | `[^`]+`  # code in a sentence
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)


class Rewriter:
    """Rewrites the links of a document for Sphinx, and copies the pictures that it shows to a folder."""

    def __init__(self, document: str, folder: Path, *, source: str = "") -> None:
        self._document = document
        self._language = language_of(document)
        self._folder = folder
        self._source = source

    def rewritten(self, text: str) -> str:
        """Return the document's text with links that Sphinx understands.

        Raises:
            LinkError: a link leads to a file that does not exist.
        """
        return _CODE_OR_LINK.sub(self._link, text)

    def _link(self, match: re.Match[str]) -> str:
        target = match["target"]
        if not target or re.match(r"#|\w+:", target):
            return match[0]
        file, mark, anchor = target.partition("#")
        path = Path(os.path.normpath((ROOT / self._document).parent / file)).relative_to(ROOT).as_posix()
        if not (ROOT / path).exists():
            raise LinkError(f"{self._document} links to {target}, which does not exist")
        if match["picture"]:
            copy = self._folder / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, copy)
            return match[0]
        if path in documents():
            return f"[{match['text']}]({self._page(path)}{mark}{anchor})"
        if self._source:
            return f"[{match['text']}]({self._source}/blob/HEAD/{path})"
        named = f"`{Path(path).name}`"
        return match["text"] if named in match["text"] else f"{match['text']} (`{path}`)"

    def _page(self, document: str) -> str:
        """Return the link to another document: to its copy, or in the other language to its page in the site."""
        here, language = page_of(self._document), language_of(document)
        if language == self._language:
            return os.path.relpath(f"{page_of(document)}.md", Path(here).parent)
        page = address(page_of(document), language)
        return f"{OTHER_LANGUAGE}:{os.path.relpath(page, Path(address(here, self._language)).parent)}"


def _with_openapi_document(text: str, folder: Path) -> str:
    """Write the OpenAPI document to the folder of the API reference, and return the reference with a link to it."""
    file = folder / "openapi.json"
    file.write_text(json.dumps(service_document(), ensure_ascii=False, indent=1), encoding="utf-8")
    heading, introduction, rest = text.split("\n\n", 2)
    return "\n\n".join([heading, introduction, f"To download: [the OpenAPI document]({file.name})", rest])
