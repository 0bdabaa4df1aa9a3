"""Checks built pages: each link leads to a page and a heading that exist, and a page loads nothing from other hosts."""

import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADING = ("src", "srcset", "href", "xlink:href", "data", "poster", "action", "background")
"""Attributes whose address a browser loads. The href of an `a` is a link instead."""


class Page(HTMLParser):
    """A page of HTML: its anchors, the targets of its links, and the addresses that it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in _LOADING:
                self.loaded.append(value or "")
            elif name == "style":
                self.loaded += addresses_in_css(value or "")


def addresses_in_css(text: str) -> list[str]:
    """Return the addresses that a style sheet loads."""
    return [found[1] or found[2] for found in re.finditer(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", text)]


def faults(site: Path) -> Iterator[str]:
    """Yield a line for each broken link, and for each address on another host that is loaded."""
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}
    for file, page in pages.items():
        for target in (*page.links, *page.loaded):
            if not _is_elsewhere(target) and not _exists(target, file, pages):
                yield f"{file.relative_to(site)}: {target} does not exist"
        for target in filter(_is_elsewhere, page.loaded):
            yield f"{file.relative_to(site)}: loads {target}"
    for file in sorted(site.rglob("*.css")):
        for target in filter(_is_elsewhere, addresses_in_css(file.read_text(encoding="utf-8"))):
            yield f"{file.relative_to(site)}: loads {target}"


def _is_elsewhere(target: str) -> bool:
    address = urlsplit(target)
    return bool(address.netloc) or address.scheme not in ("", "data")


def _exists(target: str, file: Path, pages: dict[Path, Page]) -> bool:
    if target.startswith("data:"):
        return True
    address = urlsplit(target)
    path = Path(os.path.normpath(file.parent / unquote(address.path))) if address.path else file
    anchor = unquote(address.fragment)
    return path.is_file() and (not anchor or (path in pages and anchor in pages[path].anchors))
