"""Lists of latents that people collect and annotate, in lists.json beside the features folder (FORMAT.md, Lists)."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from activations.disk import files
from activations.disk.schema import parse
from activations.errors import RunError
from sae.runs.saved_sae import read_record

FORMAT = 1
FILE = "lists.json"
LONGEST_NAME, LONGEST_NOTE = 64, 4000  # characters


@dataclass(frozen=True)
class ListEntry:
    """A latent in a list, with the note on it there."""

    feature: int
    note: str


@dataclass(frozen=True)
class ListsRecord:
    """The content of lists.json."""

    saes: dict[str, dict[str, list[ListEntry]]]
    """SHA-256 of an SAE's weights -> name of the list -> its latents."""


@dataclass(frozen=True)
class FeatureList:
    """The content of a file that shares one list."""

    format: int
    sae_sha256: str
    name: str
    features: list[ListEntry]


class Lists:
    """The lists of one SAE's latents, each latent with a note. Every call reads the file anew, and changes are written at once.

    As labels do, lists belong to an SAE by the SHA-256 of its weights, and several programs may write at the same time."""

    def __init__(self, path: Path, sae_sha256: str, n_latents: int):
        self.path, self.sae_sha256, self.n_latents = path, sae_sha256, n_latents

    def all(self) -> dict[str, dict[int, str]]:
        """Return every list by name: the notes by latent, in the order in which the latents were added.

        Raises RunError when the file is damaged or of a newer format."""
        return self._read().get(self.sae_sha256, {})

    def add(self, name: str, notes: Mapping[int, str]) -> None:
        """Add latents with their notes to a list, which begins with them if there is none of this name.

        A latent that the list has already gets the new note, unless that is empty. Raises RunError for a name that is empty or
        too long, and for a latent that does not exist."""
        name = name.strip()
        if not name or len(name) > LONGEST_NAME:
            raise RunError(f"the name of a list has {len(name)} characters, must have 1 to {LONGEST_NAME}")
        for latent in notes:
            if not 0 <= latent < self.n_latents:
                raise RunError(f"feature {latent} does not exist: this run has 0 to {self.n_latents - 1}")
        with self._lock():
            saes = self._read()
            entries = saes.setdefault(self.sae_sha256, {}).setdefault(name, {})
            for latent, note in notes.items():
                entries[latent] = note.strip()[:LONGEST_NOTE] or entries.get(latent, "")
            self._write(saes)

    def remove(self, name: str, latent: int) -> None:
        """Remove a latent from a list; the list ends with its last one. What is not there stays away."""
        with self._lock():
            saes = self._read()
            lists = saes.get(self.sae_sha256, {})
            lists.get(name, {}).pop(latent, None)
            if not lists.get(name, True):
                del lists[name]
            self._write(saes)

    def export(self, name: str) -> bytes:
        """Return a list as a JSON file to share, which `load` reads. Raises RunError when there is no such list."""
        entries = self.all().get(name)
        if entries is None:
            raise RunError(f"there is no list {name!r} in {self.path}")
        content = {"format": FORMAT, "sae_sha256": self.sae_sha256, "name": name, "features": _rows(entries)}
        return json.dumps(content, ensure_ascii=False, indent=1).encode()

    def load(self, content: bytes, file: str) -> str:
        """Add the list of a file that `export` made, and return its name. `file` names the file in messages.

        Raises RunError, and changes nothing, when the file cannot be read or lists the latents of another SAE."""
        try:
            shared = parse(FeatureList, files.parse_json(content.decode("utf-8-sig")))
        except (ValueError, TypeError) as error:
            raise RunError(f"{file} cannot be read as a list of features: {error}") from error
        if shared.format > FORMAT:
            raise RunError(f"{file} has format {shared.format}, this release reads up to {FORMAT}")
        twice = [
            latent
            for latent, times in Counter(entry.feature for entry in shared.features).items()
            if times > 1
        ]
        if twice:
            raise RunError(f"{file} lists feature {twice[0]} twice")
        if shared.sae_sha256 != self.sae_sha256:
            raise RunError(
                f"{file} lists features of another SAE: its weights have SHA-256 {shared.sae_sha256[:12]}…, "
                f"this run's {self.sae_sha256[:12]}…"
            )
        self.add(shared.name, {entry.feature: entry.note for entry in shared.features})
        return shared.name.strip()

    def _lock(self) -> FileLock:
        return FileLock(self.path.with_name(FILE + ".lock"))

    def _read(self) -> dict[str, dict[str, dict[int, str]]]:
        """Return the lists of all SAEs in the file: SHA-256 of the weights -> name -> latent -> note."""
        if not self.path.exists():
            return {}
        saes = read_record(self.path, "lists", FORMAT, ListsRecord).saes
        return {
            sae: {name: {entry.feature: entry.note for entry in its} for name, its in lists.items()}
            for sae, lists in saes.items()
        }

    def _write(self, saes: Mapping[str, Mapping[str, Mapping[int, str]]]) -> None:
        rows = {sae: {name: _rows(its) for name, its in lists.items()} for sae, lists in saes.items()}
        files.write_json(self.path, {"format": FORMAT, "saes": rows})


def _rows(entries: Mapping[int, str]) -> list[dict[str, int | str]]:
    return [asdict(ListEntry(latent, note)) for latent, note in entries.items()]
