"""Documents in: the embedded texts, files of text or tables, or a data set of the hub."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from activations import demo_assets, hub, mixed
from activations.documents import Document
from activations.errors import TextError
from activations.messages import chosen_roles, columns_of, document_of
from activations.readers import ROWS_OF, packing_errors, plain_documents
from activations.sources import Source, is_named, sources

LOOKED_AT = 1000  # rows among which the columns have to show


@dataclass(frozen=True)
class TextConfig:
    """Which documents to read, and in what order."""

    dataset: str = "embedded"
    """`embedded` (Wikipedia articles and news, no network), `embedded:mixed` (28 M tokens of news, reviews, posts, code,
    abstracts and questions, fetched once), a .txt .md .jsonl .json .parquet .csv .tsv or .arrow
    file, packed (.gz .bz2 .xz .zst .zip) or not, a folder or glob of such files, a folder that `save_to_disk` of
    `datasets` wrote, or a data set of the Hugging Face hub."""
    split: str = "train"
    """Split of a hub data set, or of a folder whose files are named for splits."""
    subset: str | None = None
    """Configuration of a hub data set that has several, such as `sample-10BT`."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a hub data set; the commit found is written into the store."""
    column: str = "text"
    """Column that holds the text, a conversation or token ids, for everything but .txt and .md files; or several, such
    as `prompt,completion`. Without a column `text` the usual names of conversations and token ids are looked for."""
    document: Literal["file", "paragraph", "line"] = "file"
    """What one document is in a .txt or .md file."""
    streaming: bool = True
    """Read a hub data set as it arrives instead of downloading all of it first."""
    roles: str = "all"
    """Of conversations, whose tokens count, such as `assistant` or `user,assistant`; the model reads the others too."""

    def __post_init__(self) -> None:
        chosen_roles(self.roles)


def documents(config: TextConfig) -> Iterator[Document]:
    """Yield every document in the source's order; document i of a store is the i-th one here.

    The order is the same at each call. Empty documents are yielded too, so that numbers stay true to the
    source. Raises TextError when the source or its column is not there."""
    return (document for document, _ in rows(config))


def described(config: TextConfig) -> dict[str, Any]:
    """What a store notes of its text; what releases before knew nothing of is left out where it says nothing."""
    noted = asdict(config)
    if config.roles == "all":
        del noted["roles"]
    return noted


class Counted:
    """Documents as they pass by, once, and how many there were: all, and those without any text."""

    def __init__(self, texts: Iterable[Document]):
        self._texts, self.read, self.empty = texts, 0, 0

    def __iter__(self) -> Iterator[Document]:
        for text in self._texts:
            self.read += 1
            self.empty += not text
            yield text


def rows(config: TextConfig) -> Iterator[tuple[Document, dict[str, Any]]]:
    """Yield every document with all columns that the source has of it."""
    roles = chosen_roles(config.roles)
    own = _embedded(config)
    if own or (_is_local(config) and _sources(config)[0].kind == "text"):
        if roles is not None:
            raise TextError(f"--roles is for conversations, and {config.dataset} is plain text: leave it out")
        plain = own.rows() if own else ({"text": text} for text in _plain(config))
        yield from ((row["text"], row) for row in plain)
        return
    read = _rows(config)
    first = _until_column(config, read)
    if not first:
        raise TextError(f"{config.dataset} is empty")
    names = dict.fromkeys(name for row in first for name in row)
    columns = columns_of(config.column, names)
    if not columns:
        near = difflib.get_close_matches(config.column, names, n=1)
        raise TextError(
            f"{config.dataset} has no column {config.column!r}: it has {', '.join(map(repr, names))}"
            + (f"; try --column {near[0]}" if near else "")
        )
    for number, row in enumerate(_chained(first, read)):
        filled = {**names, **row}
        try:
            yield document_of(columns, filled, roles), filled
        except TextError as error:
            raise TextError(f"{config.dataset}, document {number}: {error}") from error
        except RecursionError as error:
            raise TextError(
                f"{config.dataset}, document {number} is nested too deep: no conversation is"
            ) from error


def _until_column(config: TextConfig, read: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first rows, up to one that has the column; a row of JSON has only what was written for it."""
    first: list[dict[str, Any]] = []
    for row in read:
        first.append(row)
        if columns_of(config.column, row) or len(first) == LOOKED_AT:
            break
    return first


def _chained(first: list[dict[str, Any]], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    while first:
        yield first.pop(0)
    yield from rest


def revision(config: TextConfig) -> str | None:
    """The commit a hub data set's name stands for now, or None for files and when offline."""
    if own := _embedded(config):
        return own.version
    if _is_local(config):
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


def make_ready(config: TextConfig) -> None:
    """Fetch the mixed text if it is not here yet. Raises TextError when that fails, or files are not where the name says;
    a data set of the hub is not looked for."""
    if config.dataset == mixed.NAME:
        mixed.ready()
    elif not _embedded(config) and _is_local(config):
        _sources(config, quiet=True)


class _Embedded(NamedTuple):
    """One of the texts that come from the package registry."""

    rows: Callable[[], Iterator[dict[str, Any]]]
    version: str


def _embedded(config: TextConfig) -> _Embedded | None:
    """The text that an `embedded` name stands for, None for any other name. Raises TextError when there is none."""
    known = {
        "embedded": _Embedded(
            lambda: ({"text": text} for text in demo_assets.documents()), demo_assets.TEXT_VERSION
        ),
        mixed.NAME: _Embedded(mixed.rows, mixed.VERSION),
    }
    if config.dataset.startswith("embedded:") and config.dataset not in known and not _is_local(config):
        raise TextError(f"there is no embedded text {config.dataset!r}: there are {' and '.join(known)}")
    return known.get(config.dataset)


def _is_local(config: TextConfig) -> bool:
    return is_named(config.dataset)


def _sources(config: TextConfig, quiet: bool = True) -> list[Source]:
    return sources(config.dataset, config.split, quiet)


def _plain(config: TextConfig) -> Iterator[Document]:
    for source in _sources(config, quiet=False):
        try:
            yield from plain_documents(source, config.document)
        except _unreadable() as error:
            raise TextError(f"{source.name} cannot be read: {_first_line(error)}") from error


def _rows(config: TextConfig) -> Iterator[dict[str, Any]]:
    """The source's rows; a failure of the reader below becomes one readable line."""
    number = 0
    try:
        for row in _from_files(config) if _is_local(config) else _from_hub(config):
            yield row
            number += 1
    except _unreadable() as error:
        raise TextError(
            f"{config.dataset} cannot be read at document {number}: {_first_line(error)}"
        ) from error


def _from_files(config: TextConfig) -> Iterator[dict[str, Any]]:
    for source in _sources(config, quiet=False):
        assert source.kind
        yield from ROWS_OF[source.kind](source)


def _from_hub(config: TextConfig) -> Iterator[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    silence = None
    try:
        with hub.cache_alone_if_silent() as silence:
            opened = datasets.load_dataset(
                config.dataset,
                config.subset,
                split=config.split,
                revision=config.dataset_revision,
                streaming=config.streaming,
            )
    except StopIteration as error:  # looking for its columns, the loader met no row
        raise TextError(f"{config.dataset} is empty") from error
    except _unreadable() as error:
        reason = f"{silence}, and no cache on this machine holds it" if silence else _first_line(error)
        raise TextError(f"cannot open the data set {config.dataset!r}: {reason}") from error
    yield from opened  # type: ignore[misc]


def _unreadable() -> tuple[type[Exception], ...]:
    """What is raised below when a source cannot be read or reached."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    return ValueError, DatasetsError, HTTPError, RecursionError, TypeError, *packing_errors()


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
