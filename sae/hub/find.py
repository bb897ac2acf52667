"""Which SAEs a list of files holds, in which format, and which of the files each of them needs."""

import posixpath
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

from activations.errors import HubError
from sae.foreign import FORMATS, other_dictionaries
from sae.hub.names import HubName

LISTED = 5  # SAEs named of a repository that holds many
ANY_PICKLE = (
    "openai"  # the format of which a file's name says nothing but .pt: meant where no other format is there
)


class Found(NamedTuple):
    """An SAE in a repository."""

    form: str
    """Name of its format."""
    path: str
    """Its folder, or its file where a folder may hold many; empty for the repository's own folder."""
    files: tuple[str, ...]
    """What reading it needs."""


def saes_among(files: Sequence[str], form: str | None = None) -> list[Found]:
    """Return the SAEs in a list of paths, in their order, of one format or of all."""
    there = set(files)
    found: dict[tuple[str, str], Found] = {}
    for name in [form] if form else FORMATS:
        for layout in FORMATS[name].LAYOUTS:
            for file in files:
                match = re.fullmatch(rf"(?:(.+)/)?({layout.weights})", file)
                if match is None:
                    continue
                folder = match[1] or ""
                beside = [posixpath.join(folder, one) for one in layout.beside]
                if not there.issuperset(beside):
                    continue
                more = [one for pattern in layout.perhaps for one in _matching(files, folder, pattern)]
                path = file if layout.names_file else folder
                found[name, path] = Found(name, path, tuple(dict.fromkeys([file, *beside, *more])))
    known = [one for one in found.values() if one.form != ANY_PICKLE]
    return known or [*found.values()]


def _matching(files: Sequence[str], folder: str, pattern: str) -> list[str]:
    """Return the files that a path from a folder names: it may begin with ../ and end in /*."""
    path = posixpath.normpath(posixpath.join(folder, pattern))
    if path.endswith("/*"):
        return [file for file in files if file.startswith(path[:-1])]
    return [path] if path in files else []


def the_sae(name: HubName, files: Sequence[str], form: str | None = None) -> Found:
    """Return the SAE that a name means among a repository's files.

    Raises HubError when there is none, naming what is near or what else the files are, and when there are several,
    listing them."""
    path, every = name.path, saes_among(files, form)
    if not path and len(every) != 1:
        exact = [one for one in every if one.path == ""]
    else:
        exact = [one for one in every if one.path == path or (path and path in one.files[:1])]
    within = exact or [one for one in every if not path or one.path.startswith(f"{path}/")]
    if len(within) == 1:
        return within[0]
    if within:
        listed = ", ".join(one.path for one in within[:LISTED])
        more = f" and {len(within) - LISTED:,} more" if len(within) > LISTED else ""
        example = name._replace(path=within[0].path)
        raise HubError(
            f"{name} holds {len(within):,} SAEs: {listed}{more}; name one, as in sae import {example} --out RUN"
        )
    inside = [file for file in files if not path or file == path or file.startswith(f"{path}/")]
    if not inside:
        folders = {*files, *(file.rpartition("/")[0] for file in files)} - {""}
        near = get_close_matches(path, [one.path for one in every] + sorted(folders), n=3, cutoff=0.3)
        raise HubError(
            f"{name.repository} has no {path}; nearest: {', '.join(dict.fromkeys(near)) or 'nothing'}"
        )
    if what := other_dictionaries.among(inside):
        raise HubError(f"{name} is {what}: {other_dictionaries.WHY}")
    listed = ", ".join(inside[:LISTED]) + (" …" if len(inside) > LISTED else "")
    raise HubError(
        f"{name} holds no SAE in a format known here ({form or ', '.join(FORMATS)}); its files: {listed}"
    )
