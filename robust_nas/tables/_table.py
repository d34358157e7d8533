"""Questions to a robust-accuracy table: `query`, `top`, `rank`, `pareto`, `query_many`, `dataframe`.

The rows are in arrays [columns, classes] (`_arrays`): a column is one way to train and to measure (`Column`), a class
is a set of architectures that NAS-Bench-201 counts as one (`Architecture.canonical`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from robust_nas.architectures.cell import OPERATIONS, Architecture
from robust_nas.core import catalogue
from robust_nas.core.errors import InputError, suggest
from robust_nas.tables import costs
from robust_nas.tables._arrays import Column, read_arrays
from robust_nas.tables._noise import NoiseFloor, measured_noise
from robust_nas.tables._recipes import Settings
from robust_nas.tables._schema import CLASSES_KEY, INDEX_KEY
from robust_nas.tables._selection import Selection
from robust_nas.tables._store import place, read

if TYPE_CHECKING:
    import pandas
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_CELL = re.compile(r"\+".join("".join([r"\|"] + [rf"(\w+)~{i}\|" for i in range(node)]) for node in range(1, 4)))
_DIGIT = {name: str(digit) for digit, name in enumerate(OPERATIONS)}
_NUM_CELLS = len(OPERATIONS) ** 6


class ArchitectureNotInTable(InputError):
    """The architecture, and every one equivalent to it, was not measured; the message names the nearest that were."""


class Result(NamedTuple):
    """The entry of a class of architectures in one column. `float(result)` is the mean accuracy.

    Args:
        architecture: the class's architecture that was trained, in the string form.
        published_index: its place in the source's numbering, or None if the source has none.
        column: the training and the measurement.
        mean: accuracy, a fraction in [0, 1]; the mean over trainings.
        std: standard deviation over trainings (n - 1), or None if the table does not know it.
        num_seeds: number of trainings in the mean, or None if the source does not say.
        num_images: number of images of each accuracy, or None if the source does not say.
        rank: 1 for the most accurate class in the column; equal accuracies share the better rank.
        num_ranked: number of classes in the column.
        noise_floor: the standard deviation by which `mean` differs by chance (`Table.noise_floor`), or None.
    """

    architecture: str
    published_index: int | None
    column: Column
    mean: float
    std: float | None
    num_seeds: int | None
    num_images: int | None
    rank: int
    num_ranked: int
    noise_floor: float | None

    @property
    def percentile(self) -> float:
        """The share of the column's classes, in percent, that are not more accurate; 100 for the best."""
        return 100 * (self.num_ranked - self.rank + 1) / self.num_ranked

    def __float__(self) -> float:
        return self.mean


def load(source: Path | str) -> Table:
    """Open a published table by its name, or the folder or file of one's own.

    Raises:
        InputError: if there is none, it is not on this machine yet, or it cannot be read.
    """
    published = catalogue.files("tables")
    if not isinstance(source, str | Path) or not str(source):
        raise InputError(f"A table is given by its name, or as a folder or file, but got {source!r}.")
    if str(source) in published:
        name = str(source)
        if not place(name).is_file():
            from robust_nas.tables import cards

            raise InputError(f"The table {name} is not on this machine; {cards.load(name).how_to_get()}.")
        return Table(place(name), name)
    if not Path(source).exists():
        raise InputError(
            f"There is no table '{source}', neither a published one nor a folder. {suggest(str(source), published)}"
        )
    return Table(Path(source))


class Table:
    """A robust-accuracy table in memory; `rn.tables.load` opens one.

    Criteria select a `Column` by the fields of that class: `dataset="cifar10", attack="pgd", epsilon="8/255"`. They
    must leave exactly one: there are no defaults. A column's label may stand for some of them: `"pgd@8/255"`. `recipe`
    is a training method's name, or a recipe's (`recipe_name`); settings of own runs, `train.epochs`, are criteria too.

    The labels `flops` and `params` stand for costs, in millions (`tables.costs`); `where=["flops<50"]` is a limit.

    An architecture may be given in the string or digits form, as an `Architecture`, or by its place in the source's
    numbering; any equivalent one finds the same class.

    Args:
        path: the table's file, or its folder of part files.
        name: its name in messages.

    Raises:
        InputError: if there is no table, or a file is damaged or of a newer version.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or str(path)
        arrays = read_arrays(path)
        self.columns: tuple[Column, ...] = tuple(arrays.columns)
        """The columns' trainings and measurements, in the order of the rows."""

        self._arrays = arrays
        self._canonical, self._means = arrays.canonical, arrays.means
        self._selection = Selection(self.name, self.columns, lambda: self._settings)
        self._class_of_text: dict[str, int] = {}
        self._floors: dict[int, NoiseFloor | None] = {}
        self._costs: dict[tuple[str, str, str], Floats] = {}
        self._of_number: dict[int, Floats] = {}

    def __repr__(self) -> str:
        return f"Table({self.name!r}, {len(self)} classes, {len(self.columns)} columns)"

    def __len__(self) -> int:
        """Return the number of classes of architectures."""
        return len(self._canonical)

    # What there is

    @cached_property
    def caveats(self) -> tuple[str, ...]:
        """The caveats of a published table's card; nothing for others."""
        from robust_nas.tables import cards

        return cards.load(self.name).caveats if self.name in cards.names() else ()

    @cached_property
    def architectures(self) -> list[str]:
        """The architecture that was trained of each class, in the string form; the order of `values`."""
        return [self._arrays.architectures[form] for form in self._arrays.architecture_of.tolist()]

    @cached_property
    def index(self) -> list[str]:
        """The digits forms of all architectures in the source's own numbering, from 0 on; empty if it has none."""
        return self._arrays.metadata.get(INDEX_KEY, b"").decode().split()

    @property
    def canonical(self) -> list[str]:
        """Each class's canonical form, in the order of `values`."""
        return list(self._canonical)

    @cached_property
    def functions(self) -> list[str]:
        """Each class's simplified form (`Architecture.function`), in the order of `values`."""
        names = [self._arrays.functions[code] for code in self._arrays.function_of.tolist()]
        # A class whose function is not known is alone in its own.
        pairs = zip(names, self._canonical, strict=True)
        return [canonical if name is None else name for name, canonical in pairs]

    def datasets(self) -> list[str]:
        """Return the data sets that the table has, in its order."""
        return list(dict.fromkeys(column.dataset for column in self.columns))

    def select(self, label: str | None = None, /, **criteria: Any) -> list[Column]:
        """Return the columns that fit a label and criteria, in the table's order.

        Raises:
            InputError: for an unknown criterion or value, or if no column fits.
        """
        return [self.columns[place] for place in self._selection.places(label, criteria)]

    def column(self, label: str | None = None, /, **criteria: Any) -> Column:
        """Return the one column that fits.

        Raises:
            InputError: if none fits, or several do; the message says in what they differ.
        """
        return self.columns[self._selection.place(label, criteria)]

    # Answers

    def query(self, architecture: str | int | Architecture, label: str | None = None, /, **criteria: Any) -> Result:
        """Return an architecture's entry in one column.

        Raises:
            ArchitectureNotInTable: if neither it nor an equivalent one was measured in that column.
            InputError: if the architecture cannot be read, or the criteria do not leave one column.
        """
        return self._result(self._selection.place(label, criteria), self._class(architecture), architecture)

    def results(
        self, architecture: str | int | Architecture, label: str | None = None, /, **criteria: Any
    ) -> list[Result]:
        """Return an architecture's entries in every column that fits.

        Raises:
            ArchitectureNotInTable: if neither it nor an equivalent one was measured in any of them.
            InputError: if the architecture cannot be read, or no column fits.
        """
        place = self._class(architecture)
        fitting = self._selection.places(label, criteria)
        columns = [column for column in fitting if not np.isnan(self._means[column, place])]
        if not columns:
            raise self._not_in_table(architecture, fitting)
        return [self._result(column, place, architecture) for column in columns]

    def query_many(
        self, architectures: Sequence[str] | Sequence[int] | NDArray[Any], label: str | None = None, /, **criteria: Any
    ) -> Floats:
        """Return the mean accuracy of each of many architectures in one column, [N].

        Args:
            architectures: strings or digits forms, or an array of places in the source's numbering (the quickest).

        Raises:
            ArchitectureNotInTable: if one of them is not in the column.
            InputError: as `query`.
        """
        column = self._selection.place(label, criteria)
        given = np.asarray(architectures)
        if given.ndim != 1:
            raise InputError(f"query_many takes a list of architectures, but got an array of shape {given.shape}.")
        if given.dtype.kind in "iu":
            found = self._of_numbers(column, given)
        else:
            found = self._means[column, [self._class(text) for text in given.tolist()]]
        if np.isnan(found.sum()):
            raise self._not_in_table(given[int(np.flatnonzero(np.isnan(found))[0])], [column])
        return found

    def values(self, label: str | None = None, /, **criteria: Any) -> Floats:
        """Return the mean accuracy of every class in one column, [classes]; NaN where a class was not measured.

        For the labels `flops` and `params`: the cost of every class's architecture, in millions; NaN if not known.
        """
        if label in costs.COSTS:
            return self._cost_values(criteria)[costs.COSTS.index(label)].copy()
        return self._means[self._selection.place(label, criteria)].copy()

    def stds(self, label: str | None = None, /, **criteria: Any) -> Floats:
        """Return the standard deviation over trainings of every class in one column, [classes]; NaN if not known."""
        return self._arrays.stds[self._selection.place(label, criteria)].copy()

    def trainings(self, label: str | None = None, /, **criteria: Any) -> Floats:
        """Return over how many trainings every class's mean is in one column, [classes]; NaN if not known."""
        return self._arrays.trainings[self._selection.place(label, criteria)].astype(np.float64)

    def cost(self, architecture: str | int | Architecture, /, **criteria: Any) -> costs.Cost:
        """Return the cost of an architecture's class, as it was trained, in millions; NaN is not known.

        Raises:
            ArchitectureNotInTable: if neither it nor an equivalent one was measured.
            InputError: if the architecture cannot be read, or columns fit whose networks have several costs.
        """
        flops, params = self._cost_values(criteria)[:, self._class(architecture)].tolist()
        return costs.Cost(flops, params)

    def top(
        self, count: int = 10, label: str | None = None, /, *, where: Sequence[str] = (), **criteria: Any
    ) -> list[Result]:
        """Return the `count` most accurate classes of one column, best first; their ranks are among all classes.

        Args:
            count: number of classes.
            label: the column's label.
            where: limits on the cost: `["flops<50", "params<=0.5"]`, in millions.
            criteria: the column.

        Raises:
            InputError: if the criteria do not leave one column, or no class is within the limits.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"top takes a number of classes, at least 1, and then a label, but got {count!r}.")
        column = self._selection.place(label, criteria)
        means = (
            np.where(self.within(where, **asdict(self.columns[column])), self._means[column], np.nan)
            if where
            else (self._means[column])
        )
        num_known = int(np.count_nonzero(means == means)) if where else self._num_ranked[column]
        if not num_known:
            raise self._beyond(where, column)
        order = np.argsort(-means, kind="stable")[: min(count, num_known)]
        return [self._result(column, int(place)) for place in order]

    def within(self, where: Sequence[str], /, **criteria: Any) -> NDArray[np.bool_]:
        """Return which classes are within limits on the cost, such as "flops<50", [classes]."""
        found = np.ones(len(self), dtype=bool)
        for limit in costs.conditions(where):
            found &= limit.holds(self.values(limit.name, **criteria))
        return found

    def rank(self, architecture: str | int | Architecture, label: str | None = None, /, **criteria: Any) -> int:
        """Return the architecture's rank in one column, 1 for the most accurate."""
        return self.query(architecture, label, **criteria).rank

    def pareto(self, labels: Sequence[str], *, where: Sequence[str] = (), **criteria: Any) -> list[tuple[Result, ...]]:
        """Return the classes that no other class beats in every one of several columns, best in the first one first.

        A class is on the front if no other is at least as accurate in all columns and more accurate in one. Classes
        that are not in all of the columns are left out. Each tuple is one class: its results in the order of `labels`.
        Of `flops` and `params`, of which fewer are better, there are no results: `cost` has them.

        Args:
            labels: the columns' labels, one of them at least of accuracies.
            where: limits on the cost: `["flops<50"]`, in millions.
            criteria: what else tells the columns from others.

        Raises:
            InputError: if fewer than two labels are given, or one of them does not leave one column.
        """
        if isinstance(labels, str) or len(labels) < 2:
            given = labels if isinstance(labels, str) else " and ".join(labels)
            raise InputError(
                f"A Pareto front needs at least two columns, such as clean and pgd@8/255, but got {given or 'none'}."
            )
        columns = [self._selection.place(label, criteria) for label in labels if label not in costs.COSTS]
        if not columns:
            raise InputError("A Pareto front needs a column of accuracies, such as pgd@8/255, beside flops and params.")
        of = asdict(self.columns[columns[0]])
        accuracies = iter(self._means[columns])
        values = np.array([-self.values(label, **of) if label in costs.COSTS else next(accuracies) for label in labels])
        if where:
            values[:, ~self.within(where, **of)] = np.nan
            if np.isnan(values).any(axis=0).all():
                raise self._beyond(where, columns[0])
        order = sorted(non_dominated(values.T), key=lambda place: tuple(-values[:, place]))
        return [tuple(self._result(column, int(place)) for column in columns) for place in order]

    def noise_floor(self, label: str | None = None, /, **criteria: Any) -> NoiseFloor | None:
        """Return by how much the means of one column differ by chance, or None if the table cannot tell.

        From the spread over seeds where every training is a row, divided by the root of their number; else from classes
        that compute the same functions and were trained independently.
        """
        return self._floor(self._selection.place(label, criteria))

    def rows(self, *, where: Sequence[str] = (), **filters: Any) -> pa.Table:
        """Return the rows in long form, with their costs, and with `digits` and `published_index`.

        Args:
            where: limits on the cost: `["flops<50"]`, in millions.
            filters: those of `tables.read`.

        Raises:
            InputError: if no row is left.
        """
        rows = costs.completed(read(self.path, **filters), self._recorded, self.index)
        for limit in costs.conditions(where):
            held = limit.holds(np.array(rows[limit.name].to_pylist(), dtype=np.float64))
            rows = rows.take(np.flatnonzero(held).tolist())
        if not len(rows):
            wanted = " ".join([*(f"{name}={value}" for name, value in filters.items()), *where])
            raise InputError(
                f"No row of the table {self.name} has {wanted}; 'robust-nas table info {self.name}' says what it has."
            )
        return rows

    def dataframe(self, *, where: Sequence[str] = (), **filters: Any) -> pandas.DataFrame:
        """Return the rows (`rows`) as a pandas data frame, for everything else."""
        return self.rows(where=where, **filters).to_pandas()

    # Recipes and costs

    @cached_property
    def _settings(self) -> Settings:
        return Settings(self.path)

    @cached_property
    def _recorded(self) -> costs.Recorded:
        return costs.Recorded(self.path)

    def recipe_name(self, column: Column) -> str | None:
        """Return the name by which the recipe of a column of own runs goes in this table; None for other software's."""
        return self._selection.recipe_name(column)

    @cached_property
    def evaluation_names(self) -> dict[str | None, str]:
        """For each evaluation's hash, the settings in which it differs from the table's others; "" for a single one."""
        return self._selection.evaluation_names()

    def _cost_values(self, criteria: Mapping[str, Any]) -> Floats:
        """Return the costs of all classes under the one training that fits, [2, classes]."""
        places = {
            (column.space, column.skeleton, column.dataset)
            for column in map(self.columns.__getitem__, self._selection.places(None, criteria))
        }
        if len(places) > 1:
            differing = ", ".join(
                f"{name} ({', '.join(sorted(values))})"
                for name, values in zip(
                    ("space", "skeleton", "dataset"), map(set, zip(*places, strict=True)), strict=True
                )
                if len(values) > 1
            )
            raise InputError(f"The costs of the networks of the table {self.name} depend on {differing}; say which.")
        (place,) = places
        if place not in self._costs:
            self._costs[place] = costs.values(self._recorded, place, self._canonical, self.architectures)
        return self._costs[place]

    def _beyond(self, where: Sequence[str], column: int) -> InputError:
        """Return the error that says that no class of a column is within limits, and what there is."""
        of, limits = asdict(self.columns[column]), costs.conditions(where)
        said = []
        for name in dict.fromkeys(limit.name for limit in limits):
            values = self.values(name, **of)[~np.isnan(self._means[column])]
            known = values[~np.isnan(values)]
            said.append(
                f"{name} from {known.min():.4g} to {known.max():.4g}" if len(known) else f"no {name} that are known"
            )
        return InputError(
            f"No class of the table {self.name} has {' and '.join(map(str, limits))}: its networks have "
            f"{' and '.join(said)} (in millions)."
        )

    # Classes

    def _class(self, architecture: str | int | Architecture) -> int:
        """Return the place of the architecture's class."""
        if isinstance(architecture, Architecture):
            architecture = str(architecture)
        elif isinstance(architecture, int | np.integer) and not isinstance(architecture, bool):
            architecture = self._digits_of_index(int(architecture))
        elif not isinstance(architecture, str):
            raise InputError(f"An architecture is a string, a number or an Architecture, but got {architecture!r}.")
        try:
            return self._class_of_text[architecture]
        except KeyError:
            pass
        text = architecture.strip()
        if self.index and text.isascii() and text.isdecimal() and len(text) < 6:
            text = self._digits_of_index(int(text))
        place = -1
        if self.index:
            if (match := _CELL.fullmatch(text)) and set(match.groups()) <= set(_DIGIT):
                text = "".join(_DIGIT[name] for name in match.groups())
            if len(text) == 6 and text.isascii() and text.isdigit() and max(text) < "5":
                place = int(self._class_of_cell[int(text, 5)])
        if place < 0:
            # First by its own words: a space of the user's own may have operations that we cannot read.
            place = self._class_of_form.get(text, -1)
        if place < 0:
            place = self._class_of_canonical.get(Architecture.parse(text).canonical, -1)
        if place < 0:
            raise self._not_in_table(architecture, range(len(self.columns)))
        if len(self._class_of_text) < 100_000:
            self._class_of_text[architecture] = place
        return place

    def _of_numbers(self, column: int, numbers: Ints) -> Floats:
        """Return the mean accuracy in one column of architectures in the source's numbering, NaN if there is none."""
        if not self.index:
            raise InputError(f"The table {self.name} does not number architectures; give their strings.")
        if column not in self._of_number:
            classes = self._class_of_index
            self._of_number[column] = np.where(classes < 0, np.nan, self._means[column, classes])
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self.index)):
            self._digits_of_index(int(numbers[(numbers < 0) | (numbers >= len(self.index))][0]))
        return self._of_number[column].take(numbers)

    def _digits_of_index(self, index: int) -> str:
        if not self.index:
            raise InputError(f"The table {self.name} does not number architectures; give {index} as a string.")
        if not 0 <= index < len(self.index):
            raise ArchitectureNotInTable(
                f"The table {self.name} numbers architectures from 0 to {len(self.index) - 1}, but got {index}; "
                "a digits form has six digits."
            )
        return self.index[index]

    @cached_property
    def _index_of_class(self) -> Ints:
        """The representative's place in the source's numbering, for each class; -1 if there is none."""
        found = np.full(len(self), -1)
        classes = self._class_of_index
        found[classes[::-1]] = np.arange(len(classes))[::-1]
        return found

    @cached_property
    def _class_of_form(self) -> dict[str, int]:
        return {architecture: place for place, architecture in enumerate(self.architectures)}

    @cached_property
    def _class_of_canonical(self) -> dict[str, int]:
        return {canonical: place for place, canonical in enumerate(self._canonical)}

    @cached_property
    def _class_of_index(self) -> Ints:
        """The class of every architecture that the source numbers; -1 for one that is not in the table."""
        return np.fromstring(self._arrays.metadata[CLASSES_KEY].decode(), dtype=np.int64, sep=" ")

    @cached_property
    def _class_of_cell(self) -> Ints:
        """The class of every digits form, read as a number of base 5; -1 for one that is not in the table."""
        found = np.full(_NUM_CELLS, -1)
        digits = np.frombuffer("".join(self.index).encode(), np.uint8).reshape(-1, 6) - ord("0")
        found[digits @ 5 ** np.arange(5, -1, -1)] = self._class_of_index
        return found

    def _not_in_table(self, architecture: str | int | Architecture, columns: Iterable[int]) -> ArchitectureNotInTable:
        """Return the error, which names the classes with the fewest other operations that are in the columns."""
        if isinstance(architecture, int | np.integer):
            architecture = self._digits_of_index(int(architecture))
        wanted = architecture if isinstance(architecture, Architecture) else Architecture.parse(str(architecture))
        known = ~np.isnan(self._means[list(columns)]).all(axis=0)

        def distance(place: int) -> tuple[int, str]:
            text = self.architectures[place]
            operations = [part.partition("~")[0] for part in re.findall(r"\w+~\d+", text)]
            if len(operations) != len(wanted.operations):
                return len(wanted.operations) + 1, text
            return sum(a != b for a, b in zip(operations, wanted.operations, strict=True)), text

        nearest = sorted(map(distance, np.flatnonzero(known).tolist()))[:3]
        return ArchitectureNotInTable(
            f"The table {self.name} has neither {wanted} nor an equivalent architecture"
            f"{'' if known.all() else ' in that column'}. Nearest: "
            f"{', '.join(f'{text} ({far} other operations)' for far, text in nearest)}."
        )

    # Numbers

    def _result(self, column: int, place: int, asked: str | int | Architecture | None = None) -> Result:
        mean = self._means.item(column, place)
        if mean != mean:
            raise self._not_in_table(asked if asked is not None else self.architectures[place], [column])
        arrays, floor = self._arrays, self._floor(column)
        return Result(
            arrays.architectures[arrays.architecture_of.item(place)],
            self._index_of_class.item(place) if self.index else None,
            self.columns[column],
            mean,
            _or_none(arrays.stds.item(column, place)),
            _whole(arrays.trainings.item(column, place)),
            _whole(arrays.images.item(column, place)),
            1 + int(np.count_nonzero(self._means[column] > mean)),
            self._num_ranked[column],
            None if floor is None else floor.std,
        )

    @cached_property
    def _num_ranked(self) -> list[int]:
        """The number of classes in each column."""
        return (~np.isnan(self._means)).sum(axis=1).tolist()

    def _floor(self, column: int) -> NoiseFloor | None:
        if column not in self._floors:
            self._floors[column] = measured_noise(self._arrays, column)
        return self._floors[column]


def non_dominated(values: Floats) -> list[int]:
    """Return the places of the points [N, objectives] that no other point dominates; all objectives are maximised.

    Points with a NaN are left out. Equal points are all kept.
    """
    places = np.flatnonzero(~np.isnan(values).any(axis=1))
    # Whoever dominates a point comes before it in this order, and is not dominated by what is dropped on the way.
    places = places[np.lexsort(-values[places].T[::-1])]
    front: list[int] = []
    for point in places.tolist():
        better = values[front] if front else np.empty((0, values.shape[1]))
        dominates = (better >= values[point]).all(axis=1) & (better > values[point]).any(axis=1)
        if not dominates.any():
            front.append(point)
    return front


def _or_none(value: float) -> float | None:
    return None if value != value else value


def _whole(value: float) -> int | None:
    return None if value != value else int(value)
