"""Reads documents in a fixed order, from the embedded texts, from files, or from a data set of the Hugging Face Hub."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

from activations import demo_assets, hub
from activations.documents import Document, Row, chosen_roles, columns_of, document_of
from activations.errors import TextError
from activations.readers import ROWS_OF, compression_errors, plain_documents
from activations.sources import Source, is_named, sources

SEARCHED = 1000  # rows to search for the column: a row of JSON may lack it


@dataclass(frozen=True)
class TextConfig:
    """Settings that choose the documents to read, and their order."""

    dataset: str = "embedded"
    """`embedded` (Wikipedia articles and news, no network), `embedded:mixed` (28 M tokens of news, reviews, posts, code,
    abstracts and questions, fetched once), a .txt .md .jsonl .json .parquet .csv .tsv or .arrow
    file, compressed (.gz .bz2 .xz .zst .zip) or not, a folder or glob of such files, a folder written by `save_to_disk` of
    `datasets`, or a data set of the Hugging Face hub."""
    split: str = "train"
    """Split of a hub data set, or of a folder whose files are named for splits."""
    subset: str | None = None
    """Configuration of a hub data set that has several, such as `sample-10BT`."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a hub data set; the store records the commit."""
    column: str = "text"
    """Column that holds the text, a conversation or token ids, for everything but .txt and .md files; or several, such
    as `prompt,completion`. If there is no column `text`, the usual names of conversations and token ids are tried."""
    document: Literal["file", "paragraph", "line"] = "file"
    """What one document is in a .txt or .md file."""
    streaming: bool = True
    """Read a hub data set while it downloads, instead of downloading all of it first."""
    roles: str = "all"
    """Roles whose tokens are used from conversations, such as `assistant` or `user,assistant`; the model reads all."""

    def __post_init__(self) -> None:
        chosen_roles(self.roles)


def documents(config: TextConfig) -> Iterator[Document]:
    """Yield every document in the source's order; document i of a store is the i-th document here.

    The order is the same at each call. Empty documents are yielded too, so that the numbers stay those of the source.
    Raises TextError if the source or its column does not exist."""
    return (document for document, _ in rows(config))


def described(config: TextConfig) -> dict[str, str | bool | None]:
    """Return what a store records of its text."""
    recorded = asdict(config)
    if config.roles == "all":  # stores of earlier releases lack it: their fingerprints must not change
        del recorded["roles"]
    return recorded


class Counted:
    """Passes documents on, once, and counts them: `read` are all, `empty` those without any text."""

    def __init__(self, texts: Iterable[Document]):
        self._texts, self.read, self.empty = texts, 0, 0

    def __iter__(self) -> Iterator[Document]:
        for text in self._texts:
            self.read += 1
            self.empty += not text
            yield text


def rows(config: TextConfig) -> Iterator[tuple[Document, Row]]:
    """Yield every document together with all columns of its row. Raises what `documents` raises."""
    roles = chosen_roles(config.roles)
    own = _embedded(config)
    if own or (_is_local(config) and _sources(config)[0].kind == "text"):
        if roles is not None:
            raise TextError(f"{config.dataset} is plain text, and --roles is for conversations: leave it out")
        if own:
            yield from ((str(row["text"]), row) for row in own.rows())
        else:
            yield from ((text, Row(text=text)) for text in _plain(config))
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
            raise TextError(f"{config.dataset}, document {number}: {error.message}", fix=error.fix) from error
        except RecursionError as error:
            raise TextError(
                f"{config.dataset}, document {number} is nested deeper than Python's limit"
            ) from error


def _until_column(config: TextConfig, read: Iterator[Row]) -> list[Row]:
    """Return the first rows, up to one that has the column or SEARCHED of them; a row of JSON may lack columns."""
    first: list[Row] = []
    for row in read:
        first.append(row)
        if columns_of(config.column, row) or len(first) == SEARCHED:
            break
    return first


def _chained(first: list[Row], rest: Iterator[Row]) -> Iterator[Row]:
    while first:
        yield first.pop(0)
    yield from rest


def revision(config: TextConfig) -> str | None:
    """Return the version of the text: the current commit of a hub data set, the version of an embedded text, None for files.

    Without a network it is `dataset_revision`. Raises TextError for a name that is neither a file nor possible on the hub."""
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
            f"{config.dataset} is neither a file on this machine nor a possible name on the hub: {_first_line(error)}"
        ) from error
    except (OSError, HTTPError):
        return config.dataset_revision


def make_ready(config: TextConfig) -> None:
    """Fetch the mixed text if it is not cached, and check that files exist. A data set of the hub is not looked for.

    Raises TextError if that fails."""
    if config.dataset == demo_assets.MIXED:
        demo_assets.mixed_file()
    elif is_of_files(config):
        _sources(config, quiet=True)


class _Embedded(NamedTuple):
    """A text that comes from the package registry."""

    rows: Callable[[], Iterator[Row]]
    version: str


def _embedded(config: TextConfig) -> _Embedded | None:
    """Return the text that an `embedded` name stands for, None for any other name.

    Raises TextError for an unknown name that begins with `embedded:`."""
    known = {
        "embedded": _Embedded(
            lambda: ({"text": text} for text in demo_assets.documents()), demo_assets.TEXT_VERSION
        ),
        demo_assets.MIXED: _Embedded(demo_assets.mixed_rows, demo_assets.MIXED_VERSION),
    }
    if config.dataset.startswith("embedded:") and config.dataset not in known and not _is_local(config):
        raise TextError(f"no embedded text {config.dataset!r}, must be {' or '.join(known)}")
    return known.get(config.dataset)


def is_of_files(config: TextConfig) -> bool:
    """Return whether the text is read from files, which may change; others have a version."""
    return not _embedded(config) and _is_local(config)


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


def _rows(config: TextConfig) -> Iterator[Row]:
    """Yield the source's rows. Raises TextError, with the number of the document, for any failure of a reader."""
    number = 0
    try:
        for row in _from_files(config) if _is_local(config) else _from_hub(config):
            yield row
            number += 1
    except _unreadable() as error:
        raise TextError(
            f"{config.dataset} cannot be read at document {number}: {_first_line(error)}"
        ) from error


def _from_files(config: TextConfig) -> Iterator[Row]:
    for source in _sources(config, quiet=False):
        assert source.kind
        yield from ROWS_OF[source.kind](source)


def _from_hub(config: TextConfig) -> Iterator[Row]:
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
    except StopIteration as error:  # the loader looked for columns and found no row
        raise TextError(f"{config.dataset} is empty") from error
    except _unreadable() as error:
        reason = f"{silence}, and it is not cached on this machine" if silence else _first_line(error)
        raise TextError(f"cannot open the data set {config.dataset!r}: {reason}") from error
    yield from opened  # type: ignore[misc]


def _unreadable() -> tuple[type[Exception], ...]:
    """Return the exceptions that libraries raise for a source that cannot be read or reached."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    return ValueError, DatasetsError, HTTPError, RecursionError, TypeError, *compression_errors()


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
