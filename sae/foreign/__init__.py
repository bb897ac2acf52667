"""Read and write other tools' SAE files: one module per format, and the table of formats that `sae import` offers.

An installed package adds a format under the entry point group `sae.formats`, as NAME = "package.module": any module, or
object, with the members of `Format`, or of `WritableFormat`. Files of dictionaries that are not SAEs share no format with
one; they are recognised too, so that errors can name what they are."""

import re
from collections.abc import Iterable
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
    """A file format that SAEs can be read from; the modules of this folder are such objects."""

    @property
    def TITLE(self) -> str:
        """The tool and its files, in a few words."""
        ...

    @property
    def LAYOUTS(self) -> tuple[Layout, ...]:
        """Arrangements of the format's files in a folder, by which SAEs are recognised in a list of files."""
        ...

    def recognises(self, path: Path) -> bool:
        """Return whether a file or folder looks like this format by its names and keys; `read` checks the rest."""
        ...

    def read(self, path: Path) -> Imported:
        """Read the SAE in a file or folder. Raises ForeignError when it is damaged or has no exact form here."""
        ...


@runtime_checkable
class WritableFormat(Format, Protocol):
    """A format in which SAEs of ours can also be written."""

    def write(self, sae: SAE, origin: Origin, path: Path) -> list[str]:
        """Write a new folder, complete or not at all, and return notes for the user, one line each.

        Raises ForeignError when the format cannot hold the SAE, FileExistsError when `path` exists."""
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
    """Return why a package's object cannot serve as a format; None if it can."""
    lacking = [member for member in ("TITLE", "LAYOUTS", "recognises", "read") if not hasattr(thing, member)]
    return f"lacks {', '.join(lacking)}" if lacking else None


FORMATS = Plugins[Format](GROUP, BUILT_IN, problem)


def writable() -> dict[str, WritableFormat]:
    """Return the formats in which SAEs of ours can be written, by name."""
    return {name: form for name, form in FORMATS.items() if isinstance(form, WritableFormat)}


NOT_AN_SAE = "an SAE here reconstructs what it reads"
OTHER_DICTIONARIES = {
    r"W_(enc|dec)_\d+\.safetensors": "a cross-layer transcoder (CLT), which writes to later layers than it reads",
    r"(params_)?layer_\d+\.safetensors": "a transcoder, which reconstructs an MLP's output from its input, or one layer of a "
    "cross-layer transcoder (CLT)",
}
"""Pattern of a file name that circuit-tracer and Gemma Scope 2 write -> what the file holds."""


def other_dictionary_among(names: Iterable[str]) -> str | None:
    """Return what the first recognised of these files holds; None when none is recognised."""
    for name in names:
        for pattern, what in OTHER_DICTIONARIES.items():
            if re.fullmatch(pattern, name.rpartition("/")[2]):
                return what
    return None


def other_dictionary_at(path: Path) -> str | None:
    """Return what a file or folder of files holds if it is recognised as something other than an SAE, None otherwise."""
    return other_dictionary_among(
        [path.name] if path.is_file() else sorted(file.name for file in path.iterdir())
    )


__all__ = [
    "FORMATS",
    "NOT_AN_SAE",
    "Format",
    "Imported",
    "Layout",
    "Origin",
    "WritableFormat",
    "other_dictionary_among",
    "other_dictionary_at",
    "writable",
]
