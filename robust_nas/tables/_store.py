"""Files of rows: one Parquet file, or a folder of `part-*.parquet` files. Reading checks their version."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robust_nas.core.catalogue import expanded
from robust_nas.core.errors import InputError, reason_of, suggest
from robust_nas.core.pixels import parse_pixels
from robust_nas.tables._schema import DERIVED, SCHEMA, SCHEMA_VERSION, VERSION_KEY

_STRINGS = [field.name for field in SCHEMA if field.type == pa.string()]

_SINCE: dict[int, dict[str, Any]] = {
    2: {"function": None, "num_seeds": 1, "is_mean": False, "severity": None},
    3: dict.fromkeys(["recipe_name", "recipe_settings", "evaluation_settings", "flops", "params"]),
}
"""The columns that a version added, with their values in every row of an older one."""


def home() -> Path:
    """Return the folder of the published tables on this machine: `$ROBUST_NAS_HOME/tables`, or ~/.cache/robust-nas."""
    return expanded(os.environ.get("ROBUST_NAS_HOME") or "~/.cache/robust-nas") / "tables"


def place(name: str) -> Path:
    """Return the folder where the published table called `name` is, or would be, on this machine."""
    return home() / f"{name}.parquet"


def read(path: Path | str, **filters: Any) -> pa.Table:
    """Return the table's rows, those of one network together, in an order that depends on the rows only.

    Args:
        path: a table's folder, or one of its files.
        filters: keep the rows whose column has this value, or one of these values: `attack="pgd"`,
            `epsilon="8/255"`, `seed=[0, 1, 2]`. None is the missing value. An epsilon need only agree to 1e-9.

    Raises:
        InputError: if there is no table, a file is damaged or of a newer version, or a column is unknown.
    """
    for name in filters:
        if name not in SCHEMA.names:
            raise InputError(f"The table has no column '{name}'. {suggest(name, SCHEMA.names)}")
    table = read_rows(Path(path))
    for name, wanted in filters.items():
        if name == "epsilon" and isinstance(wanted, str):
            wanted = parse_pixels(wanted)
        # A file's numbering is of all of its classes.
        table = table.filter(_matching(table[name], wanted)).replace_schema_metadata(SCHEMA.metadata)
    return table


def read_rows(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return all rows of a table, or some of their columns; a single file's metadata are kept.

    Args:
        path: a table's folder, or one of its files.
        columns: read these only, and text as dictionaries, which is several times as fast.

    Raises:
        InputError: if there is no table, or a file is damaged or of a newer version.
    """
    if path.is_file():
        with _opened(path) as (file, footer):
            return _checked(path, _rows(file, footer, columns))
    if not path.is_dir():
        raise InputError(f"There is no table at {path}; record a run into it first.")
    parts = []
    for part in sorted(path.glob("part-*.parquet")):
        with _opened(part) as (file, footer):
            # A file's metadata hold for its own rows, not for those of several files.
            parts.append(_checked(part, _rows(file, footer, columns)).replace_schema_metadata(SCHEMA.metadata))
    return pa.concat_tables(
        parts or [SCHEMA.empty_table() if columns is None else SCHEMA.empty_table().select(columns)]
    )


def read_varying(path: Path, identity: Sequence[str], facts: Sequence[str]) -> tuple[pa.Table, dict[str, Any]]:
    """Return some columns of a table, and the values of those of `identity` that have one value in the whole table.

    A large table's identity is mostly constant, which the footer of its file tells: that need not be read. A folder's
    columns are all read.

    Raises:
        InputError: as `read_rows` does.
    """
    if not path.is_file():
        return read_rows(path, [*identity, *facts]), {}
    with _opened(path) as (file, footer):
        constant = _constants(footer, identity)
        rows = _rows(file, footer, [*(name for name in identity if name not in constant), *facts])
        return _checked(path, rows), constant


def has_values(path: Path, columns: Sequence[str]) -> bool:
    """Return whether one of these columns may have a value: no, if a file's footer says so.

    Raises:
        InputError: as `read_rows` does.
    """
    if not path.is_file():
        return True
    with _opened(path) as (_, footer):
        constant = _constants(footer, columns)
        return any(constant.get(name, name) is not None for name in columns if name not in _later(footer))


def _constants(footer: pq.FileMetaData, columns: Sequence[str]) -> dict[str, Any]:
    """Return the value of each of these columns of which the footer says that it has one in the whole file."""
    places = {name: place for place, name in enumerate(footer.schema.names)}
    found: dict[str, Any] = {}
    for name in columns:
        groups = [
            footer.row_group(group).column(places[name]).statistics
            for group in range(footer.num_row_groups if name in places else 0)
        ]
        if not groups or not all(group is not None and group.has_null_count for group in groups):
            continue
        nulls = sum(group.null_count for group in groups)
        if nulls == footer.num_rows:
            found[name] = None
        elif not nulls and all(group.has_min_max for group in groups):
            values = {value for group in groups for value in (group.min, group.max)}
            if len(values) == 1:
                found[name] = values.pop()
    return found


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], pq.FileMetaData]]:
    """Open a file of rows, and read its footer; the file is the same throughout, also if it is replaced meanwhile."""
    try:
        with path.open("rb") as file:
            footer = pq.read_metadata(file)
            version = (footer.metadata or {}).get(VERSION_KEY, b"").decode()
            if not version.isdigit():
                raise InputError(
                    f"{path} is a Parquet file, but no robust-accuracy table; name another, or move it away."
                )
            if int(version) > SCHEMA_VERSION:
                raise InputError(
                    f"{path} has version {version} of the table's schema, but this robust-nas reads up to "
                    f"{SCHEMA_VERSION}; install a newer robust-nas."
                )
            if set(footer.schema.names) - set(DERIVED) != set(SCHEMA.names) - set(_later(footer)):
                raise InputError(_damaged(path, f"its columns are not those of version {version}"))
            _check_types(path, footer)
            yield file, footer
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"{path} cannot be read ({os.strerror(error.errno)}); check its permissions.") from error
        raise InputError(
            f"{path} is damaged, or no table ({reason_of(error)}); if it was one, fetch, import or record it again."
        ) from error


def _later(footer: pq.FileMetaData) -> dict[str, Any]:
    """Return the columns that the file's version did not have yet, with their values."""
    own = int(footer.metadata[VERSION_KEY])
    return {name: value for version, columns in _SINCE.items() if own < version for name, value in columns.items()}


def _rows(file: IO[bytes], footer: pq.FileMetaData, columns: Sequence[str] | None) -> pa.Table:
    """Return the rows of an open file, or some of their columns, text as dictionaries."""
    later = _later(footer)
    dictionaries = [name for name in _STRINGS if name not in later] if columns is not None else None
    with pq.ParquetFile(file, metadata=footer, read_dictionary=dictionaries) as content:
        table = content.read([name for name in columns or SCHEMA.names if name not in later])
    for name in set(later).intersection(columns or SCHEMA.names):
        kind = SCHEMA.field(name).type
        if columns is not None and kind == pa.string():
            kind = pa.dictionary(pa.int32(), kind)
        values = pa.array([later[name]] * len(table), kind)
        table = table.append_column(pa.field(name, kind), values)
    if columns is not None:
        return table.select(columns)
    arrays = [table[name] for name in SCHEMA.names]
    return pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(table.schema.metadata))


def _check_types(path: Path, footer: pq.FileMetaData) -> None:
    """Raise InputError for a column of another type than the schema's, or with values that it cannot have."""
    schema = footer.schema.to_arrow_schema()
    for field in schema:
        if field.name in DERIVED:
            continue
        wanted = SCHEMA.field(field.name)
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if kind != wanted.type:
            raise InputError(_damaged(path, f"the column {field.name} must be of type {wanted.type}, but is {kind}"))
    for name, low, high in (("accuracy", 0.0, 1.0), ("epsilon", 0.0, math.inf), ("num_images", 1, math.inf)):
        place = footer.schema.names.index(name)
        for group in range(footer.num_row_groups):
            found = footer.row_group(group).column(place).statistics
            if found is not None and found.has_min_max and not low <= found.min <= found.max <= high:
                raise InputError(_damaged(path, f"{name} must be at least {low:g} and at most {high:g}"))


def _checked(path: Path, table: pa.Table) -> pa.Table:
    """Return rows; raise InputError for values that are missing or no numbers where there must be some."""
    for name in table.column_names:
        column, field = table[name], SCHEMA.field(name)
        if column.null_count and not field.nullable:
            raise InputError(_damaged(path, f"the column {name} has no value in {column.null_count} rows"))
        if pa.types.is_floating(field.type) and not all(map(_is_finite, column.chunks)):
            raise InputError(_damaged(path, f"the column {name} has values that are no finite numbers"))
    return table


def _is_finite(array: pa.Array) -> bool:
    """Whether all values of an array of doubles that are there are finite."""
    if array.null_count == len(array):
        return True
    # From its buffers, because pyarrow imports pandas (.3 s) to give an array with nulls to NumPy.
    end, (bitmap, values) = array.offset + len(array), array.buffers()
    finite = np.isfinite(np.frombuffer(values, np.float64)[array.offset : end])
    if array.null_count:
        bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
        finite |= bits[array.offset : end] == 0
    return bool(finite.all())


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged ({reason}); fetch, import or record it again."


def _matching(column: pa.ChunkedArray, wanted: Any) -> pa.BooleanArray:
    """Return a mask of the values of `column` that are `wanted`, or among `wanted`."""
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
