"""Errors and what is still missing, as a page shows them: one line and the command that puts it right, ready to copy."""

from collections.abc import Iterator
from contextlib import contextmanager

from activations.errors import WorkbenchError
from app import widgets


class Missing(Exception):
    """A page has nothing to show yet: the title says what is missing, then come the reason and the command that makes it."""

    def __init__(self, title: str, why: str, command: str):
        super().__init__(title)
        self.title, self.why, self.command = title, why, command


@contextmanager
def readable() -> Iterator[None]:
    """Show what the block raises on purpose in the page, which ends there."""
    try:
        yield
    except Missing as missing:
        widgets.empty(missing.title, missing.why, missing.command, level=1)
    except WorkbenchError as error:
        show(error)


def show(error: WorkbenchError) -> None:
    """Show an error as its message and, below, the command that fixes it, if there is one."""
    widgets.error(error.message, error.fix)
