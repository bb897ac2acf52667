"""A folder of runs for the pages."""

from pathlib import Path

import pytest

from tests.app import worlds


@pytest.fixture(scope="session")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs toy, bare, sweep/unfinished and one with hostile texts; not to be changed."""
    return worlds.make(tmp_path_factory.mktemp("app") / "runs", world / "runs" / "toy")
