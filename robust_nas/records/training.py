"""train.json: the trained networks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from robust_nas.records import Record
from robust_nas.records.evaluation import Count, Share


@dataclass(frozen=True, kw_only=True)
class Course(Record):
    """The course of a training, with accuracies on validation images.

    Beside frozen networks of an ensemble, `best`, `last` and `beside`, of the epoch that is kept, are of all together.
    """

    epochs: Count
    kept: Literal["best", "last"]
    best_epoch: Count
    last_epoch: Count
    validation: dict[str, Share]
    best: dict[str, Share]
    last: dict[str, Share]
    collapsed: bool
    seconds: float
    beside: dict[str, Share] | None = None


@dataclass(frozen=True, kw_only=True)
class Trained(Record):
    """A trained network. A joined run has no epochs, of which one is kept, and an origin."""

    name: str
    architecture: str
    validation: dict[str, Share]
    method: str
    parameters: Count
    multiply_adds: Count
    epochs: Count
    seconds: float
    kept: Literal["best", "last"] | None = None
    best_epoch: Count | None = None
    last_epoch: Count | None = None
    best: dict[str, Share] | None = None
    last: dict[str, Share] | None = None
    collapsed: bool = False
    beside: dict[str, Share] | None = None
    from_: Annotated[str | None, Field(alias="from")] = None

    def of_the_kept(self) -> Trained:
        """Return the record without the epochs: of the kept weights alone."""
        return replace(self, kept=None, best_epoch=None, last_epoch=None, best=None, last=None, beside=None)

    def __post_init__(self) -> None:
        if not self.validation.keys() >= {"clean", "robust"}:
            raise ValueError("validation must have the accuracies clean and robust")
        other = (self.last_epoch, self.best) if self.kept == "last" else (self.last,)
        if (self.kept or self.best_epoch or self.last_epoch) and None in (self.best_epoch, *other):
            raise ValueError(
                "best_epoch, last_epoch, best and last must say which epoch was kept, and what the other is"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingRecord(Record):
    """All trained networks of a run, in their order."""

    models: Annotated[tuple[Trained, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        names = [model.name for model in self.models]
        if len({*names}) < len(names):
            raise ValueError("two models have one name")
