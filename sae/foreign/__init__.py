"""Other tools' files: one module for each format; the table is what `sae import` offers.

An installed package adds a format under the entry point group `sae.formats`, as NAME = "package.module": any module, or
object, with the members of `Format`, or of `WritableFormat`."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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
from sae.plugins import Plugins


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


@runtime_checkable
class WritableFormat(Format, Protocol):
    """A format that SAEs of ours can be written in."""

    def write(self, sae: SAE, origin: Origin, path: Path) -> list[str]:
        """Write a folder that was not there, whole or not at all; returns what to tell the user, a line each.

        Raises ForeignError when the format cannot hold it, FileExistsError when there is something at `path`."""
        ...


GROUP = "sae.formats"
BUILT_IN: dict[str, Format] = {
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
    "openai": openai,
    "gemma_scope": gemma_scope,
    "llama_scope": llama_scope,
    "qwen_scope": qwen_scope,
    "workbench": workbench,
}


def problem(name: str, thing: Any) -> str | None:
    """Return what keeps a package's object from being a format, None if nothing does."""
    lacking = [member for member in ("TITLE", "LAYOUTS", "recognises", "read") if not hasattr(thing, member)]
    return f"lacks {', '.join(lacking)}" if lacking else None


FORMATS = Plugins[Format](GROUP, BUILT_IN, problem)


def writable() -> dict[str, WritableFormat]:
    """Return the formats that SAEs of ours can be written in, by name."""
    return {name: form for name, form in FORMATS.items() if isinstance(form, WritableFormat)}


__all__ = ["FORMATS", "Format", "Imported", "Layout", "Origin", "WritableFormat", "writable"]
