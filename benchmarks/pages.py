"""Measure the first paint of every page of the app against a Streamlit page that shows nothing but a heading.

    python -m benchmarks.pages RUNS RUN [--repeats 7]
RUNS is a folder of runs and RUN the name of the run that the pages show. Both servers run side by side, and one browser
opens the pages in turn; each figure is a median over rounds of the time from the page's web socket to its first heading,
with the scripts of Streamlit already in the browser's cache, and its ratio to the empty page's time in the same round.
Needs Chromium or Chrome.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from benchmarks.timing import by_turns, table

PAGES = (
    "/",
    "/features",
    "/feature",
    "/text",
    "/find",
    "/steering",
    "/dead",
    "/evidence",
    "/compare",
    "/activations",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EMPTY = "import streamlit\nstreamlit.title('Empty')\n"


@contextmanager
def serving(*command: str) -> Iterator[str]:
    """Run a server during the block and give the first address on this machine that it prints."""
    server = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if address := re.search(r"http://(localhost|127\.0\.0\.1):\d+", line):
                yield address[0]
                return
        raise SystemExit(f"`{' '.join(command)}` ended without serving")
    finally:
        server.terminate()
        server.wait()


class FirstPaint:
    """Opening a page until its first heading is there. Calling it takes as long as the paint, and what the browser needs."""

    def __init__(self, page: Page, url: str):
        self.page, self.url = page, url
        self.seconds: list[float] = []
        self.connected = 0.0

    def __call__(self) -> None:
        """Open the page and wait for its heading."""
        self.page.once("websocket", self._connect)
        self.page.goto(self.url)
        self.page.locator("h1").first.wait_for()
        self.seconds.append(time.perf_counter() - self.connected)

    def _connect(self, _: object) -> None:
        self.connected = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of runs")
    parser.add_argument("run", help="name of the run that the pages show")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count")
    asked = parser.parse_args()
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise SystemExit("no browser found: install Chromium or Chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        empty = Path(folder) / "empty.py"
        empty.write_text(EMPTY)
        options = ("--server.headless=true", "--server.port=18990", "--browser.gatherUsageStats=false")
        with (
            serving("streamlit", "run", str(empty), *options) as reference,
            serving("sae.cli.main", "app", str(asked.runs), "--port", "18991", "--no-browser") as app,
        ):
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
            tab = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
            paints = {"an empty page": FirstPaint(tab, reference)}
            paints |= {name: FirstPaint(tab, f"{app}{name}?run={asked.run}") for name in PAGES}
            by_turns(paints, asked.repeats)
            browser.close()
    print(report({name: paint.seconds[-asked.repeats :] for name, paint in paints.items()}))


def report(seconds: dict[str, list[float]]) -> str:
    """Return a table of the medians in milliseconds and of the ratios to the first page in the same round."""
    reference = next(iter(seconds.values()))

    def median(values: list[float]) -> float:
        return sorted(values)[len(values) // 2]

    rows = [
        [
            name,
            f"{1e3 * median(taken):,.0f}",
            f"{median([a / b for a, b in zip(taken, reference, strict=True)]):.2f}",
        ]
        for name, taken in seconds.items()
    ]
    return table(["first paint of", "ms", "times the empty page"], rows)


if __name__ == "__main__":
    main()
