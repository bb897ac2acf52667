"""Documents in: the embedded corpus, text files, JSON lines, Parquet, CSV, or a data set of the hub."""

import difflib
import glob
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from activations import embedded, hub
from activations.errors import TextError
from activations.nesting import refuse_fatal

# File endings and the `datasets` loader that reads them; anything else is a folder or a hub name.
LOADERS = {
    ".txt": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv",
}  # fmt: skip


@dataclass(frozen=True)
class TextConfig:
    """Which documents to read, and in what order."""

    dataset: str = "embedded"
    """`embedded` (Wikipedia articles and news, no network), a .txt .md .jsonl .json .parquet or .csv file, a
    folder or glob of such files, or a data set of the Hugging Face hub."""
    split: str = "train"
    """Split of a hub data set."""
    subset: str | None = None
    """Configuration of a hub data set that has several, such as `sample-10BT`."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a hub data set; the commit found is written into the store."""
    column: str = "text"
    """Column that holds the text, for everything but .txt and .md files."""
    document: Literal["file", "paragraph", "line"] = "file"
    """What one document is in a .txt or .md file."""
    streaming: bool = True
    """Read a hub data set as it arrives instead of downloading all of it first."""


def documents(config: TextConfig) -> Iterator[str]:
    """Yield every document's text in the source's order; document i of a store is the i-th one here.

    The order is the same at each call. Empty documents are yielded too, so that numbers stay true to the
    source. Raises TextError when the source or its column is not there."""
    return (text for text, _ in rows(config))


class Counted:
    """Documents as they pass by, once, and how many there were: all, and those without any text."""

    def __init__(self, texts: Iterable[str]):
        self._texts, self.read, self.empty = texts, 0, 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.read += 1
            self.empty += not text
            yield text


def rows(config: TextConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same documents, each with all columns that the source has of it."""
    if config.dataset == "embedded":
        yield from ((text, {"text": text}) for text in embedded.documents())
        return
    column = "text" if _loader(config) == "text" else config.column
    for row in _rows(config):
        if column not in row:
            near = difflib.get_close_matches(column, row, n=1)
            raise TextError(
                f"{config.dataset} has no column {column!r}: it has {', '.join(map(repr, row))}"
                + (f"; try --column {near[0]}" if near else "")
            )
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise TextError(f"column {column!r} of {config.dataset} holds {type(text).__name__}, not text")
        yield text or "", row


def revision(config: TextConfig) -> str | None:
    """The commit a hub data set's name stands for now, or None for files and when offline."""
    if config.dataset == "embedded":
        return embedded.TEXT_VERSION
    if _loader(config) is not None:
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        with hub.cache_alone_if_silent():
            return HfApi().dataset_info(config.dataset, revision=config.dataset_revision).sha
    except HFValidationError as error:
        raise TextError(
            f"{config.dataset} is neither a file here nor a possible name on the hub: {_first_line(error)}"
        ) from error
    except (OSError, HTTPError):
        return config.dataset_revision


def refuse_missing(config: TextConfig) -> None:
    """Raise TextError when the text is to lie on this machine and does not; of a hub's data set nothing is asked."""
    if config.dataset != "embedded":
        _loader(config)


def _open(config: TextConfig) -> Any:
    import datasets

    datasets.disable_progress_bars()
    loader, silence = _loader(config), None
    try:
        if loader is None:
            with hub.cache_alone_if_silent() as silence:
                return datasets.load_dataset(
                    config.dataset,
                    config.subset,
                    split=config.split,
                    revision=config.dataset_revision,
                    streaming=config.streaming,
                )
        units = {"file": "document", "paragraph": "paragraph", "line": "line"}
        extra: dict[str, Any] = {"sample_by": units[config.document]} if loader == "text" else {}
        if loader == "json":
            for path in _files(config):
                refuse_fatal(Path(path))
        paths = [glob.escape(path) for path in _files(config)]
        return datasets.load_dataset(loader, data_files=paths, split="train", streaming=True, **extra)
    except StopIteration as error:  # looking for its columns, the loader met no row
        raise TextError(f"{config.dataset} is empty") from error
    except _unreadable() as error:
        reason = f"{silence}, and no cache on this machine holds it" if silence else _first_line(error)
        raise TextError(f"cannot open the data set {config.dataset!r}: {reason}") from error


def _loader(config: TextConfig) -> str | None:
    """Name of the `datasets` loader for local files; None for a hub data set. Raises TextError if neither."""
    files = _files(config)
    if files:
        endings = {Path(name).suffix for name in files}
        loaders = {LOADERS.get(ending) for ending in endings}
        if len(loaders) > 1 or None in loaders:
            raise TextError(
                f"{config.dataset} holds files ending in {', '.join(sorted(endings))}: "
                f"needed is one kind of {' '.join(LOADERS)}"
            )
        return loaders.pop()
    path = Path(config.dataset)
    if path.suffix in LOADERS or path.is_absolute() or config.dataset.startswith((".", "~")) or path.exists():
        raise TextError(f"no text at {config.dataset}: no file there ends in {' '.join(LOADERS)}")
    return None


def _files(config: TextConfig) -> list[str]:
    """Local files the name stands for, sorted; empty for a hub data set."""
    path = Path(config.dataset).expanduser()
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        return sorted(str(file) for file in path.rglob("*") if file.suffix in LOADERS)
    if any(mark in config.dataset for mark in "*?["):
        pattern = path.relative_to(path.anchor) if path.is_absolute() else path
        root = Path(path.anchor) if path.is_absolute() else Path()
        return sorted(str(file) for file in root.glob(str(pattern)))
    return []


def _rows(config: TextConfig) -> Iterator[dict[str, Any]]:
    """The source's rows; a failure of the reader below becomes one readable line."""
    rows = iter(_open(config))
    for number in itertools.count():
        try:
            row = next(rows)
        except StopIteration:
            return
        except _unreadable() as error:
            raise TextError(
                f"{config.dataset} cannot be read at document {number}: {_first_line(error)}"
            ) from error
        yield row


def _unreadable() -> tuple[type[Exception], ...]:
    """What `datasets` raises when a source cannot be read or reached."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError
    from pyarrow import ArrowException

    return OSError, ValueError, DatasetsError, HTTPError, ArrowException, RecursionError, TypeError


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
