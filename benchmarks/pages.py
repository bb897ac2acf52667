"""Measure how soon every page of the app paints and is whole, against a Streamlit page that shows nothing but a heading.

    python -m benchmarks.pages RUNS RUN [--repeats 7]
RUNS is a folder of runs and RUN the name of the run that the pages show. Both servers run side by side, and one browser
opens the pages in turn. Each figure is a median over rounds of the time from the page's web socket, with the scripts of
Streamlit already in the browser's cache: to the page's first heading (the paint), with its ratio to the empty page's in the
same round, and until the server has run the page's script to its end and the browser has received what it sends (the whole).
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


DONE = "[data-testid=stApp][data-test-script-state=notRunning]"  # how Streamlit marks a page whose script has ended


class Opening:
    """Opening a page until its first heading is there and then until it is whole, in seconds from its web socket."""

    def __init__(self, page: Page, url: str):
        self.page, self.url = page, url
        self.painted: list[float] = []
        self.whole: list[float] = []
        self.connected = 0.0

    def __call__(self) -> None:
        """Open the page and wait for its heading and its end."""
        self.page.once("websocket", self._connect)
        self.page.goto(self.url)
        self.page.locator("h1").first.wait_for()
        self.painted.append(time.perf_counter() - self.connected)
        self.page.locator(DONE).wait_for()
        self.whole.append(time.perf_counter() - self.connected)

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
            openings = {"an empty page": Opening(tab, reference)}
            openings |= {name: Opening(tab, f"{app}{name}?run={asked.run}") for name in PAGES}
            by_turns(openings, asked.repeats)
            browser.close()
    painted = {name: opening.painted[-asked.repeats :] for name, opening in openings.items()}
    print(report(painted, {name: opening.whole[-asked.repeats :] for name, opening in openings.items()}))


def report(painted: dict[str, list[float]], whole: dict[str, list[float]]) -> str:
    """Return a table of the medians in milliseconds and of the paints' ratios to that of the first page in the same round."""
    reference = next(iter(painted.values()))

    def median(values: list[float]) -> float:
        return sorted(values)[len(values) // 2]

    rows = [
        [
            name,
            f"{1e3 * median(taken):,.0f}",
            f"{median([a / b for a, b in zip(taken, reference, strict=True)]):.2f}",
            f"{1e3 * median(whole[name]):,.0f}",
        ]
        for name, taken in painted.items()
    ]
    return table(["page", "paint, ms", "times the empty page's", "whole, ms"], rows)


if __name__ == "__main__":
    main()
