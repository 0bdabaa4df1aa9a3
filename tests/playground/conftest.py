"""A browser for the playground's tests, and pages whose errors and warnings fail the test."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Download,
    FloatRect,
    Locator,
    Page,
    Request,
    expect,
    sync_playwright,
)

from app.main import create_app
from app.settings import Settings
from tests.conftest import program, serving
from tests.support.gated_pipeline import GatedPipeline

_PATIENCE_MS = 20_000
"""How long pages and assertions wait: longer than usual, as other processes may keep the processors busy."""

expect.set_options(timeout=_PATIENCE_MS)

# Package scope, not session: while Playwright is open, no test with its own event loop can run.


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program("chromium"),
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--use-fake-device-for-media-stream",  # a camera that shows a clock
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def fake_service() -> Iterator[str]:
    """A service that all tests share and no test changes."""
    with serving(create_app(Settings(model="fake"))) as url:
        yield url


@dataclass
class Visit:
    """A page of the playground, with its requests, errors and warnings."""

    page: Page
    url: str
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __getitem__(self, css: str) -> Locator:
        return self.page.locator(css)

    @property
    def asked(self) -> list[Request]:
        """The requests for pictures."""
        return [request for request in self.requests if request.method == "POST"]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The bodies of the requests that were sent as JSON."""
        return [request.post_data_json or {} for request in self.asked]

    def box(self, css: str) -> FloatRect:
        """Return the place and size of an element in the window. It may be replaced while the browser looks for it."""
        while True:
            expect(self[css]).to_be_visible()
            if (box := self[css].bounding_box()) is not None:
                return box

    def fill(self, prompt: str) -> None:
        self["#prompt"].fill(prompt)

    def expect_shown(self, prompt: str) -> None:
        """Wait until the stage shows the picture of this prompt and no request is running."""
        expect(self["#stage:not(.busy) #pictures img"].first).to_have_attribute("alt", prompt)

    def make(self, prompt: str) -> None:
        self.fill(prompt)
        self.expect_shown(prompt)

    def download(self) -> Download:
        with self.page.expect_download() as download:
            self["#download"].click()
        return download.value

    def watch_stage(self) -> None:
        """From now on, record the prompts of the pictures on the stage for `shown`."""
        self.page.evaluate(
            """() => {
                window.shown = [];
                const remember = () => window.shown.push(document.querySelector("#pictures img").alt);
                new MutationObserver(remember).observe(document.querySelector("#pictures"), { childList: true });
            }"""
        )

    @property
    def shown(self) -> list[str]:
        prompts: list[str] = self.page.evaluate("window.shown")
        return prompts


OpenPlayground = Callable[..., Visit]


@pytest.fixture
def open_playground(browser: Browser, fake_service: str) -> Iterator[OpenPlayground]:
    """Open the playground of a service's URL, or of an app to serve; by default of the fake.

    An error or a warning in the page's console fails the test, unless it matches `complaints`. Violations of the page's
    policy are such errors. A request to another origin fails the test too.
    """
    visits: list[tuple[Visit, str]] = []
    with ExitStack() as stack:

        def open_page(service: FastAPI | str = fake_service, *, complaints: str = "(?!)", **context: Any) -> Visit:
            url = service if isinstance(service, str) else stack.enter_context(serving(service))
            opened = browser.new_context(**context)
            stack.callback(opened.close)
            opened.set_default_timeout(_PATIENCE_MS)
            page = opened.new_page()
            visit = Visit(page, url)
            visits.append((visit, complaints))

            def complain(message: ConsoleMessage) -> None:
                if message.type in ("error", "warning"):
                    visit.complaints.append(message.text)

            page.on("console", complain)
            page.on("pageerror", lambda error: visit.complaints.append(str(error)))
            page.on("request", lambda request: visit.requests.append(request))  # noqa: PLW0108 - Playwright sets an attribute on the handler
            page.goto(f"{url}/")
            expect(page.locator("#examples button").first).to_be_visible()
            return visit

        yield open_page
        for visit, complaints in visits:
            assert [said for said in visit.complaints if not re.search(complaints, said)] == []
            elsewhere = [request.url for request in visit.requests if not request.url.startswith((visit.url, "blob:"))]
            assert elsewhere == []


@dataclass
class Busy:
    """A service whose device runs another client's request until the gate is opened."""

    app: FastAPI
    pipeline: GatedPipeline
    url: str

    @property
    def waiting(self) -> int:
        waiting: int = self.app.state.context.engine.admission.waiting
        return waiting


MakeBusy = Callable[..., Busy]


@pytest.fixture
def make_busy(pipeline: GatedPipeline) -> Iterator[MakeBusy]:
    """Serve the gated pipeline, and occupy the device with another client's request."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Busy:
            app = create_app(Settings(model="fake", **settings), load_pipelines=pipeline.load)
            url = stack.enter_context(serving(app))
            pipeline.close()
            other = threading.Thread(
                target=httpx.post, args=(f"{url}/txt2img",), kwargs={"json": {"prompt": "another's"}, "timeout": 60}
            )
            other.start()
            stack.callback(other.join)
            stack.callback(pipeline.gate.set)
            assert pipeline.entered.acquire(timeout=10)
            return Busy(app, pipeline, url)

        yield make
