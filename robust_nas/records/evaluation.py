"""evaluation.json: the outcomes of attacks on each model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field

from robust_nas.records import Record

Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction of images."""

Radius = Annotated[float, Field(ge=0)]
"""A radius in pixel units."""

Count = Annotated[int, Field(ge=0)]
"""A number of things."""


@dataclass(frozen=True, kw_only=True)
class Measured(Record):
    """An accuracy with its 95 % interval, over `count` images."""

    accuracy: Share
    low: Share
    high: Share
    count: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Attack(Measured):
    """The outcome of one attack at one threat model."""

    name: str
    norm: str
    epsilon: Radius
    seconds: float = 0.0

    @property
    def threat(self) -> tuple[str, float]:
        """The norm and the radius."""
        return self.norm, self.epsilon


@dataclass(frozen=True, kw_only=True)
class WorstCase(Measured):
    """The outcome of all attacks: at a threat model, or, without norm and radius, at all of them together."""

    name: str
    norm: str | None = None
    epsilon: Radius | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if (self.norm is None) != (self.epsilon is None):
            raise ValueError("a norm and an epsilon belong together")

    @property
    def threat(self) -> tuple[str, float] | None:
        """The norm and the radius; None for all threat models together."""
        return None if self.norm is None or self.epsilon is None else (self.norm, self.epsilon)


@dataclass(frozen=True, kw_only=True)
class Point(Measured):
    """A point of a curve over the radius."""

    norm: str
    epsilon: Radius


@dataclass(frozen=True, kw_only=True)
class StepPoint(Point):
    """A point of a curve over the steps of one ascent; `accuracy` is of images that no point so far fools.

    Args:
        attack: its name.
        step_size: of every step, in pixel units.
        steps: how many have been taken.
        last: the accuracy at the points after so many steps alone; None if images left the ascent once fooled.
    """

    attack: str
    step_size: Radius
    steps: Count
    last: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Check(Record):
    """A check for gradient masking, at a threat model."""

    check: str
    passed: bool
    detail: str
    norm: str
    epsilon: Radius

    @property
    def threat(self) -> tuple[str, float]:
        """The norm and the radius."""
        return self.norm, self.epsilon


@dataclass(frozen=True, kw_only=True)
class Distances(Record):
    """The distances of the nearest adversarial examples that an attack found, by share of the images."""

    attack: str
    norm: str
    quantiles: dict[str, Radius | None]
    count: Count
    found: Count

    def __post_init__(self) -> None:
        if not all(0 <= float(share) <= 1 for share in self.quantiles):
            raise ValueError("quantiles are of shares of the images")


@dataclass(frozen=True, kw_only=True)
class Attacked(Record):
    """The measurements of one model."""

    clean: Measured
    attacks: Annotated[tuple[Attack, ...], Field(min_length=1)]
    worst_case: WorstCase
    threats: tuple[Attack, ...] = ()
    average: Share | None = None
    confusion: tuple[tuple[Count, ...], ...] | None = None
    curve: tuple[Point, ...] = ()
    steps: tuple[StepPoint, ...] = ()
    masking: tuple[Check, ...] = ()
    distortions: tuple[Distances, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.confusion is not None and any(len(row) != len(self.confusion) for row in self.confusion):
            raise ValueError("confusion must have as many columns as rows")

    @property
    def worst_cases(self) -> tuple[Attack | WorstCase, ...]:
        """The worst case at each threat model, and that over all of them."""
        return *self.threats, self.worst_case


@dataclass(frozen=True, kw_only=True)
class OtherEpoch(Attacked):
    """The measurements of a network as it was after the epoch that was not kept."""

    epoch: str


@dataclass(frozen=True, kw_only=True)
class SavedEvaluations(Record):
    """The file of `Evaluation.save`: the models alone."""

    models: dict[str, Attacked]


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(SavedEvaluations):
    """The file of a run and of `robust-nas attack`."""

    num_images: Count
    split: str = "test"
    data: str | None = None
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    other_epochs: dict[str, OtherEpoch] = field(default_factory=dict)

    def with_model(self, name: str, result: Attacked) -> EvaluationRecord:
        """Return the record with one model more."""
        return replace(self, models={**self.models, name: result})


@dataclass(frozen=True, kw_only=True)
class SavedExamples(Record):
    """Adversarial examples of a model, beside their images (examples-MODEL.safetensors)."""

    model: str
    attack: str
    norm: str
    epsilon: Radius
    labels: tuple[Count, ...]
    predictions: tuple[Count, ...]
    clean_predictions: tuple[Count, ...]

    @property
    def threat(self) -> tuple[str, float]:
        """The norm and the radius."""
        return self.norm, self.epsilon

    def __post_init__(self) -> None:
        if not len(self.labels) == len(self.predictions) == len(self.clean_predictions):
            raise ValueError("there must be two predictions for each label")
