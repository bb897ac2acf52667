"""Parquet tables, read and held to the columns they must have before anything is made of them."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from activations.disk import files
from activations.errors import RunError

pc: Any = import_module("pyarrow.compute")  # makes its functions when imported, unseen by type checkers
MOST_BYTES = 64 << 20  # a table unpacks to so many, or so many times the file's size
MOST_TIMES = 200
Kind = Callable[[pa.DataType], bool]


def whole(kind: pa.DataType) -> bool:
    """Whether a column holds whole numbers."""
    return pa.types.is_integer(kind)


def real(kind: pa.DataType) -> bool:
    """Whether a column holds numbers."""
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def text(kind: pa.DataType) -> bool:
    """Whether a column holds texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def lists(of: Kind) -> Kind:
    """Whether a column holds lists of such."""
    return lambda kind: pa.types.is_list(kind) and (pa.types.is_null(kind.value_type) or of(kind.value_type))


def read(path: Path, columns: Any, rows: int | None = None, fix: str | None = None) -> pa.Table:
    """The table in a file: `columns` are a schema, or names with what their types must be. All null is any type.

    Raises RunError when it cannot be read, says that it has another number of `rows` or unpacks to more than
    64 MB and 200 times its own size, or lacks a column or has one of another type."""
    try:
        with pq.ParquetFile(files.plain(path)) as file:
            about = file.metadata
            if rows is not None and about.num_rows != rows:
                raise RunError(f"{path} has {about.num_rows:,} rows, must be {rows:,}", fix=fix)
            unpacked = sum(about.row_group(n).total_byte_size for n in range(about.num_row_groups))
            if not 0 <= unpacked <= max(MOST_BYTES, MOST_TIMES * path.stat().st_size):
                raise RunError(f"{path} is damaged: it would unpack to {unpacked:,} bytes", fix=fix)
            table = file.read()
        table.validate(full=True)
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise RunError(f"{path} cannot be read: {' '.join(str(error).split())}", fix=fix) from error
    kinds = (
        {field.name: field.type.equals for field in columns} if isinstance(columns, pa.Schema) else columns
    )
    hold(path, table, kinds, fix)
    return table


def hold(path: Path, table: pa.Table, kinds: Mapping[str, Kind], fix: str | None) -> None:
    """Raise RunError unless the table has each of these columns once, and of such a type."""
    for name, is_right in kinds.items():
        if (times := table.column_names.count(name)) != 1:
            raise RunError(f"{path} is damaged: it has {times} columns {name}, must be 1", fix=fix)
        kind = table.schema.field(name).type
        if not (is_right(kind) or pa.types.is_null(kind)):
            raise RunError(f"{path} is damaged: its column {name} is of type {kind}", fix=fix)


def within(table: pa.Table, name: str, count: int) -> bool:
    """Whether all numbers in a column of lists are 0 to count - 1."""
    values = pc.list_flatten(table[name])
    if not len(values) or pa.types.is_null(values.type):
        return True
    ends = pc.min_max(values).as_py()
    return values.null_count == 0 and ends["min"] >= 0 and ends["max"] < count


def alike(table: pa.Table, *names: str) -> bool:
    """Whether columns of lists have, row by row, lists of one length."""
    lengths = [pc.list_value_length(table[name]) for name in names if name in table.column_names]
    return all(lengths[0].equals(other) for other in lengths[1:])
