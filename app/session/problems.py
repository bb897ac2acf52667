"""What goes wrong or is not there yet, as one line or an empty state in the page."""

from collections.abc import Iterator
from contextlib import contextmanager

from activations.errors import WorkbenchError
from app import widgets


class Missing(Exception):
    """There is nothing to show yet: what, why, and the command that changes it."""

    def __init__(self, title: str, why: str, command: str):
        super().__init__(title)
        self.title, self.why, self.command = title, why, command


@contextmanager
def readable() -> Iterator[None]:
    """Show what the block raises on purpose as one line in the page; nothing below it is shown."""
    try:
        yield
    except Missing as missing:
        widgets.empty(missing.title, missing.why, missing.command, level=1)
    except WorkbenchError as error:
        widgets.error(str(error))
