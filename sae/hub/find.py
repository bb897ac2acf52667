"""Find the SAEs in a list of files: their formats, their paths, and which of the files each of them needs."""

import posixpath
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

from activations.errors import HubError, quoted
from sae.foreign import FORMATS, NOT_AN_SAE, other_dictionary_among
from sae.hub import HubName

LISTED = 5  # SAEs named of a repository that holds many
# Files of this format are only recognised by the file extension .pt, so it counts where no other format matches.
ANY_PICKLE = "openai"


class Found(NamedTuple):
    """An SAE in a repository."""

    form: str
    """Name of its format."""
    path: str
    """Its folder, or its file where a folder may hold many; empty for the repository's root."""
    files: tuple[str, ...]
    """The files needed to read it, its weights first."""


def saes_among(files: Sequence[str], form: str | None = None) -> list[Found]:
    """Return the SAEs in a list of paths, in the order of the paths, of one format or of all."""
    paths = set(files)
    saes: dict[tuple[str, str], Found] = {}
    for name in [form] if form else FORMATS:
        for layout in FORMATS[name].LAYOUTS:
            for file in files:
                match = re.fullmatch(rf"(?:(.+)/)?({layout.weights})", file)
                if match is None:
                    continue
                folder = match[1] or ""
                beside = [posixpath.join(folder, file_name) for file_name in layout.beside]
                if not paths.issuperset(beside):
                    continue
                optional = [path for pattern in layout.perhaps for path in _matching(files, folder, pattern)]
                path = file if layout.names_file else folder
                saes[name, path] = Found(name, path, tuple(dict.fromkeys([file, *beside, *optional])))
    certain = [sae for sae in saes.values() if sae.form != ANY_PICKLE]
    return certain or [*saes.values()]


def _matching(files: Sequence[str], folder: str, pattern: str) -> list[str]:
    """Return the files that a path relative to a folder names; it may begin with ../ and end in /*."""
    path = posixpath.normpath(posixpath.join(folder, pattern))
    if path.endswith("/*"):
        return [file for file in files if file.startswith(path[:-1])]
    return [path] if path in files else []


def the_sae(name: HubName, files: Sequence[str], form: str | None = None) -> Found:
    """Return the SAE that a name refers to among a repository's files.

    Raises HubError when there is none, naming the nearest paths or what the files hold instead, and when there are
    several, listing them."""
    path, saes = name.path, saes_among(files, form)
    if not path and len(saes) != 1:
        exact = [sae for sae in saes if sae.path == ""]
    else:
        exact = [sae for sae in saes if sae.path == path or (path and path in sae.files[:1])]
    within = exact or [sae for sae in saes if not path or sae.path.startswith(f"{path}/")]
    if len(within) == 1:
        return within[0]
    if within:
        listed = ", ".join(sae.path for sae in within[:LISTED])
        more = f" and {len(within) - LISTED:,} more" if len(within) > LISTED else ""
        example = name._replace(path=within[0].path)
        raise HubError(
            f"{name} holds {len(within):,} SAEs: {listed}{more}",
            fix=f"sae import {quoted(example)} --out RUN",
        )
    inside = [file for file in files if not path or file == path or file.startswith(f"{path}/")]
    if not inside:
        folders = {*files, *(file.rpartition("/")[0] for file in files)} - {""}
        near = get_close_matches(path, [sae.path for sae in saes] + sorted(folders), n=3, cutoff=0.3)
        raise HubError(
            f"{name.repository} has no {path}; nearest: {', '.join(dict.fromkeys(near)) or 'nothing'}"
        )
    if what := other_dictionary_among(inside):
        raise HubError(f"{name} is {what}: {NOT_AN_SAE}")
    listed = ", ".join(inside[:LISTED]) + (" …" if len(inside) > LISTED else "")
    raise HubError(
        f"{name} holds no SAE in a format known here ({form or ', '.join(FORMATS)}); its files: {listed}"
    )
