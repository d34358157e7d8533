"""The cost of a table's networks: `flops` and `params`, in the units in which NAS-Bench-201 publishes them.

`flops` are the multiply-adds of convolutions and the classifier for one image, in millions ("FLOPs, M");
`params` are the trainable parameters, in millions ("MB" there, though they are no bytes). Own runs record them.
Published tables do not have them: they follow from the cell, and from the skeleton around it, which the table states.
Every operation adds its own cost, whatever the other edges have, so that no network is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from robust_nas import records
from robust_nas.architectures.cell import OPERATIONS, Architecture
from robust_nas.core.errors import InputError
from robust_nas.core.files import is_there
from robust_nas.records import read
from robust_nas.tables import skeletons
from robust_nas.tables._schema import SCHEMA
from robust_nas.tables._store import has_values, read_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

COSTS = ("flops", "params")
"""The columns of costs: the fewer, the better."""

_IMAGES = {"cifar10": (3, 32, 10), "cifar100": (3, 32, 100), "imagenet16-120": (3, 16, 120)}
"""The channels, pixels a side and classes of the data sets of published tables."""

_KERNELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
_SKELETON = {"channels", "cells_per_stage", "stages"}
_OF_ROW = (*COSTS, "recipe_hash", "source", "model")
_FACTS = ["architecture", "canonical", "space", "skeleton", "dataset", *_OF_ROW]


class Cost(NamedTuple):
    """A network's cost, in millions; NaN is not known."""

    flops: float
    params: float


@dataclass(frozen=True)
class Condition:
    """A limit on a cost, such as flops<50."""

    name: str
    sign: str
    limit: float

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.limit:g}"

    def holds(self, values: Floats) -> NDArray[np.bool_]:
        """Return which values are within the limit; one that is not known is not."""
        compare = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}[self.sign]
        found: NDArray[np.bool_] = compare(values, self.limit)
        return found


def condition(text: str) -> Condition | None:
    """Read flops<50 or params>=0.5; None if the text has no such sign.

    Raises:
        InputError: if it has one, and is no limit on a cost.
    """
    match = re.fullmatch(r"\s*([^<>=]*?)\s*([<>]=?)\s*(.*?)\s*", text)
    if match is None:
        return None
    name, sign, number = match.groups()
    if name in COSTS and re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", number):
        return Condition(name, sign, float(number))
    raise InputError(f"A limit is written as flops<50 or params<=0.5, in millions, but got '{text}'.")


def conditions(texts: Iterable[str]) -> list[Condition]:
    """Read limits.

    Raises:
        InputError: for a text that is none.
    """
    found = []
    for text in texts:
        limit = condition(text)
        if limit is None:
            raise InputError(f"A limit is written as flops<50 or params<=0.5, in millions, but got '{text}'.")
        found.append(limit)
    return found


@cache
def _shares(skeleton: str, dataset: str) -> dict[str, tuple[int, int]] | None:
    """Return the multiply-adds and parameters of what surrounds the cells ("") and of each operation on an edge.

    None, if they do not follow from skeleton and data set.
    """
    try:
        settings = skeletons.settings(skeleton)
    except InputError:
        return None
    if dataset not in _IMAGES or settings.keys() != _SKELETON:
        return None
    images, side, classes = _IMAGES[dataset]
    channels, cells, stages = (settings[name] for name in ("channels", "cells_per_stage", "stages"))
    flops, params = dict.fromkeys(["", *_KERNELS], 0), dict.fromkeys(["", *_KERNELS], 0)

    def add(share: str, inputs: int, outputs: int, kernel: int, side: int, times: int = 1, norm: bool = True) -> None:
        weights = kernel**2 * inputs * outputs
        flops[share] += times * weights * side**2
        params[share] += times * (weights + 2 * outputs * norm)  # a batch norm has a scale and a shift

    add("", images, channels, 3, side)
    for stage in range(stages):
        if stage:
            channels, side = 2 * channels, -(-side // 2)
            add("", channels // 2, channels, 3, side)
            add("", channels, channels, 3, side)
            add("", channels // 2, channels, 1, side, norm=False)
        for operation, kernel in _KERNELS.items():
            add(operation, channels, channels, kernel, side, times=cells)
    flops[""] += channels * classes
    params[""] += channels * classes + classes + 2 * channels
    return {share: (flops[share], params[share]) for share in flops}


def of_published(architecture: str, skeleton: str, dataset: str) -> Cost:
    """Return the cost of a network that has the operation of every edge, also of those that carry nothing.

    So NAS-Bench-201 builds its networks, and counts them (with the classifier's bias, which is no multiply-add).

    Args:
        architecture: the string form.
        skeleton: as a table writes it.
        dataset: the data set's name.
    """
    shares = _shares(skeleton, dataset)
    names = re.findall(r"(\w+)~", architecture)
    if shares is None or not names or not set(names) <= set(OPERATIONS):
        return Cost(np.nan, np.nan)
    parts = [shares[""], *(shares[name] for name in names if name in _KERNELS)]
    return Cost(sum(flops for flops, _ in parts) / 1e6, sum(params for _, params in parts) / 1e6)


class Recorded:
    """The costs that a table's rows state, or where older rows of own runs do not, the run folders beside the table.

    Args:
        path: the table's file or folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._of_class: dict[tuple[str, ...], Cost] = {}
        self._of_run: dict[str, dict[str, Cost]] = {}
        rows = read_rows(path, _FACTS) if has_values(path, ["recipe_hash", *COSTS]) else None
        for row in rows.to_pylist() if rows is not None else ():
            cost = self.of_row(**{name: row[name] for name in _OF_ROW})
            if cost is not None:
                key = row["space"], row["skeleton"], row["dataset"], row["canonical"] or row["architecture"]
                self._of_class.setdefault(key, cost)

    def of_class(self, space: str, skeleton: str, dataset: str, canonical: str) -> Cost | None:
        """Return what is recorded of the first network of a class."""
        return self._of_class.get((space, skeleton, dataset, canonical))

    def of_row(
        self, flops: float | None, params: float | None, recipe_hash: str | None, source: str, model: str | None
    ) -> Cost | None:
        """Return what a row states, or else the run folder beside the table."""
        if flops is not None and params is not None:
            return Cost(flops, params)
        if recipe_hash is None or not self._path.is_dir():
            return None
        if source not in self._of_run:
            self._of_run[source] = _of_run(self._path.resolve().parent / source / "train.json")
        return self._of_run[source].get(model or "")


def _of_run(file: Path) -> dict[str, Cost]:
    """Return the costs of a run's networks, by their names; none, if it is not there or cannot be read."""
    try:
        models = read(file, records.TrainingRecord).models if is_there(file) else ()
    except InputError:
        return {}
    return {model.name: Cost(model.multiply_adds / 1e6, model.parameters / 1e6) for model in models}


def values(
    recorded: Recorded, place: tuple[str, str, str], canonical: Sequence[str], architectures: Sequence[str]
) -> Floats:
    """Return the costs of classes, [2, classes]; NaN is not known.

    Args:
        recorded: what the table states.
        place: the space, the skeleton and the data set.
        canonical: the classes' canonical forms.
        architectures: the classes' architectures, as they were trained.
    """
    found = [
        recorded.of_class(*place, form) or of_published(text, *place[1:])
        for form, text in zip(canonical, architectures, strict=True)
    ]
    return np.array(found, dtype=np.float64).reshape(len(found), 2).T


def completed(rows: pa.Table, recorded: Recorded, index: Sequence[str]) -> pa.Table:
    """Return rows with the costs that they do not state, and with the columns `digits` and `published_index`.

    Args:
        rows: rows of the table, all columns.
        recorded: what the table states.
        index: the digits forms in the source's own numbering; empty if it has none.
    """
    columns = {name: rows[name].to_pylist() for name in ("architecture", "skeleton", "dataset", *_OF_ROW)}
    published = cache(of_published)
    found = []
    for place, form in enumerate(columns["architecture"]):
        stated = recorded.of_row(**{name: columns[name][place] for name in _OF_ROW})
        found.append(stated or published(form, columns["skeleton"][place], columns["dataset"][place]))
    for name in COSTS:
        numbers = [None if np.isnan(getattr(cost, name)) else getattr(cost, name) for cost in found]
        rows = rows.set_column(rows.schema.names.index(name), SCHEMA.field(name), pa.array(numbers, pa.float64()))
    numbering, digits = {form: number for number, form in enumerate(index)}, cache(digits_of)
    forms = [digits(form) or None for form in columns["architecture"]]
    rows = rows.append_column("digits", pa.array(forms, pa.string()))
    return rows.append_column("published_index", pa.array([numbering.get(form or "") for form in forms], pa.int64()))


def digits_of(form: str) -> str:
    """Return the digits form of an architecture; "" for one of a space with other operations."""
    try:
        return Architecture.parse(form).digits()
    except InputError:
        return ""
