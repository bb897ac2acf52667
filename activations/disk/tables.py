"""Read Parquet tables and check, before their content is used, that they have the right columns."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from activations.disk import files
from activations.errors import RunError

pc: Any = import_module("pyarrow.compute")  # it creates its functions at import, so type checkers see none
# A table may decompress to this many bytes, or to this many times the size of its file: a small file could claim terabytes
MOST_BYTES = 64 << 20
MOST_TIMES = 200
Kind = Callable[[pa.DataType], bool]


def integers(kind: pa.DataType) -> bool:
    """Return whether a column's type is an integer type."""
    return pa.types.is_integer(kind)


def numbers(kind: pa.DataType) -> bool:
    """Return whether a column's type is an integer or floating-point type."""
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def strings(kind: pa.DataType) -> bool:
    """Return whether a column's type is a string type."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def lists(of: Kind) -> Kind:
    """Return a test that a column holds lists whose items pass the test `of`."""
    return lambda kind: pa.types.is_list(kind) and (pa.types.is_null(kind.value_type) or of(kind.value_type))


def read(path: Path, columns: Any, rows: int | None = None, fix: str | None = None) -> pa.Table:
    """Return the table in a Parquet file.

    `columns` is a schema, or a dict from names to tests of their types; a column of nulls passes as any type. Raises RunError,
    with the command `fix`, when the file cannot be read, has another number of `rows`, would decompress to more than 64 MB
    and 200 times its own size, or lacks a column or has one of another type."""
    try:
        with pq.ParquetFile(files.plain(path)) as file:
            metadata = file.metadata
            if rows is not None and metadata.num_rows != rows:
                raise RunError(f"{path} has {metadata.num_rows:,} rows, must be {rows:,}", fix=fix)
            decompressed = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
            if not 0 <= decompressed <= max(MOST_BYTES, MOST_TIMES * path.stat().st_size):
                raise RunError(f"{path} is damaged: it would decompress to {decompressed:,} bytes", fix=fix)
            table = file.read()
        table.validate(full=True)
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise RunError(f"{path} cannot be read: {' '.join(str(error).split())}", fix=fix) from error
    kinds = (
        {field.name: field.type.equals for field in columns} if isinstance(columns, pa.Schema) else columns
    )
    check_columns(path, table, kinds, fix)
    return table


def check_columns(path: Path, table: pa.Table, kinds: Mapping[str, Kind], fix: str | None) -> None:
    """Raise RunError, with the command `fix`, unless the table has each column exactly once and of the right type."""
    for name, is_right in kinds.items():
        if (times := table.column_names.count(name)) != 1:
            raise RunError(f"{path} is damaged: it has {times} columns {name}, must be 1", fix=fix)
        kind = table.schema.field(name).type
        if not (is_right(kind) or pa.types.is_null(kind)):
            raise RunError(f"{path} is damaged: its column {name} is of type {kind}", fix=fix)


def nested(items: pa.Array, counts: NDArray[np.int64]) -> pa.ListArray:
    """Return a column of lists, which have `counts` of the items one after the other. Unlike lists of Python's numbers, it takes no
    more memory than the items do."""
    offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), items)


def within(table: pa.Table, name: str, count: int) -> bool:
    """Return whether all numbers in a column of lists lie in 0 to count - 1."""
    values = pc.list_flatten(table[name])
    if not len(values) or pa.types.is_null(values.type):
        return True
    ends = pc.min_max(values).as_py()
    return values.null_count == 0 and ends["min"] >= 0 and ends["max"] < count


def alike(table: pa.Table, *names: str) -> bool:
    """Return whether the lists in these columns have the same length in each row. Columns that are missing are ignored."""
    lengths = [pc.list_value_length(table[name]) for name in names if name in table.column_names]
    return all(lengths[0].equals(other) for other in lengths[1:])
