"""search.json: a search's probabilities and its course."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from robust_nas.records import Record
from robust_nas.records.evaluation import Count, Share
from robust_nas.records.run import Named

Row = tuple[Annotated[float, Field(ge=0)], ...]
"""A number for each operation of an edge, or for each value of a decision."""


@dataclass(frozen=True, kw_only=True)
class Epoch(Record):
    """The state after an epoch of a supernet's search."""

    epoch: Count
    mixture: tuple[Row, ...]
    entropy: float
    validation: dict[str, Share]
    concentration: tuple[Row, ...] | None = None
    seconds: float | None = None

    @property
    def shown(self) -> tuple[Row, ...]:
        """The concentrations of Dirichlet distributions; of other mixtures, the weights."""
        return self.mixture if self.concentration is None else self.concentration


@dataclass(frozen=True, kw_only=True)
class Collapse(Record):
    """An epoch in which a search collapsed, and the one to which it went back."""

    epoch: Count
    reason: str
    back_to: Count


@dataclass(frozen=True, kw_only=True)
class SupernetForm(Record):
    """The structure of a supernet when its weights were saved."""

    partial: Annotated[tuple[int, ...], Field(min_length=1)]
    passing: float
    operations: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ElasticForm(Record):
    """The options of depth and width that an elastic supernet has weights for."""

    sizes: dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class ElasticEpoch(Record):
    """The validation accuracies of an elastic supernet's largest and smallest network after an epoch."""

    epoch: Count
    largest: dict[str, Share]
    smallest: dict[str, Share]
    loss: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Elastic(Record):
    """The training of an elastic supernet; the architectures of its largest and smallest network."""

    largest: str
    smallest: str
    epochs: tuple[ElasticEpoch, ...]


@dataclass(frozen=True, kw_only=True)
class SearchSection(Record):
    """Of the search's settings, what both levels minimise, where it has such."""

    objective: Named | None = None


@dataclass(frozen=True, kw_only=True)
class Resource(Record):
    """The outcome of a limit on the networks' cost, with a note where it was not kept to."""

    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class SearchRecord(Record):
    """The result of a search. Its rows are of edges, or of decisions."""

    space: dict[str, Any]
    probabilities: Annotated[tuple[tuple[Share, ...], ...], Field(min_length=1)]
    trajectory: tuple[Epoch, ...]
    seconds: float
    search: SearchSection
    operations: tuple[str, ...] | None = None
    edges: tuple[tuple[int, int], ...] | None = None
    edge_names: tuple[str, ...] | None = None
    decisions: dict[str, tuple[str, ...]] | None = None
    epoch: Count | None = None
    hold_sample: bool | None = None
    collapses: tuple[Collapse, ...] = ()
    measured: tuple[str, ...] | None = None
    supernet: SupernetForm | ElasticForm | None = None
    elastic: Elastic | None = None
    resource: Resource | None = None

    def __post_init__(self) -> None:
        if not all(isinstance(self.space.get(key), str) for key in ("name", "kind")):
            raise ValueError("space must have a name and a kind")
        self._check_rows(self.probabilities, "probabilities")
        if self.trajectory:
            self._check_trajectory()

    @property
    def end(self) -> Epoch:
        """The epoch whose state a supernet's search ended with; a collapse makes it go back."""
        return next(row for row in self.trajectory if row.epoch == self.epoch)

    def _check_rows(self, rows: tuple[tuple[float, ...], ...], what: str) -> None:
        if self.decisions is not None:
            expected = [len(values) for values in self.decisions.values()]
        elif self.operations is not None and self.edges is not None:
            expected = [len(self.operations)] * len(self.edges)
        else:
            raise ValueError("it must have operations and edges, or decisions")
        if [len(row) for row in rows] != expected:
            raise ValueError(f"{what} must have a number for every operation of every edge, or value of every decision")

    def _check_trajectory(self) -> None:
        if self.edge_names is None or len(self.edge_names) != len(self.edges or ()):
            raise ValueError("edge_names must name every edge")
        if self.epoch not in [row.epoch for row in self.trajectory]:
            raise ValueError("epoch must be one of the trajectory's")
        for row in self.trajectory:
            if (row.concentration is None) != (self.trajectory[0].concentration is None):
                raise ValueError("every epoch of the trajectory must have concentration, or none")
            for name, rows in (("mixture", row.mixture), ("concentration", row.concentration)):
                if rows is not None:
                    self._check_rows(rows, f"the trajectory's {name}")
