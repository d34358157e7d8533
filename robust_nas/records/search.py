"""search.json: a search's probabilities and its course."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from robust_nas.records import Record
from robust_nas.records.evaluation import Count, Share

Row = tuple[Annotated[float, Field(ge=0)], ...]
"""A number for each operation of an edge, or for each value of a decision."""


@dataclass(frozen=True, kw_only=True)
class Epoch(Record):
    """The state after an epoch of a supernet's search."""

    epoch: Count
    seconds: float | None = None
    concentration: tuple[Row, ...] | None = None
    mixture: tuple[Row, ...] | None = None
    entropy: float | None = None
    validation: dict[str, Share | None] | None = None


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
    operations: tuple[tuple[str, ...], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class SearchRecord(Record):
    """The result of a search. Its rows are of edges, or of decisions."""

    space: dict[str, Any]
    probabilities: Annotated[tuple[tuple[Share, ...], ...], Field(min_length=1)]
    trajectory: tuple[Epoch, ...]
    search: dict[str, Any] = field(default_factory=dict)
    operations: tuple[str, ...] | None = None
    edges: tuple[tuple[int, int], ...] | None = None
    edge_names: tuple[str, ...] | None = None
    decisions: dict[str, tuple[str, ...]] | None = None
    epoch: Count | None = None
    seconds: float | None = None
    hold_sample: bool | None = None
    collapses: tuple[Collapse, ...] = ()
    measured: tuple[str, ...] | None = None
    supernet: SupernetForm | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.space.get("name"), str):
            raise ValueError("space must have a name")
        objective = self.search.get("objective")
        if objective is not None and not (isinstance(objective, dict) and isinstance(objective.get("name"), str)):
            raise ValueError("search.objective must have a name")
        self._check_rows(self.probabilities, "probabilities")
        if self.trajectory:
            self._check_trajectory()

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
        if self.edge_names is not None and len(self.edge_names) != len(self.edges or ()):
            raise ValueError("edge_names must name every edge")
        if self.epoch is not None and self.epoch not in [row.epoch for row in self.trajectory]:
            raise ValueError("epoch must be one of the trajectory's")
        first = self.trajectory[0]
        if first.concentration is None and first.mixture is None:
            raise ValueError("every epoch of the trajectory must have a mixture")
        for row in self.trajectory:
            for name in ("concentration", "mixture", "entropy", "validation"):
                if (getattr(row, name) is None) != (getattr(first, name) is None):
                    raise ValueError(f"every epoch of the trajectory must have {name}, or none")
            for name in ("concentration", "mixture"):
                if (rows := getattr(row, name)) is not None:
                    self._check_rows(rows, f"the trajectory's {name}")
