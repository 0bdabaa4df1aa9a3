"""Measures the playground's first paint, and what every visit loads.

    .venv/bin/python -m benchmarks.first_paint [--visits 10]

Each visit is a new profile of headless Chromium, on loopback, beside the service with the fake model. The first visit
also starts the browser's processes and is not counted.
"""

import argparse
import statistics
from pathlib import Path

from playwright.sync_api import Browser

from benchmarks.support import machine
from benchmarks.support.browser import chromium
from benchmarks.support.contestants import ROOT, Contestant, RunningServer, interpreter, start

_LOGS = ROOT / "build" / "bench"
_STATIC = ROOT / "app" / "api" / "playground" / "static"
_SERVICE = Contestant(
    key="first-paint",
    title="the service with the fake model",
    command=("-m", "app", "serve"),
    path="/txt2img",
    settings={"TURBO_MCP": "false"},
)


def _visit(browser: Browser, url: str) -> tuple[float, int]:
    """Return the time of the first paint in milliseconds, and the bytes of scripts and styles that were loaded."""
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        page = context.new_page()
        names: set[str] = set()
        page.on("request", lambda request: names.add(request.url.rsplit("/", 1)[-1]))
        page.goto(url)
        page.wait_for_selector("#examples button")
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        painted: float = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    loaded = [_STATIC / name for name in names if name.endswith((".js", ".css"))]
    return painted, sum(file.stat().st_size for file in loaded)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visits", type=int, default=10, help="(default: %(default)s)")
    visits = parser.parse_args().visits
    service = start(_SERVICE, interpreter(), Path("fake"), _LOGS)
    assert isinstance(service, RunningServer)
    try:
        with chromium() as browser:
            url = f"http://127.0.0.1:{service.port}/"
            measured = [_visit(browser, url) for _ in range(visits + 1)][1:]
    finally:
        service.stop()
    painted = sorted(ms for ms, _ in measured)
    print(", ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print(f"first paint: {statistics.median(painted):.0f} ms (median; {painted[0]:.0f} to {painted[-1]:.0f} ms)")
    everything = sum(file.stat().st_size for file in _STATIC.iterdir() if file.suffix in (".js", ".css"))
    print(f"scripts and styles: {measured[0][1]:,} bytes at each visit, {everything:,} with all that may be used")


if __name__ == "__main__":
    _main()
