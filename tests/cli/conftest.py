"""What the tests of the command line share: folders to break."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def store(world: Path, tmp_path: Path) -> Path:
    """A copy of the toy store, to be damaged."""
    return Path(shutil.copytree(world / "store", tmp_path / "store"))


@pytest.fixture
def run(world: Path, tmp_path: Path) -> Path:
    """A copy of the toy run, to be damaged; its store and model are the toy world's."""
    return Path(shutil.copytree(world / "runs" / "toy", tmp_path / "run"))
