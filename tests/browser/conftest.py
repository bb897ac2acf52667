"""The app as people use it: the server that `sae app` starts, and a browser without a network."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from sae.runs.run import Run
from sae.trust.plan import TrustConfig
from sae.workflows.trust import trust
from tests.app import worlds

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--no-first-run",
)
PATIENCE = (
    60_000  # milliseconds; a page takes one or two seconds on an idle machine, much longer beside other work
)

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of runs that the server shows."""
    return worlds.make(tmp_path_factory.mktemp("browser") / "runs", world / "runs" / "toy")


@pytest.fixture(scope="session")
def trusted(runs: Path) -> str:
    """Return the name of a run beside the others that has evidence: controls and seeds."""
    shutil.copytree(runs / "toy", runs / "trusted")
    trust(Run(runs / "trusted"), TrustConfig(windows=0))
    return "trusted"


@pytest.fixture(scope="session")
def address(runs: Path) -> Iterator[str]:
    """Return the address where `sae app` serves the runs."""
    with serving(runs, 18600) as address:
        yield address


@contextmanager
def serving(
    runs: Path, port: int, program: Sequence[str] = ("-m", "sae.cli.main"), **variables: str
) -> Iterator[str]:
    """Run `sae app` over a folder of runs during the block and give its address. Keywords are environment variables."""
    port += 20 * int(
        os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]
    )  # of two that begin at once, each has its own
    command = [sys.executable, *program, "app", str(runs), "--port", str(port), "--no-browser"]
    # of two threads on two busy cores each waits for the other at every operation of a toy model
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **variables}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    line = server.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found, f"`sae app` did not say where it serves: {line!r}"
    _wait_for(found[0])
    yield found[0]
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=20) == 0, "Ctrl-C is the usual way to end it"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Return the first Chromium or Chrome on this machine. Without one the tests fail; they are not skipped."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail("no browser found: `apt-get install -y chromium` (Debian), or put one of "
                    f"{', '.join(BROWSERS)} on the PATH")  # fmt: skip
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield made
        made.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """Give an empty tab. After the test, check that no request left this machine and that the page had no errors."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, base_url=address)
    tab = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("console", lambda message: complaints.append(message.text) if _is_fault(message) else None)
    yield tab
    context.close()
    here = (address, address.replace("http", "ws", 1), "data:", "blob:")
    assert requests, "nothing was asked for, nothing was tested"
    assert [url for url in requests if not url.startswith(here)] == []
    assert complaints == []


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < deadline:
        try:
            with urlopen(f"{address}/_stcore/health", timeout=5):
                return
        except HTTPError:
            return  # somebody answers, and asks for a password
        except OSError:  # nobody listens yet, or is too busy to answer in time
            time.sleep(0.1)
    raise AssertionError(f"nobody answers at {address}")


def _is_fault(message) -> bool:
    """Return the errors in the console but for Streamlit's own: it requests its health check below each page's address
    before it requests it at the root."""
    return message.type == "error" and "/_stcore/" not in message.location.get("url", "")
