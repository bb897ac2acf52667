"""A folder of runs for the pages."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.app import pages, worlds


@pytest.fixture(scope="session")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of `worlds.make`; not to be changed."""
    return worlds.make(tmp_path_factory.mktemp("app") / "runs", world / "runs" / "toy")


@pytest.fixture
def show(runs: Path, monkeypatch: pytest.MonkeyPatch):
    """Open a page: show("features", run="toy"); of another folder with `folder=`."""

    def show(page: str = "runs", folder: Path = runs, **query: str) -> AppTest:
        monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(folder)])
        return pages.opened(page, query)

    return show
