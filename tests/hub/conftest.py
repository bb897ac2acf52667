"""Fixtures for tests of the hub: a fake hub of the test's own, and commands that ask it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.commands import Ended, Server
from tests.hub.fake_hub import FakeHub, running


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """Start an empty hub."""
    with running() as hub:
        yield hub


@pytest.fixture
def asking(hub: FakeHub, sae: Server, tmp_path: Path) -> Callable[..., Ended]:
    """Return a function that runs a command against this hub only, with its own cache; `token` identifies the user."""

    def ask(*args: object, token: str | None = None, url: str | None = None, **options: object) -> Ended:
        place = (url or hub.url, str(tmp_path / "cache"), token)
        return sae(*args, hub_at=place, cwd=tmp_path, **options)

    return ask


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, as a repository holds them."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }
