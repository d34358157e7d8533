"""The schema of every robust-accuracy table: long form, one measured accuracy per row, in Parquet.

A row is identified by what was trained (architecture, space, skeleton, data set, recipe, seed) and by what was measured
(split, attack, norm, epsilon, evaluation settings); `accuracy` over `num_images` is the measurement, and the rest says
where it comes from. A column's meaning travels with the file, as metadata of its Parquet field.

A change of the columns raises `SCHEMA_VERSION`. A reader refuses a newer version, and never guesses a missing value.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

import pyarrow as pa

from robust_nas.errors import InputError

SCHEMA_VERSION = 1
"""The version that this package writes."""

VERSION_KEY = b"robust_nas.table.version"
"""The key of the version in a Parquet file's metadata."""


def _column(kind: pa.DataType, about: str, *, nullable: bool = False) -> Any:
    return field(metadata={"kind": kind, "about": about, "nullable": nullable})


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
    space: str = _column(pa.string(), "the search space's name")
    skeleton: str = _column(
        pa.string(), "what surrounds the cell, as 'key=value' pairs in alphabetical order: width, depth"
    )
    dataset: str = _column(pa.string(), "the data set's name; 'folder:NAME' for a folder of images")
    split: str = _column(pa.string(), "the split that was measured: 'test' or 'validation'")
    recipe: str = _column(pa.string(), "the training method's name")
    recipe_hash: str = _column(
        pa.string(), "of the whole training recipe: [data] without its place on disk, [threat] and [train]"
    )
    seed: int = _column(pa.int64(), "the run's seed")
    attack: str = _column(
        pa.string(),
        "'clean'; an attack's name; 'worst_case:a+b' for images that withstand each of a and b; 'certified:METHOD' for "
        "images that are proved robust",
    )
    norm: str | None = _column(pa.string(), "the threat's norm, 'linf' or 'l2'; null for clean", nullable=True)
    epsilon: float | None = _column(
        pa.float64(), "the threat's radius in pixel units of [0, 1]; null for clean", nullable=True
    )
    evaluation_hash: str = _column(
        pa.string(), "of the settings of the measurement: [evaluation], or [certification] for certified rows"
    )
    accuracy: float = _column(
        pa.float64(), "fraction in [0, 1] of the images that are classified correctly, or proved so"
    )
    num_images: int = _column(pa.int64(), "how many images the accuracy is over")
    version: str = _column(pa.string(), "the version of robust-nas that measured it")
    hardware: str = _column(pa.string(), "what it ran on")
    source: str = _column(pa.string(), "where the number comes from: the name of a run folder")
    model: str = _column(pa.string(), "the network's name within its source")
    started: datetime | None = _column(  # noqa: RUF009 (it is a dataclass field)
        pa.timestamp("us", tz="UTC"), "when the run started; null if its environment.json does not say", nullable=True
    )

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise InputError(f"Row.accuracy must be a fraction in [0, 1], but got {self.accuracy} for {self.attack}.")
        if self.num_images < 1:
            raise InputError(f"Row.num_images must be at least 1, but got {self.num_images} for {self.attack}.")
        is_clean = self.attack == "clean"
        if is_clean != (self.norm is None) or is_clean != (self.epsilon is None):
            raise InputError(
                "Row.norm and Row.epsilon must be given for every attack and left out for 'clean', "
                f"but got {self.norm} and {self.epsilon} for '{self.attack}'."
            )


def _schema() -> pa.Schema:
    columns = [
        pa.field(item.name, item.metadata["kind"], item.metadata["nullable"], {"about": item.metadata["about"]})
        for item in fields(Row)
    ]
    return pa.schema(columns, metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()})


SCHEMA = _schema()
"""The pyarrow schema of version `SCHEMA_VERSION`."""
