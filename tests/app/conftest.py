"""A folder of runs for the pages."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.app import pages, worlds


@pytest.fixture(scope="session")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `worlds.make` fills; tests must not change it."""
    return worlds.make(tmp_path_factory.mktemp("app") / "runs", world / "runs" / "toy")


@pytest.fixture
def show(runs: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that opens a page, as in show("features", run="toy"); `folder` shows another folder of runs."""

    def show(page: str = "runs", folder: Path = runs, **query: str) -> AppTest:
        monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(folder)])
        return pages.opened(page, query)

    return show
