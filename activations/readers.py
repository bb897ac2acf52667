"""Reads files in bounded memory: plain text as documents, and JSON, CSV, Parquet and Arrow tables as rows."""

import codecs
import io
import json
import lzma
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Literal

from activations.documents import HEAD, Document, LongText, Row
from activations.errors import TextError
from activations.sources import Source

Unit = Literal["file", "paragraph", "line"]

BYTES = 2**20  # bytes read at once
MOST = 2**32  # bytes of one JSON document, which has to fit into memory
ROWS = 256  # rows of a table that become Python objects at once
SEPARATORS: dict[Unit, str] = {"paragraph": "\n\n", "line": "\n"}
SPACE = b" \t\r\n"


def plain_documents(source: Source, unit: Unit) -> Iterator[Document]:
    """Yield the documents of a plain text: the whole file, its paragraphs (empty ones left out), or its lines.

    Line ends become \\n, as Python reads them. A document of more than HEAD characters is yielded as a LongText. Raises
    TextError for bytes that are not UTF-8 or cannot be decompressed."""
    pieces = _decoded(source)
    if unit == "file":
        head, ended = _filled("", pieces)
        yield head if ended else LongText(head, pieces)
        return
    separator, empty_too = SEPARATORS[unit], unit == "line"
    left: str = ""
    for piece in pieces:
        *complete, left = (left + piece).split(separator)
        yield from (text for text in complete if text or empty_too)
        if len(left) > HEAD:
            keep = len(separator) - 1  # the last characters may begin a separator that ends in the next piece
            long = _UntilSeparator(left[len(left) - keep :], separator, pieces)
            yield LongText(left[: len(left) - keep], long)
            for _ in long:  # skip what the consumer did not read
                pass
            left = long.left
    *complete, left = left.split(separator)  # a long document may leave more than one behind it
    yield from (text for text in [*complete, *([left] if left else [])] if text or empty_too)


class _UntilSeparator:
    """Iterates over the pieces of a text up to a separator; `left` is what was read after it."""

    def __init__(self, begun: str, separator: str, pieces: Iterator[str]):
        self.left = ""
        self._stream = self._read(begun, separator, pieces)

    def __iter__(self) -> Iterator[str]:
        return self._stream

    def _read(self, begun: str, separator: str, pieces: Iterator[str]) -> Iterator[str]:
        while True:
            keep = len(separator) - 1
            yield begun[: len(begun) - keep]
            following = next(pieces, None)
            if following is None:
                yield begun[len(begun) - keep :]
                return
            begun = begun[len(begun) - keep :] + following
            if (end := begun.find(separator)) >= 0:
                yield begun[:end]
                self.left = begun[end + len(separator) :]
                return


def _filled(begun: str, pieces: Iterator[str]) -> tuple[str, bool]:
    """Return the text up to just over HEAD characters, and whether it ends there."""
    parts, length = [begun], len(begun)
    for piece in pieces:
        parts.append(piece)
        length += len(piece)
        if length > HEAD:
            return "".join(parts), False
    return "".join(parts), True


def _decoded(source: Source) -> Iterator[str]:
    """Yield a file's text piece by piece, with \\n for every line end and without the mark at its beginning that says UTF-8."""
    bytes_only = codecs.getincrementaldecoder("utf-8")()
    decoder = io.IncrementalNewlineDecoder(bytes_only, translate=True)
    read, begun = 0, False
    with source.open() as file:
        while True:
            try:
                content = file.read(BYTES)
            except compression_errors() as error:
                raise TextError(
                    f"{source.name} cannot be read after {read:,} decompressed bytes: {error}"
                ) from error
            waiting = len(bytes_only.getstate()[0])
            try:
                text = decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise TextError(
                    f"{source.name} cannot be read: 'utf-8' codec can't decode byte 0x{byte:02x} in position "
                    f"{read - waiting + error.start}: {error.reason}; save it as UTF-8"
                ) from error
            read += len(content)
            if text and not begun:
                text, begun = text.removeprefix("\ufeff"), True
            if text:
                yield text
            if not content:
                return


def compression_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that libraries raise for a compressed file that is damaged or truncated."""
    from pyarrow import ArrowException

    damaged = (zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, ArrowException)
    return OSError, EOFError, *damaged


def json_rows(source: Source) -> Iterator[Row]:
    """Yield the objects of a file of JSON lines, of a JSON list, or of concatenated JSON objects.

    A string in place of an object becomes a row with a `text`. Raises TextError, with the line or the entry, for
    invalid JSON, for other values, and for values nested deeper than Python's limit."""
    with source.open() as file:
        buffered = io.BufferedReader(file) if isinstance(file, io.RawIOBase) else file
        start = buffered.read(len(codecs.BOM_UTF8))
        start = b"" if start == codecs.BOM_UTF8 else start
        line, number = start + _line(buffered, source, 1) if not start.endswith(b"\n") else start, 1
        while line and not line.strip(SPACE):
            line, number = _line(buffered, source, number + 1), number + 1
        if line.lstrip(SPACE).startswith(b"["):
            yield from _list(line, buffered, source)
            return
        while line:
            begun = number
            while True:
                try:
                    value = _parsed(line, source, begun)
                except _Incomplete as error:
                    following = _line(buffered, source, number + 1)
                    number += 1
                    if not following or len(line) > HEAD:
                        raise TextError(str(error)) from error
                    line += following
                    continue
                break
            yield _row(value, source, begun)
            line, number = _line(buffered, source, number + 1), number + 1
            while line and not line.strip(SPACE):
                line, number = _line(buffered, source, number + 1), number + 1


class _Incomplete(Exception):
    """A line of JSON ends before its value does."""


def _line(file: IO[bytes], source: Source, number: int) -> bytes:
    line = file.readline(MOST + 1)
    if len(line) > MOST:
        raise TextError(
            f"{source.name} has a line of more than {MOST:,} bytes, line {number}: cut it into several"
        )
    return line


def _parsed(line: bytes, source: Source, number: int) -> Any:
    where = f"{source.name} cannot be read at line {number}"
    text = ""
    try:
        text = line.decode()
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise TextError(f"{where}: {error}; save it as UTF-8") from error
    except RecursionError as error:
        raise TextError(f"{source.name} is nested deeper than Python's limit at line {number}") from error
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            raise _Incomplete(f"{where}: {error}") from error
        raise TextError(f"{where}: {error}") from error
    except ValueError as error:
        raise TextError(f"{where}: {error}") from error
    if re.search(rb"\\u[dD][89a-fA-F]", line):
        _refuse_surrogates(value, where)
    return value


def _refuse_surrogates(value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise TextError(
            f"{where}: half of a surrogate pair (\\u{ord(error.object[error.start]):04x})"
        ) from error


def _row(value: Any, source: Source, number: int) -> Row:
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"text": value}
    if value is None:
        raise TextError(
            f"{source.name} has null at line {number}, must have a document there: remove the line"
        )
    raise TextError(
        f"{source.name} cannot be read at line {number}: it has {type(value).__name__}, must have an object"
    )


def _list(begun: bytes, file: IO[bytes], source: Source) -> Iterator[Row]:
    """Yield the entries of a JSON list, holding no more than one of them in memory."""
    decoder, decode = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    where, ended, number = f"{source.name} cannot be read", False, 0
    try:
        text = decode.decode(begun).lstrip()[1:]
        while True:
            text = text.lstrip(" \t\r\n,") if number else text.lstrip(" \t\r\n")
            if text.startswith("]"):
                _check_end(text[1:], file, f"{where} after entry {number - 1}" if number else where)
                return
            try:
                value, stop = decoder.raw_decode(text)
                if stop == len(text) and not ended:  # a number may continue
                    raise json.JSONDecodeError("more to come", text, stop)
            except json.JSONDecodeError as error:
                if ended:
                    raise TextError(f"{where} at entry {number}: {error}") from error
                if len(text) > MOST:
                    raise TextError(f"{where}: entry {number} has more than {MOST:,} characters") from error
                content = file.read(max(BYTES, len(text)))
                ended = not content
                text += decode.decode(content, final=ended)
                continue
            if isinstance(value, str | dict):
                _refuse_surrogates(value, f"{where} at entry {number}")
            if value is None:
                value = {}
            yield _row(value, source, number)
            text, number = text[stop:], number + 1
    except UnicodeDecodeError as error:
        raise TextError(f"{where}: {error}; save it as UTF-8") from error
    except RecursionError as error:
        raise TextError(f"{source.name} is nested deeper than Python's limit at entry {number}") from error


def _check_end(text: str, file: IO[bytes], where: str) -> None:
    """Raise TextError where anything but white space follows a JSON list: it would be lost."""
    following = text.encode()
    while not following.strip(SPACE):
        following = file.read(BYTES)
        if not following:
            return
    raise TextError(f"{where}: the list ends there and more follows, expected one list or an object a line")


def csv_rows(source: Source) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV table, named by its first line: every field as the text that is written there, an empty one
    as None.

    Rows may end in separators that the first line lacks. Raises TextError for a field without a name."""
    import pandas as pd
    import pyarrow as pa

    separator = "\t" if source.kind == "tsv" else ","
    # Left to itself, pandas reads "NA" and "null" as missing and guesses the type of a column anew for each chunk
    as_written = {"sep": separator, "dtype": str, "keep_default_na": False, "na_values": [""]}
    with source.open() as file:
        first = pd.read_csv(file, nrows=1, **as_written)
    # pandas takes the first fields of rows that are longer than the first line for their names, and moves the others
    nameless = 0 if isinstance(first.index, pd.RangeIndex) else first.index.nlevels
    names = [*map(str, first.columns)]
    as_written |= {"names": [*names, *range(nameless)], "header": 0, "index_col": False}
    with source.open() as file, pd.read_csv(file, chunksize=ROWS * 40, **as_written) as tables:  # type: ignore[arg-type]
        for table in tables:
            beyond = table.iloc[:, len(names) :].notna().any(axis=1)
            if beyond.any():
                raise TextError(
                    f"{source.name} has more fields in row {beyond.idxmax() + 1} than the {len(names)} names in its first "
                    f"line: give every column a name, or quote texts that have a {separator!r} in them"
                )
            yield from pa.Table.from_pandas(table.iloc[:, : len(names)], preserve_index=False).to_pylist()


def parquet_rows(source: Source) -> Iterator[Row]:
    """Yield the rows of a Parquet file, holding at most one row group in memory."""
    import pyarrow.parquet as pq

    with _seekable(source) as file, pq.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=ROWS):
            yield from map(_without_none, batch.to_pylist())


def arrow_rows(source: Source) -> Iterator[Row]:
    """Yield the rows of an Arrow file, an Arrow stream or a Feather file."""
    import pyarrow as pa
    from pyarrow import feather

    with _seekable(source) as file:
        magic = file.read(6)
        file.seek(0)
        if magic.startswith(b"FEA1"):
            batches: Any = feather.read_table(file).to_batches(ROWS)
        elif magic.startswith(b"ARROW1"):
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            batches = pa.ipc.open_stream(file)
        for batch in batches:
            for start in range(0, len(batch), ROWS):
                yield from map(_without_none, batch.slice(start, ROWS).to_pylist())


ROWS_OF: dict[str, Callable[[Source], Iterator[Row]]] = {
    "json": json_rows, "csv": csv_rows, "tsv": csv_rows, "parquet": parquet_rows, "arrow": arrow_rows,
}  # fmt: skip


def _seekable(source: Source) -> IO[bytes]:
    """Open a file for seeking; a compressed one is decompressed into a temporary file first."""
    if not source.extensions[1] and not source.member:
        return source.open()
    decompressed = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    with source.open() as compressed:
        shutil.copyfileobj(compressed, decompressed)
    decompressed.seek(0)
    return decompressed


def _without_none(row: Row) -> Row:
    """Drop fields that are None inside lists.

    A table stores every field that any message has in all messages, so None stands for a field that was missing."""
    return {name: _pruned(value) if isinstance(value, list) else value for name, value in row.items()}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(part) for key, part in value.items() if part is not None}
    return [_pruned(part) for part in value] if isinstance(value, list) else value
