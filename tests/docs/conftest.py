"""A process to start commands from, and the folder that pages speak of."""

from pathlib import Path

import pytest

from tests.cli.conftest import sae  # noqa: F401
from tests.docs.stand_ins import furnish


@pytest.fixture
def place(world: Path, tmp_path: Path) -> Path:
    """A folder of stand-ins, to be written into."""
    return furnish(tmp_path, world)
