"""Labels and notes that people give to latents, in labels.json beside the features folder (FORMAT.md, Labels)."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from filelock import FileLock

from activations.disk import files
from activations.errors import RunError, quoted
from sae.report import render
from sae.runs.saved_sae import read_record

FORMAT = 1
FILE = "labels.json"
COLUMNS = ("feature", "label", "note")
STABILITY = "stability"  # a further column of what is exported, where it is known
NEEDED = "expected the columns feature (a number), label and note (texts)"


class Label(NamedTuple):
    """A latent's name and a note on it, both plain text; empty where there is none."""

    label: str = ""
    note: str = ""


@dataclass(frozen=True)
class LabelEntry:
    """The label and note of one latent in labels.json."""

    label: str
    note: str


@dataclass(frozen=True)
class LabelsRecord:
    """The content of labels.json."""

    saes: dict[str, dict[str, LabelEntry]]


class Labels:
    """Labels and notes of one SAE's latents. Every call reads the file anew, and changes are written at once.

    The file keeps the labels of every SAE that the run has had, by the SHA-256 of its weights: they return with the SAE
    and never name another one's latents. `sae features` leaves the file alone. Several programs may write at the same
    time: each reads the file again under a lock before it writes, and changes its own entries only."""

    def __init__(self, path: Path, sae_sha256: str, n_latents: int):
        self.path, self.sae_sha256, self.n_latents = path, sae_sha256, n_latents

    def all(self) -> dict[int, Label]:
        """Return every latent that has a label or a note. Raises RunError when the file is damaged or of a newer format."""
        try:
            return {int(latent): label for latent, label in self._read().get(self.sae_sha256, {}).items()}
        except ValueError as error:
            raise RunError(f"{self.path} is damaged: {error!r}; restore it, or move it away") from error

    def get(self, latent: int) -> Label:
        """Return the label of one latent; both texts are empty when it has none."""
        return self.all().get(latent, Label())

    def set(self, latent: int, label: str, note: str = "", instead_of: Label | None = None) -> None:
        """Replace the label and note of a latent; its entry is removed when both are empty.

        Raises RunError when there is no such latent, and where `instead_of` is given and is not what the latent has now."""
        before = {} if instead_of is None else {latent: instead_of}
        self.update({latent: Label(label.strip(), note.strip())}, before)

    def update(
        self, labels: Mapping[int, Label], instead_of: Mapping[int, Label] = MappingProxyType({})
    ) -> None:
        """Replace the labels and notes of several latents at once; all others stay. Raises RunError as `set` does."""
        for latent in labels:
            if not 0 <= latent < self.n_latents:
                raise RunError(
                    f"feature {latent} does not exist: {self.path.parent} has 0 to {self.n_latents - 1}"
                )

        with FileLock(self.path.with_name(FILE + ".lock")):
            saes = self._read()
            entries = saes.setdefault(self.sae_sha256, {})
            for latent, before in instead_of.items():
                now = entries.get(str(latent), Label())
                if now != before:
                    raise RunError(
                        f"somebody else has changed the label of feature {latent} meanwhile: it is {now.label!r} now"
                    )
            for latent, label in labels.items():
                entries.pop(str(latent), None)
                if label != Label():
                    entries[str(latent)] = label
            content = {sae: {n: label._asdict() for n, label in its.items()} for sae, its in saes.items()}
            files.write_json(self.path, {"format": FORMAT, "saes": content})

    def export(self, path: Path, stability: Sequence[float] | None = None) -> int:
        """Write the labels to a .csv or .json file, which `load` reads, and return their number.

        In a .csv file a text that a spreadsheet would take for a formula has an apostrophe before it, which `load` takes off.
        `stability` of each latent, where it is known (`sae trust`), stands beside its label; `load` leaves it aside. Raises
        RunError for another suffix."""
        rows: list[dict[str, int | str | float]] = [
            {
                "feature": latent,
                **label._asdict(),
                **({} if stability is None else {STABILITY: stability[latent]}),
            }
            for latent, label in sorted(self.all().items())
        ]
        if _kind(path) == ".json":
            files.write_json(path, rows)
            return len(rows)

        def write(part: Path) -> None:
            with part.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow([*COLUMNS, *([] if stability is None else [STABILITY])])
                for row in rows:
                    writer.writerow(render.cell(value) for value in row.values())

        files.write_atomically(path, write)
        return len(rows)

    def load(self, path: Path) -> int:
        """Set the labels in a file that `export` wrote, replacing those of the same latents, and return their number.

        Raises RunError, and changes nothing, when the file or a row cannot be read or a latent occurs twice."""
        labels: dict[int, Label] = {}
        places: dict[int, str] = {}
        for place, row in _rows(path):
            try:
                latent, label = _number(row["feature"]), _label(row)
            except (ValueError, KeyError, TypeError) as error:
                fault = f"{error} is missing" if isinstance(error, KeyError) else str(error)
                raise RunError(f"{path}, {place}: {fault}; {NEEDED}") from error
            if latent in places:
                raise RunError(
                    f"{path} has feature {latent} twice, in {places[latent]} and {place}: remove one"
                )
            labels[latent], places[latent] = label, place
        self.update(labels)
        return len(labels)

    def _read(self) -> dict[str, dict[str, Label]]:
        """Return the labels of all SAEs in the file: SHA-256 of the weights -> latent as text -> label."""
        if not self.path.exists():
            return {}
        saes = read_record(self.path, "labels", FORMAT, LabelsRecord).saes
        return {
            sae: {n: Label(entry.label, entry.note) for n, entry in its.items()} for sae, its in saes.items()
        }


def _label(entry: Mapping[str, Any]) -> Label:
    label, note = entry["label"], entry["note"] or ""
    if not isinstance(label, str) or not isinstance(note, str):
        raise TypeError(f"a label and a note are texts, not {type(label).__name__}, {type(note).__name__}")
    return Label(label, note)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every row of a file of labels with its place in the file, for messages."""
    try:
        if _kind(path) == ".json":
            content = files.parse_json(path.read_text(encoding="utf-8"))
            if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
                raise ValueError("it is not a list of objects")
            yield from ((f"entry {number}", row) for number, row in enumerate(content, 1))
            return
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                texts = {
                    name: render.from_cell(value) for name, value in row.items() if isinstance(value, str)
                }
                yield f"line {reader.line_num}", {**row, **texts}
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist", fix=f"sae labels RUN --save {quoted(path)}") from error
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{path} cannot be read as labels ({error}); {NEEDED}") from error


def _number(latent: Any) -> int:
    if isinstance(latent, str) and latent.strip().isdecimal():
        return int(latent)
    if type(latent) is not int:
        raise TypeError(f"{latent!r} is not a feature's number")
    return latent


def _kind(path: Path) -> str:
    if path.suffix not in (".csv", ".json"):
        raise RunError(f"{path.name} has suffix {path.suffix!r}, must be .csv or .json")
    return path.suffix
