"""The rows of a table as arrays [columns, classes], quickly.

A column is one way to train and to measure, a class is one canonical form. Several trainings of a class in a column are
averaged. Arrow's buffers are read as they are: its own conversions import pandas or its compute functions, which cost
more than a whole query; and memory that is touched for the first time costs more than what is computed in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from robust_nas.core.errors import InputError
from robust_nas.core.pixels import format_pixels
from robust_nas.tables._store import read_varying

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Column:
    """One way to train and to measure: the columns of `Row` that identify a quantity, the network and seed aside."""

    space: str
    skeleton: str
    dataset: str
    split: str
    recipe: str
    recipe_hash: str | None
    attack: str
    norm: str | None
    epsilon: float | None
    severity: int | None
    evaluation_hash: str | None

    @property
    def label(self) -> str:
        """The measurement's short name: "clean", "pgd@8/255", "pgd@l2:0.5", "corruption:fog@3"."""
        if self.epsilon is not None:
            norm = "" if self.norm == "linf" else f"{self.norm}:"
            return f"{self.attack}@{norm}{format_pixels(self.epsilon)}"
        return self.attack if self.severity is None else f"{self.attack}@{self.severity}"


IDENTITY = tuple(field.name for field in fields(Column))
"""The columns of `Row` that identify a quantity, the network and the seed aside."""


@dataclass(frozen=True)
class Arrays:
    """A table's content; NaN stands for values that were not measured or are not known.

    Args:
        columns: by first appearance.
        canonical: the canonical form of each class, by first appearance.
        architectures: the string forms of the trained architectures.
        architecture_of: for each class, the place of its first architecture among them.
        functions: the simplified forms (`Architecture.function`), None for what is not known.
        function_of: for each class, the place of its first architecture's among them.
        means: accuracies, fractions, [columns, classes].
        stds: standard deviations over trainings, [columns, classes].
        trainings: numbers of trainings, [columns, classes].
        images: numbers of images, [columns, classes].
        metadata: the file's.
    """

    columns: list[Column]
    canonical: list[str]
    architectures: list[str]
    architecture_of: NDArray[Any]
    functions: list[str | None]
    function_of: NDArray[Any]
    means: NDArray[Any]
    stds: NDArray[Any]
    trainings: NDArray[Any]
    images: NDArray[Any]
    metadata: Mapping[bytes, bytes]


def read_arrays(path: Path) -> Arrays:
    """Return a table's content.

    Raises:
        InputError: if there is no table or no row, or a file is damaged or of a newer version.
    """
    facts = ["canonical", "architecture", "function", "accuracy", "num_seeds", "num_images"]
    rows, fixed = read_varying(path, IDENTITY, facts)
    varying = [name for name in IDENTITY if name not in fixed]
    rows = rows.unify_dictionaries()
    if not len(rows):
        raise InputError(f"There is no table in {path}: it has no rows; record a run into it first.")

    classes, canonical = _codes(rows["canonical"])
    forms, architectures = _codes(rows["architecture"])
    if None in canonical:
        # An architecture whose canonical form is not known is a class of its own.
        classes = np.where(classes == canonical.index(None), len(canonical) + forms, classes)
        used, classes = np.unique(classes, return_inverse=True)
        canonical = [[*canonical, *architectures][place] for place in used.tolist()]
    simplified, functions = _codes(rows["function"])
    accuracies, trainings, images = (_numbers(rows[name]) for name in ("accuracy", "num_seeds", "num_images"))
    if not (np.min(accuracies) >= 0 and np.max(accuracies) <= 1):  # NaN is neither
        raise InputError(f"{path} is damaged: it has accuracies outside [0, 1]; make it again.")
    starts, runs, combinations = _runs([rows[name] for name in varying], len(rows))
    shape = len(combinations), len(canonical)

    stds = np.broadcast_to(np.nan, shape)
    # Published tables come as a grid: all classes of one column after the other, in the same order.
    if len(starts) == shape[0] and len(rows) == shape[0] * shape[1] and _is_repeated_range(classes, shape):
        means, trainings, images = (values.reshape(shape) for values in (accuracies, trainings, images))
        first = np.arange(shape[1])
    else:
        cells = np.repeat(runs, np.diff(np.append(starts, len(rows)))) * shape[1] + classes
        means, stds, trainings, images = (
            values.reshape(shape) for values in _averaged(cells, accuracies, trainings, images, shape[0] * shape[1])
        )
        first = np.zeros(shape[1], dtype=np.int64)
        first[classes[::-1]] = np.arange(len(rows))[::-1]
    return Arrays(
        columns=[Column(**fixed, **dict(zip(varying, values, strict=True))) for values in combinations],
        canonical=canonical,
        architectures=architectures,
        architecture_of=forms[first],
        functions=functions,
        function_of=simplified[first],
        means=means,
        stds=stds,
        trainings=trainings,
        images=images,
        metadata=rows.schema.metadata or {},
    )


def _is_repeated_range(classes: NDArray[Any], shape: tuple[int, int]) -> bool:
    """Return whether `classes` counts from 0 to the number of classes, for each column anew."""
    return bool((classes.reshape(shape) == np.arange(shape[1], dtype=classes.dtype)).all())


def _averaged(
    cells: NDArray[Any], accuracies: NDArray[Any], trainings: NDArray[Any], images: NDArray[Any], size: int
) -> tuple[NDArray[Any], ...]:
    """Return, for each cell: the mean accuracy, its standard deviation, the number of trainings and of images."""
    counts = np.bincount(cells, minlength=size)
    # A mean over several trainings counts as often; where the source does not say over how many, once.
    weights = np.nan_to_num(trainings, nan=1.0)
    means, stds, numbers, sizes = (np.full(size, np.nan) for _ in range(4))
    some = counts > 0
    sums, totals = np.bincount(cells, weights * accuracies, size), np.bincount(cells, weights, size)
    # Means of equal numbers differ in the last digits by the order of their sums; rounded, they are equal again.
    means[some] = np.round(sums[some] / totals[some], 12)
    numbers[some] = np.bincount(cells, trainings, size)[some]
    sizes[cells] = images
    sizes[cells[sizes[cells] != images]] = np.nan  # not one number
    single = (counts > 1) & (numbers == counts)  # every row is one training
    squares = np.bincount(cells, (accuracies - means[cells]) ** 2, size)
    stds[single] = np.sqrt(squares[single] / (counts[single] - 1))
    return means, stds, numbers, sizes


def _codes(column: pa.ChunkedArray) -> tuple[NDArray[Any], list[Any]]:
    """Return a number for each row of a column of text, and the texts; None stands for a missing one."""
    raw, valid, values = _raw(column)
    if valid is None:
        return raw, values
    return np.where(valid, raw, len(values)), [*values, None]


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of numbers; NaN stands for a missing one."""
    raw, valid, _ = _raw(column)
    return raw if valid is None else np.where(valid, raw, np.nan)


def _runs(columns: list[pa.ChunkedArray], length: int) -> tuple[NDArray[Any], list[int], list[tuple[Any, ...]]]:
    """Return the starts of runs of rows with equal values, a number for each run, and the combinations of values."""
    changes = np.zeros(length, dtype=bool)
    changes[:1] = True
    raws = [_raw(column) for column in columns]
    for raw, valid, _ in raws:
        changes[1:] |= raw[1:] != raw[:-1]
        if valid is not None:
            changes[1:] |= valid[1:] != valid[:-1]
    starts = np.flatnonzero(changes)

    def values_of(raw: NDArray[Any], valid: NDArray[Any] | None, values: list[Any]) -> list[Any]:
        found = [values[code] if values else code for code in raw[starts].tolist()]
        known = [True] * len(found) if valid is None else valid[starts].tolist()
        return [value if is_known else None for value, is_known in zip(found, known, strict=True)]

    found = [values_of(*raw) for raw in raws]
    numbers: dict[tuple[Any, ...], int] = {}
    combinations = zip(*found, strict=True) if found else [()] * len(starts)
    runs = [numbers.setdefault(combination, len(numbers)) for combination in combinations]
    return starts, runs, list(numbers)


def _raw(column: pa.ChunkedArray) -> tuple[NDArray[Any], NDArray[np.bool_] | None, list[Any]]:
    """Return a column's numbers, which are not missing (None: all), and a dictionary's values (numbers have none)."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    end = array.offset + len(array)
    values: list[Any] = []
    numbers = array
    if isinstance(array, pa.DictionaryArray):
        values, numbers = array.dictionary.to_pylist(), array.indices
    if array.null_count == len(array):
        return np.zeros(len(array), dtype=np.int64), np.zeros(len(array), dtype=bool), values
    raw = np.frombuffer(numbers.buffers()[1], numbers.type.to_pandas_dtype())[array.offset : end]
    if not array.null_count:
        return raw, None, values
    bits = np.unpackbits(np.frombuffer(array.buffers()[0], np.uint8), bitorder="little")
    valid = bits[array.offset : end].astype(bool)
    # The bytes of a missing value are arbitrary.
    return np.where(valid, raw, np.zeros(1, raw.dtype)), valid, values
