"""Other tools' files: one module a format, each with what it can do; the table is what `sae import` offers."""

from pathlib import Path
from typing import Protocol

from sae.architectures import SAE
from sae.foreign import (
    dictionary_learning,
    gemma_scope,
    llama_scope,
    openai,
    qwen_scope,
    saelens,
    sparsify,
    workbench,
)
from sae.foreign.weights import Imported, Layout, Origin


class Format(Protocol):
    """A module of this folder."""

    @property
    def TITLE(self) -> str:
        """The tool and what of it is meant, in a few words."""
        ...

    @property
    def LAYOUTS(self) -> tuple[Layout, ...]:
        """How its files lie in a folder, for finding SAEs in a list of files."""
        ...

    def recognises(self, path: Path) -> bool:
        """Whether a file or folder looks like this format's, by names and keys; the rest is `read`'s to judge."""
        ...

    def read(self, path: Path) -> Imported:
        """The SAE in it. Raises ForeignError when it is damaged, or has no exact form here."""
        ...


class WritableFormat(Format, Protocol):
    """A format that SAEs of ours can be written in."""

    def write(self, sae: SAE, origin: Origin, path: Path) -> list[str]:
        """Write a folder that was not there, whole or not at all; returns what to tell the user, a line each.

        Raises ForeignError when the format cannot hold it, FileExistsError when there is something at `path`."""
        ...


WRITABLE: dict[str, WritableFormat] = {
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
    "openai": openai,
    "gemma_scope": gemma_scope,
}
FORMATS: dict[str, Format] = {
    **WRITABLE,
    "llama_scope": llama_scope,
    "qwen_scope": qwen_scope,
    "workbench": workbench,
}
__all__ = ["FORMATS", "WRITABLE", "Format", "Imported", "Layout", "Origin", "WritableFormat"]
