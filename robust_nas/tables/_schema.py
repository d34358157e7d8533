"""The schema of every robust-accuracy table: long form, one measured accuracy per row, in Parquet.

A row is identified by its training (architecture, space, skeleton, data set, recipe, seed) and by its measurement
(split, attack, norm, epsilon, evaluation settings); `accuracy` over `num_images` is the measurement, and the rest says
where it comes from. A column's meaning travels with the file, as metadata of its Parquet field.

A row of one network says which seed trained it. A published row may be a mean over seeds instead (`is_mean`,
`num_seeds`), and what a source does not state is null: a reader never guesses a missing value.

A change of the columns raises `SCHEMA_VERSION`, and a reader refuses a newer version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime
from functools import cache
from typing import Any

import pyarrow as pa

from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError

SCHEMA_VERSION = 3
"""The version that this package writes."""

DERIVED = ("digits", "published_index")
"""Columns of exported rows that follow from the architecture; a reader leaves them out."""

VERSION_KEY = b"robust_nas.table.version"
"""The key of the version in a Parquet file's metadata."""

INDEX_KEY = b"robust_nas.table.index"
"""The key of the source's own numbering in a Parquet file's metadata: digits forms, separated by spaces, from 0 on."""

CLASSES_KEY = b"robust_nas.table.classes"
"""The key of each numbered architecture's class in a Parquet file's metadata: its place among the file's canonical
forms in the order in which they first appear, or -1."""


def _column(kind: pa.DataType, about: str, *, nullable: bool = False, default: Any = MISSING) -> Any:
    return field(metadata={"kind": kind, "about": about, "nullable": nullable}, default=default)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured accuracy of one trained network. The fields are the table's columns, in their order.

    Raises:
        InputError: for an accuracy outside [0, 1], no images, or a norm or epsilon that does not fit the attack.
    """

    architecture: str = _column(pa.string(), "the architecture's string form, as it was trained")
    canonical: str | None = _column(
        pa.string(),
        "canonical form: equal for architectures that compute the same function; null if unknown",
        nullable=True,
    )
    function: str | None = _column(
        pa.string(),
        "simplified form (`Architecture.function`): networks of one differ by chance alone; null if unknown",
        nullable=True,
        default=None,
    )
    space: str = _column(pa.string(), "the search space's name")
    skeleton: str = _column(
        pa.string(), "what surrounds the cell, as 'key=value' pairs in alphabetical order: width, depth"
    )
    flops: float | None = _column(
        pa.float64(),
        "multiply-adds of the network for one image, in millions; null if the row does not say",
        nullable=True,
        default=None,
    )
    params: float | None = _column(
        pa.float64(),
        "the network's trainable parameters, in millions; null if the row does not say",
        nullable=True,
        default=None,
    )
    dataset: str = _column(pa.string(), "the data set's name; 'folder:NAME' for a folder of images")
    split: str = _column(pa.string(), "the split that was measured: 'test' or 'validation'")
    recipe: str = _column(pa.string(), "the training method's name")
    recipe_hash: str | None = _column(
        pa.string(),
        "of the whole training recipe: [data] without its place on disk, [threat] and [train]; null if it was trained "
        "by other software",
        nullable=True,
    )
    recipe_name: str | None = _column(
        pa.string(), "the recipe's own name; null if the row does not say", nullable=True, default=None
    )
    recipe_settings: str | None = _column(
        pa.string(),
        "the settings behind recipe_hash, as JSON; null if the row does not say",
        nullable=True,
        default=None,
    )
    seed: int | None = _column(pa.int64(), "the training's seed; null for a mean, or if not stated", nullable=True)
    num_seeds: int | None = _column(
        pa.int64(), "how many trainings the accuracy is over; null if not stated", nullable=True, default=1
    )
    is_mean: bool = _column(pa.bool_(), "whether the accuracy is a mean over several trainings", default=False)
    attack: str = _column(
        pa.string(),
        "'clean'; an attack's name; 'worst_case:a+b' for images that withstand each of a and b; 'certified:METHOD' for "
        "images that are proved robust; 'corruption:NAME' for images with a common corruption",
    )
    norm: str | None = _column(
        pa.string(), "the threat's norm, 'linf' or 'l2'; null for clean and corruptions", nullable=True
    )
    epsilon: float | None = _column(
        pa.float64(),
        "the threat's radius in pixel units of [0, 1]; null for clean and corruptions, or if the source does not "
        "state it",
        nullable=True,
    )
    severity: int | None = _column(
        pa.int64(),
        "a corruption's severity, 1 to 5; null for all else, or if the source does not state it",
        nullable=True,
        default=None,
    )
    evaluation_hash: str | None = _column(
        pa.string(),
        "of the settings of the measurement: [evaluation], or [certification] for certified rows; null if it was "
        "measured by other software",
        nullable=True,
    )
    evaluation_settings: str | None = _column(
        pa.string(),
        "the settings behind evaluation_hash, as JSON; null if the row does not say",
        nullable=True,
        default=None,
    )
    accuracy: float = _column(
        pa.float64(), "fraction in [0, 1] of the images that are classified correctly, or proved so"
    )
    num_images: int | None = _column(
        pa.int64(), "how many images the accuracy is over; null if not known", nullable=True
    )
    version: str | None = _column(
        pa.string(), "the version of robust-nas that measured it; null for other software", nullable=True
    )
    hardware: str | None = _column(pa.string(), "what it ran on; null if not stated", nullable=True)
    source: str = _column(pa.string(), "where the number comes from: a run folder's name, or a published table's")
    model: str | None = _column(pa.string(), "the network's name within its source; null if it has none", nullable=True)
    started: datetime | None = _column(  # noqa: RUF009 (it is a dataclass field)
        pa.timestamp("us", tz="UTC"), "when the run started; null if its environment.json does not say", nullable=True
    )

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise InputError(f"Row.accuracy must be a fraction in [0, 1], but got {self.accuracy} for {self.attack}.")
        if self.num_images is not None and self.num_images < 1:
            raise InputError(f"Row.num_images must be at least 1, but got {self.num_images} for {self.attack}.")
        if self.is_mean and (self.seed is not None or self.num_seeds == 1):
            raise InputError(
                "A row that is a mean over trainings has no seed and more than one of them, "
                f"but got seed {self.seed} and num_seeds {self.num_seeds} for {self.attack}."
            )
        is_benign = self.attack == "clean" or self.attack.startswith("corruption:")
        if is_benign != (self.norm is None) or (is_benign and self.epsilon is not None):
            raise InputError(
                "Row.norm must be given for every attack, and norm and epsilon left out for 'clean' and corruptions, "
                f"but got {self.norm} and {self.epsilon} for '{self.attack}'."
            )
        if self.severity is not None and not self.attack.startswith("corruption:"):
            raise InputError(f"Row.severity belongs to corruptions, but got {self.severity} for '{self.attack}'.")


def _schema() -> pa.Schema:
    columns = [
        pa.field(item.name, item.metadata["kind"], item.metadata["nullable"], {"about": item.metadata["about"]})
        for item in fields(Row)
    ]
    return pa.schema(columns, metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()})


SCHEMA = _schema()
"""The pyarrow schema of version `SCHEMA_VERSION`."""


def numbering(index: Sequence[str], canonical: Iterable[str]) -> dict[bytes, bytes]:
    """Return the metadata that keep a source's own numbering of architectures.

    Args:
        index: digits forms, from 0 on.
        canonical: the file's canonical forms, in the order in which they first appear.
    """
    places = {form: place for place, form in enumerate(dict.fromkeys(canonical))}
    classes = [places.get(_forms(digits)[0], -1) for digits in index]
    return {INDEX_KEY: " ".join(index).encode(), CLASSES_KEY: " ".join(map(str, classes)).encode()}


@cache
def _forms(architecture: str) -> tuple[str, str]:
    parsed = Architecture.parse(architecture)
    return parsed.canonical, parsed.function


def measured(constant: Mapping[str, Any], **varying: Sequence[Any]) -> pa.Table:
    """Return rows that share the values of `constant` and differ in the equally long columns of `varying`.

    The quick way to write what a source gives of many NAS-Bench-201 networks under one attack. `canonical` and
    `function` follow from `architecture`; other columns that are in neither have the defaults of `Row`, or are null.

    Raises:
        InputError: as `Row` does, or if a column that may not be null is.
    """
    count = len(varying["accuracy"])
    accuracies = varying["accuracy"]
    for accuracy in (min(accuracies, default=0.0), max(accuracies, default=0.0)):
        # One row stands for all in what `Row` checks of the shared columns.
        Row(**{**{name: None for name in SCHEMA.names}, **_DEFAULTS, **constant, "accuracy": accuracy})
    forms = [_forms(architecture) for architecture in varying["architecture"]]
    columns = {
        **{name: [value] * count for name, value in {**_DEFAULTS, **constant}.items()},
        "canonical": [canonical for canonical, _ in forms],
        "function": [function for _, function in forms],
        **varying,
    }
    arrays = [pa.array(columns.get(name, [None] * count), SCHEMA.field(name).type) for name in SCHEMA.names]
    missing = [
        field.name for field, array in zip(SCHEMA, arrays, strict=True) if array.null_count and not field.nullable
    ]
    if missing:
        raise InputError(f"A row of a table must have the columns {', '.join(missing)}, but got nothing for them.")
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


_DEFAULTS = {item.name: item.default for item in fields(Row) if item.default is not MISSING}
