"""What the tests of the command line share: a process to start commands from, and folders to break."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import Server


@pytest.fixture(scope="session")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs `sae` commands, each in a process of its own."""
    server = Server(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture
def store(world: Path, tmp_path: Path) -> Path:
    """A copy of the toy store, to be damaged."""
    return Path(shutil.copytree(world / "store", tmp_path / "store"))


@pytest.fixture
def run(world: Path, tmp_path: Path) -> Path:
    """A copy of the toy run, to be damaged; its store and model are the toy world's."""
    return Path(shutil.copytree(world / "runs" / "toy", tmp_path / "run"))
