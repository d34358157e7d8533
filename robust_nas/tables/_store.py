"""Files of rows: one Parquet file, or a folder of `part-*.parquet` files. Reading checks their version."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robust_nas.errors import InputError, suggest
from robust_nas.tables._schema import SCHEMA, SCHEMA_VERSION, VERSION_KEY

_STRINGS = [field.name for field in SCHEMA if field.type == pa.string()]

_SINCE_VERSION_2 = {"function": None, "num_seeds": 1, "is_mean": False, "severity": None}
"""What these columns say of every row of version 1."""


def home() -> Path:
    """Return the folder of the published tables on this machine: `$ROBUST_NAS_HOME/tables`, or ~/.cache/robust-nas."""
    return Path(os.environ.get("ROBUST_NAS_HOME") or "~/.cache/robust-nas").expanduser() / "tables"


def place(name: str) -> Path:
    """Return where the published table called `name` is, or would be, on this machine."""
    return home() / f"{name}.parquet"


def read(path: Path | str, **filters: Any) -> pa.Table:
    """Return the table's rows, those of one network together, in an order that depends on the rows only.

    Args:
        path: a table's folder, or one of its files.
        filters: keep the rows whose column has this value, or one of these values: `attack="pgd"`,
            `epsilon=8 / 255`, `seed=[0, 1, 2]`. None is the missing value. An epsilon need only agree to 1e-9.

    Raises:
        InputError: if there is no table, a file is damaged or of a newer version, or a column is unknown.
    """
    for name in filters:
        check_column(name)
    table = read_rows(Path(path))
    for name, wanted in filters.items():
        table = table.filter(_matching(table[name], wanted))
    return table


def check_column(name: str) -> None:
    """Raise InputError unless `name` is a column of every table."""
    if name not in SCHEMA.names:
        raise InputError(f"The table has no column '{name}'. {suggest(name, SCHEMA.names)}")


def read_rows(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return all rows of a table, or some of their columns; the metadata are the file's.

    Args:
        path: a table's folder, or one of its files.
        columns: read these only, and text as dictionaries, which is several times as fast.

    Raises:
        InputError: if there is no table, or a file is damaged or of a newer version.
    """
    parts = [path] if path.is_file() else sorted(path.glob("part-*.parquet"))
    if not parts and not path.is_dir():
        raise InputError(f"There is no table at {path}; record a run into it first.")
    if not parts:
        return SCHEMA.empty_table() if columns is None else SCHEMA.empty_table().select(columns)
    return pa.concat_tables([_read_part(part, columns) for part in parts])


def constants(path: Path, columns: Sequence[str]) -> dict[str, Any]:
    """Return the value of each of these columns that has one value in the whole file, as far as its footer tells.

    What the footer tells need not be read: most of a large table's columns have one value. A folder tells nothing.
    """
    if not path.is_file():
        return {}
    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return {}  # whoever reads the rows says what is wrong
    places = {name: place for place, name in enumerate(footer.schema.names)}
    found = {}
    for name in columns:
        groups = [
            footer.row_group(group).column(places[name]).statistics
            for group in range(footer.num_row_groups * (name in places))
        ]
        if groups and all(group is not None and group.has_null_count for group in groups):
            values = {value for group in groups if group.has_min_max for value in (group.min, group.max)}
            nulls = sum(group.null_count for group in groups)
            if len(values) == 1 and not nulls:
                found[name] = values.pop()
            elif nulls == footer.num_rows:
                found[name] = None
    return found


def _read_part(path: Path, columns: Sequence[str] | None) -> pa.Table:
    try:
        footer = pq.read_metadata(path)
        version = (footer.metadata or {}).get(VERSION_KEY, b"").decode()
        if not version.isdigit():
            raise InputError(f"{path} is not part of a robust-accuracy table: it has no version; move it elsewhere.")
        if int(version) > SCHEMA_VERSION:
            raise InputError(
                f"{path} has version {version} of the table's schema, but this robust-nas reads up to "
                f"{SCHEMA_VERSION}; install a newer robust-nas."
            )
        later = set(_SINCE_VERSION_2) if int(version) < 2 else set()
        if set(footer.schema.names) != set(SCHEMA.names) - later:
            raise InputError(
                f"{path} is damaged (its columns are not those of version {version}); delete it and make it again."
            )
        dictionaries = [name for name in _STRINGS if name not in later] if columns is not None else None
        with pq.ParquetFile(path, metadata=footer, read_dictionary=dictionaries) as file:
            table = file.read([name for name in columns or SCHEMA.names if name not in later])
        for name in later.intersection(columns or SCHEMA.names):
            kind = SCHEMA.field(name).type
            if columns is not None and kind == pa.string():
                kind = pa.dictionary(pa.int32(), kind)
            values = pa.array([_SINCE_VERSION_2[name]] * len(table), kind)
            table = table.append_column(pa.field(name, kind), values)
        if columns is not None:
            return table.select(columns)
        arrays = [table[name] for name in SCHEMA.names]
        return pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(table.schema.metadata))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path} is damaged ({reason}); delete it and make it again.") from error


def _matching(column: pa.ChunkedArray, wanted: Any) -> pa.BooleanArray:
    """Return which values of `column` are `wanted`, or among `wanted`."""
    values = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
    if pa.types.is_floating(column.type):
        lengths = [value for value in values if value is not None]
        keep = [
            None in values if found is None else any(abs(found - value) <= 1e-9 for value in lengths)
            for found in column.to_pylist()
        ]
    else:
        keep = [found in values for found in column.to_pylist()]
    # From bits, because pyarrow imports pandas (.3 s) to make an array or a scalar of Python values.
    bits = np.packbits(np.asarray(keep, dtype=bool), bitorder="little")
    return pa.BooleanArray.from_buffers(pa.bool_(), len(keep), [None, pa.py_buffer(bits)])
