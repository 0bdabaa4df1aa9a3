"""The documentation site is complete, in both languages, and needs no other host."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import program
from tools.api_reference import service_document
from tools.site import pages
from tools.site.documents import CHINESE, CONTENTS, ENGLISH, LEFT_OUT, address, documents, language_of, page_of
from tools.site.staging import LinkError, Rewriter

ROOT = Path(__file__).parents[2]

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}

STICKS_OUT = """() => {
    const scrolls = (element) => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
    const isInScroller = (element) =>
        element.id !== "furo-main-content" && (scrolls(element) || isInScroller(element.parentElement));
    return [...document.querySelectorAll("article *")]
        .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
        .filter((element) => !isInScroller(element.parentElement))
        .map((element) => element.outerHTML.slice(0, 80));
}"""
"""Returns the elements of a page's text that are wider than the window, except those in a part of it that scrolls."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make site` builds it."""
    folder = tmp_path_factory.mktemp("site") / "site"
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE"}
    command = [sys.executable, "-m", "tools.site", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


def opened(browser: Browser, site: Path, complaints: list[str], *, viewport: dict[str, int]) -> Page:
    """A window for pages of the site. Requests to anything else, errors and warnings are added to `complaints`."""
    page = browser.new_context(viewport={"width": viewport["width"], "height": viewport["height"]}).new_page()
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((site.as_uri(), "data:"))
            else complaints.append(f"{page.url} requests {request.url}")
        ),
    )
    page.on(
        "console",
        lambda message: (
            complaints.append(f"{page.url}: {message.text}") if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: complaints.append(f"{page.url}: {error}"))
    return page


def test_every_document_of_the_repository_has_a_page(site: Path) -> None:
    tops = [*ROOT.glob("*.md"), *(folder for folder in ROOT.iterdir() if folder.is_dir())]
    skipped = {"build", "dist"}
    found = {
        file.relative_to(ROOT).as_posix()
        for top in tops
        if not top.name.startswith(".") and top.name not in skipped
        for file in ([top] if top.is_file() else top.rglob("*.md"))
        if "node_modules" not in file.parts
    }
    assert found - documents() == LEFT_OUT.keys()
    assert {file.relative_to(site).as_posix() for file in site.rglob("*.html")} - {
        "search.html",
        f"{CHINESE}/search.html",
    } == {address(page_of(document), language_of(document)) for document in documents()}


def test_the_table_of_contents_names_every_document_once() -> None:
    named = [document for group in CONTENTS for document in group.documents]
    assert sorted(["README.md", *named]) == sorted(one for one in documents() if language_of(one) == ENGLISH)


def test_a_page_says_its_language_and_links_to_the_other(site: Path) -> None:
    for document in documents():
        language, other = (CHINESE, ENGLISH) if language_of(document) == CHINESE else (ENGLISH, CHINESE)
        file = site / address(page_of(document), language)
        text = file.read_text(encoding="utf-8")
        assert f'<html class="no-js" lang="{language}"' in text
        (link,) = re.findall(rf'<a class="sidebar-language" href="([^"]+)" lang="{other}"', text)
        translated = other == ENGLISH or document.replace(".md", f".{CHINESE}.md") in documents()
        expected = site / address(page_of(document) if translated else "index", other)
        assert (file.parent / link).resolve() == expected.resolve()


def test_no_page_asks_another_host_or_is_wider_than_a_phone(site: Path, browser: Browser) -> None:
    complaints: list[str] = []
    page = opened(browser, site, complaints, viewport=PHONE)
    for file in sorted(site.rglob("*.html")):
        page.goto(file.as_uri())
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > PHONE["width"] or (found := page.evaluate(STICKS_OUT)):
            complaints.append(f"{file}: {width} pixels wide; {found}")
    assert complaints == []


@pytest.mark.parametrize(
    ("language", "words", "page"),
    [
        (ENGLISH, "Retry-After", "docs/operating"),
        (ENGLISH, "TURBO_LORA", "docs/checkpoints"),
        (CHINESE, "种子", "index"),
        (CHINESE, "常见故障", "docs/ascend"),
        (CHINESE, "昇腾 CANN", "docs/ascend"),
    ],
)
def test_the_search_finds_words_in_a_site_that_is_opened_as_files(
    site: Path, browser: Browser, language: str, words: str, page: str
) -> None:
    complaints: list[str] = []
    window = opened(browser, site, complaints, viewport=DESKTOP)
    window.goto((site / address("index", language)).as_uri())
    window.locator(".sidebar-search").fill(words)
    window.keyboard.press("Enter")
    expect(window.locator(f'ul.search a[href^="{page}.html"]').first).to_be_visible()
    window.locator(".sidebar-search").fill("火星移民")
    window.keyboard.press("Enter")
    expect(window.locator(".search-summary")).not_to_be_empty()
    expect(window.locator("ul.search a")).to_have_count(0)
    assert complaints == []


def test_the_openapi_document_can_be_downloaded(site: Path) -> None:
    page = site / "docs/api.html"
    (link,) = re.findall(r'href="([^"]+openapi\.json)"', page.read_text(encoding="utf-8"))
    assert json.loads((page.parent / link).read_text(encoding="utf-8")) == service_document()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('<a href="gone.html">', "a.html: gone.html does not exist"),
        ('<a href="b.html#gone">', "a.html: b.html#gone does not exist"),
        ('<a href="#gone">', "a.html: #gone does not exist"),
        ('<img src="gone.png">', "a.html: gone.png does not exist"),
        ('<script src="https://example.com/a.js"></script>', "a.html: loads https://example.com/a.js"),
        ('<link rel="stylesheet" href="//example.com/a.css">', "a.html: loads //example.com/a.css"),
        ('<p style="background: url(https://example.com/a.png)">', "a.html: loads https://example.com/a.png"),
        ('<a href="https://example.com"><a href="b.html#there"><img src="data:image/png;base64,">', None),
    ],
)
def test_a_broken_link_or_a_file_of_another_host_is_a_fault(tmp_path: Path, content: str, fault: str | None) -> None:
    (tmp_path / "a.html").write_text(content, encoding="utf-8")
    (tmp_path / "b.html").write_text('<p id="there">', encoding="utf-8")
    assert list(pages.faults(tmp_path)) == ([] if fault is None else [fault])


def test_a_font_of_another_host_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text('@import "https://example.com/font.css"; p { color: red }', encoding="utf-8")
    assert list(pages.faults(tmp_path)) == ["a.css: loads https://example.com/font.css"]


@pytest.mark.parametrize(
    ("written", "staged"),
    [
        ("[guide](operating.md#errors)", "[guide](operating.md#errors)"),
        ("[README](../README.md)", "[README](../index.md)"),
        ("[中文](ascend.zh-CN.md)", "[中文](other-language:../zh-CN/docs/ascend.html)"),
        ("[`Dockerfile`](../Dockerfile)", "`Dockerfile`"),
        ("[the image](../Dockerfile)", "the image (`Dockerfile`)"),
        ("[web](https://example.com) and [below](#errors)", "[web](https://example.com) and [below](#errors)"),
        ("`a[b](../gone)`", "`a[b](../gone)`"),
        ("```python\na[b](../gone)\n```", "```python\na[b](../gone)\n```"),
    ],
)
def test_links_of_a_document_become_links_of_the_site(tmp_path: Path, written: str, staged: str) -> None:
    assert Rewriter("docs/ascend.md", tmp_path).rewritten(written) == staged


def test_with_an_address_of_the_repository_links_to_its_files_lead_there(tmp_path: Path) -> None:
    rewriter = Rewriter("docs/ascend.md", tmp_path, source="https://example.com/OWNER/NAME")
    assert (
        rewriter.rewritten("[`Dockerfile`](../Dockerfile)")
        == "[`Dockerfile`](https://example.com/OWNER/NAME/blob/HEAD/Dockerfile)"
    )


def test_a_link_to_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=re.escape("docs/ascend.md links to gone.md")):
        Rewriter("docs/ascend.md", tmp_path).rewritten("[gone](gone.md)")


def test_a_link_to_a_missing_heading_or_a_page_outside_the_contents_fails_the_build(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "index.md").write_text("# Home\n\n[gone](other.md#gone)\n", encoding="utf-8")
    (sources / "other.md").write_text("# Other\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--fail-on-warning",
        "-c",
        "tools/site",
        str(sources),
        str(tmp_path / "out"),
    ]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 1
    assert "local id not found in doc 'other': 'gone'" in built.stderr
    assert "other.md: WARNING: document isn't included in any toctree" in built.stderr
