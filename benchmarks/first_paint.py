"""Measures the playground's first paint, and what every visit loads.

    .venv/bin/python -m benchmarks.first_paint [--visits 10]

Each visit is a new profile of headless Chromium, on loopback, beside the service with the fake model. The first visit
also starts the browser's processes and is not counted.
"""

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path

import httpx
from playwright.sync_api import Browser, sync_playwright

from benchmarks.support import machine, process_tree
from benchmarks.support.contestants import ROOT, environment, free_port, launch

_RESULTS = ROOT / "build" / "bench"
_STATIC = ROOT / "app" / "api" / "playground" / "static"
_START_LIMIT_S = 60


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
    _RESULTS.mkdir(parents=True, exist_ok=True)
    port = free_port()
    settings = {"TURBO_MODEL": "fake", "TURBO_PORT": str(port), "TURBO_MCP": "false"}
    command = [sys.executable, "-m", "app", "serve"]
    process = launch(command, environment(Path("fake"), settings), _RESULTS / "first_paint.log")
    url = f"http://127.0.0.1:{port}/"
    try:
        until = time.monotonic() + _START_LIMIT_S
        while not _ready(url):
            if time.monotonic() > until:
                sys.exit("The service did not start.")
            time.sleep(0.1)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            measured = [_visit(browser, url) for _ in range(visits + 1)][1:]
            browser.close()
    finally:
        process_tree.end(process.pid)
    painted = sorted(ms for ms, _ in measured)
    print(", ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print(f"first paint: {statistics.median(painted):.0f} ms (median; {painted[0]:.0f} to {painted[-1]:.0f} ms)")
    everything = sum(file.stat().st_size for file in _STATIC.iterdir() if file.suffix in (".js", ".css"))
    print(f"scripts and styles: {measured[0][1]:,} bytes at each visit, {everything:,} with all that may be used")


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}healthz/ready").is_success
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    _main()
