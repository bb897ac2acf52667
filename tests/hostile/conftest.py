"""A folder with one whole file of every kind, and the process that reads them mutated."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import worlds
from tests.hostile.fuzz import Fuzzer, fuzzing


@pytest.fixture(scope="session")
def kinds(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole file of every kind; to be restored by whoever changes one."""
    return worlds.make(tmp_path_factory.mktemp("hostile") / "world", world)


@pytest.fixture(scope="session")
def fuzz(kinds: Path) -> Iterator[Fuzzer]:
    """Lets readers read mutated files."""
    with fuzzing(kinds) as made:
        yield made
