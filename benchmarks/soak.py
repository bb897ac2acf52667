"""A training and the app in use for a long time: does memory stay flat?

    python -m benchmarks.soak --store stores/demo --runs runs [--minutes 60]
A training of more steps than there is time for writes its checkpoints, while a browser goes from page to page of the app over the
same folder of runs, opening features at random. Memory (resident, of each with its children) is read every few seconds; what
counts is the change from the second third of the time to the last, in which nothing is loaded for the first time any more.
"""

import argparse
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median

from playwright.sync_api import sync_playwright

from benchmarks.timing import table

EVERY, SETTLE = 5.0, 3.0  # seconds between readings of memory; what a page gets to be drawn
BROWSER = ("chromium", "chromium-browser", "google-chrome")


def family(pid: int) -> Iterator[int]:
    """Return a process and all that it started."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from family(int(child))


def resident(pid: int) -> float:
    """Return the MB that a process and its children have in memory; 0 when it has ended.

    Pages of mapped files are left out, because the system takes them back."""
    kilobytes = 0
    for member in family(pid):
        with suppress(OSError):
            found = re.search(r"RssAnon:\s*(\d+)", Path(f"/proc/{member}/status").read_text())
            kilobytes += int(found[1]) if found else 0
    return kilobytes / 1e3


def visits(address: str, run: str, latents: int) -> Iterator[str]:
    """Addresses, without end."""
    draw = random.Random(0)
    while True:
        yield f"{address}/?run={run}"
        yield f"{address}/features?run={run}"
        for _ in range(3):
            yield f"{address}/feature?run={run}&feature={draw.randrange(latents)}"
        yield f"{address}/dead?run={run}"


def browse(address: str, run: str, latents: int, until: float) -> int:
    """Open page after page until the time `until`, and return how many were opened. Raises SystemExit where one shows an error."""
    opened = 0
    with sync_playwright() as playwright:
        path = next(found for name in BROWSER if (found := shutil.which(name)))
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        for url in visits(address, run, latents):
            if time.time() > until:
                break
            page = browser.new_page()
            page.goto(url, timeout=120_000)
            page.wait_for_selector("h1", timeout=120_000)
            page.wait_for_timeout(1000 * SETTLE)
            if page.locator("[data-testid=stException], [data-testid=stAlert]").count():
                raise SystemExit(f"{url} shows: {page.locator('main').inner_text()[:300]}")
            page.close()
            opened += 1
        browser.close()
    return opened


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--run", default="demo", help="whose pages are opened")
    parser.add_argument("--latents", type=int, default=8192, help="features it has")
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    run = args.runs / "soak"
    sae = [sys.executable, "-m", "sae.cli.main"]
    train = [
        *sae,
        "train",
        "topk",
        "--store",
        str(args.store),
        "--out",
        str(run),
        "--train.steps",
        "1000000",
        "--arch.d-sae",
        "2048",
    ]
    app = subprocess.Popen([*sae, "app", str(args.runs), "--no-browser"], stdout=subprocess.PIPE, text=True)
    training = subprocess.Popen([*train, "--train.checkpoint-minutes", "0.2"], stderr=subprocess.DEVNULL)
    memory: dict[str, list[float]] = {"app": [], "training": []}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(EVERY):
            memory["app"].append(resident(app.pid))
            memory["training"].append(resident(training.pid))

    try:
        assert app.stdout is not None
        address = re.search(r"http://\S+", app.stdout.readline())
        assert address is not None
        time.sleep(5)
        threading.Thread(target=watch, daemon=True).start()
        opened = browse(address[0], args.run, args.latents, time.time() + 60 * args.minutes)
        steps = (run / "log.jsonl").read_text().count("\n")
    finally:
        over.set()
        for process in (training, app):
            process.send_signal(signal.SIGINT)
            process.wait()
        shutil.rmtree(run, ignore_errors=True)
    print(f"\n{args.minutes:.0f} minutes: {opened:,} pages opened, {steps:,} rows in the training's log\n")
    rows = []
    for name, found in memory.items():
        third = len(found) // 3
        parts = [median(found[start : start + third]) for start in (0, third, 2 * third)]
        rows.append(
            [name, *(f"{part:,.0f}" for part in parts), f"{parts[2] - parts[1]:+,.0f}", f"{max(found):,.0f}"]
        )
    print(table(["MB", "first third", "second", "last", "last - second", "largest"], rows))


if __name__ == "__main__":
    main()
