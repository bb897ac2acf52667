"""SAEs on the Hugging Face hub: fetch them, search well-known ones, share runs. This file parses their names,
hf:OWNER/REPOSITORY[/PATH][@REVISION]."""

import re
from pathlib import Path
from typing import NamedTuple

from activations.errors import HubError

PREFIX = "hf:"
FORM = "hf:OWNER/REPOSITORY[/PATH][@REVISION]"
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


class HubName(NamedTuple):
    """A repository of the hub, and a folder or file in it."""

    repository: str
    """OWNER/REPOSITORY."""
    path: str = ""
    """Folder or file within the repository; empty for all of it."""
    revision: str | None = None
    """Branch, tag or commit; None for the main branch."""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{'/' * bool(self.path)}{self.path}{at}"


def is_hub_name(text: str | Path) -> bool:
    """Return whether a text names something on the hub and not on this machine."""
    return str(text).startswith(PREFIX)


def parse_name(text: str | Path) -> HubName:
    """Parse a name that begins with hf:. Raises HubError when it does not name a repository."""
    rest, at, revision = str(text).removeprefix(PREFIX).lstrip("/").partition("@")
    owner, _, inner = rest.rstrip("/").partition("/")
    repository, _, path = inner.partition("/")
    full_name = f"{owner}/{repository}"
    parts = path.split("/") if path else []
    valid = REPOSITORY.fullmatch(full_name) and all(
        part.isprintable() and part not in ("", ".", "..") for part in parts
    )
    if not is_hub_name(text) or not valid or (at and not re.fullmatch(r"[\w./-]+", revision)):
        raise HubError(f"{str(text)!r} is not a name on the hub; expected {FORM}, as in hf:google/gemma-scope-2b-pt-res/"
                       f"layer_20/width_16k/average_l0_71")  # fmt: skip
    return HubName(full_name, path, revision or None)
