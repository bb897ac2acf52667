"""What people wrote about latents: a label and a note each, in labels.json beside the features folder."""

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from activations.disk import files
from activations.errors import RunError
from sae.runs.records import AllLabels
from sae.runs.saved_sae import read_about

FORMAT = 1
FILE = "labels.json"
COLUMNS = ("feature", "label", "note")
NEEDED = "needed are the columns feature (a number), label and note (texts)"


class Label(NamedTuple):
    """What somebody calls a latent, and what else there is to say about it; both plain text."""

    label: str = ""
    note: str = ""


class Labels:
    """Labels and notes of one SAE's latents, read anew and written at once.

    The file keeps those of every SAE it was used for, by the SHA-256 of its weights, so that they come back with
    it and never name another one's latents. It outlives `sae features`. Several programs may write at the same
    time: each re-reads the file under a lock before it writes, and changes nothing but its own entries."""

    def __init__(self, path: Path, sae_sha256: str, n_latents: int):
        self.path, self.sae_sha256, self.n_latents = path, sae_sha256, n_latents

    def all(self) -> dict[int, Label]:
        """Every latent that has a label or a note. Raises RunError when the file is damaged or of a newer format."""
        found = self._read()["saes"].get(self.sae_sha256, {})
        try:
            return {int(latent): _label(entry) for latent, entry in found.items()}
        except ValueError as error:
            raise RunError(f"{self.path} is damaged: {error!r}; restore it, or move it away") from error

    def get(self, latent: int) -> Label:
        """One latent's; both texts empty when there is none."""
        return self.all().get(latent, Label())

    def set(self, latent: int, label: str, note: str = "") -> None:
        """Put these in the place of the latent's label and note; empty ones take the entry away.

        Raises RunError when there is no such latent."""
        self.update({latent: Label(label.strip(), note.strip())})

    def update(self, labels: Mapping[int, Label]) -> None:
        """Set several latents' at once and leave all others as they are."""
        for latent in labels:
            if not 0 <= latent < self.n_latents:
                raise RunError(
                    f"feature {latent} does not exist: {self.path.parent} has 0 to {self.n_latents - 1}"
                )

        def change(entries: dict[str, Any]) -> None:
            for latent, label in labels.items():
                entries.pop(str(latent), None)
                if label != Label():
                    entries[str(latent)] = label._asdict()

        self._change(change)

    def export(self, path: Path) -> int:
        """Write them to a .csv or .json file, which `load` reads; returns how many. Raises RunError for other names."""
        rows: list[dict[str, Any]] = [
            {"feature": latent, **label._asdict()} for latent, label in sorted(self.all().items())
        ]
        if _kind(path) == ".json":
            files.write_json(path, rows)
            return len(rows)

        def write(part: Path) -> None:
            with part.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(COLUMNS)
                writer.writerows(row.values() for row in rows)

        files.write_atomically(path, write)
        return len(rows)

    def load(self, path: Path) -> int:
        """Take in a file that `export` wrote, over what is there; returns how many.

        Raises RunError, and takes nothing, when the file or a row of it cannot be read or a latent is in it twice."""
        found: dict[int, Label] = {}
        places: dict[int, str] = {}
        for place, row in _rows(path):
            try:
                latent, label = _number(row["feature"]), _label(row)
            except (ValueError, KeyError, TypeError) as error:
                what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
                raise RunError(f"{path}, {place}: {what}; {NEEDED}") from error
            if latent in places:
                raise RunError(
                    f"{path} has feature {latent} twice, in {places[latent]} and {place}: take one out"
                )
            found[latent], places[latent] = label, place
        self.update(found)
        return len(found)

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {"format": FORMAT, "saes": {}}
        saes = read_about(self.path, "labels", FORMAT, AllLabels)["saes"]
        kept = {sae: {n: _label(entry)._asdict() for n, entry in its.items()} for sae, its in saes.items()}
        return {"format": FORMAT, "saes": kept}

    def _change(self, change: Callable[[dict[str, Any]], None]) -> None:
        with FileLock(self.path.with_name(FILE + ".lock")):
            about = self._read()
            change(about["saes"].setdefault(self.sae_sha256, {}))
            files.write_json(self.path, about)


def _label(entry: Mapping[str, Any]) -> Label:
    label, note = entry["label"], entry["note"] or ""
    if not isinstance(label, str) or not isinstance(note, str):
        raise TypeError(f"a label and a note are texts, not {type(label).__name__}, {type(note).__name__}")
    return Label(label, note)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row of a file of labels, and where in it that is."""
    try:
        if _kind(path) == ".json":
            content = files.parse_json(path.read_text(encoding="utf-8"))
            if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
                raise ValueError("it is no list of objects")
            yield from ((f"entry {number}", row) for number, row in enumerate(content, 1))
            return
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            yield from ((f"line {reader.line_num}", row) for row in reader)
    except FileNotFoundError as error:
        raise RunError(f"there is no file {path}: sae labels RUN --save {path} writes one") from error
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{path} cannot be read as labels ({error}); {NEEDED}") from error


def _number(latent: Any) -> int:
    if isinstance(latent, str) and latent.strip().isdecimal():
        return int(latent)
    if type(latent) is not int:
        raise TypeError(f"{latent!r} is no feature's number")
    return latent


def _kind(path: Path) -> str:
    if path.suffix not in (".csv", ".json"):
        raise RunError(f"labels go to a .csv or a .json file, not to {path.name}")
    return path.suffix
