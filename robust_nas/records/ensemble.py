"""ensemble.json: the weights of the trained networks in an ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from robust_nas.records import Record
from robust_nas.records.evaluation import Count, Radius

Weights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]
Scales = tuple[Annotated[float, Field(gt=0)], ...]


def check_weights(weights: Weights, scales: Scales | None, members: int) -> None:
    """Raise ValueError unless there is a weight, and a scale, for each member, and a weight above 0."""
    if len(weights) != members or (scales is not None and len(scales) != members):
        raise ValueError(f"weights and scales must be as many as the members, {members}")
    if not any(weights):
        raise ValueError("a weight must be above 0")


@dataclass(frozen=True, kw_only=True)
class SavedEnsemble(Record):
    """config.json of a saved ensemble: how each member is made, and its weight."""

    members: tuple[dict[str, Any] | None, ...]
    weights: Weights
    scales: Scales
    sha256: str

    def __post_init__(self) -> None:
        check_weights(self.weights, self.scales, len(self.members))


@dataclass(frozen=True, kw_only=True)
class Uniform(Record):
    """The weights of the uniform average."""

    weights: Weights
    scales: Scales


@dataclass(frozen=True, kw_only=True)
class EnsembleRecord(Record):
    """The weights of the fitted ensemble, and what they were fitted on."""

    members: tuple[str, ...]
    weights: Weights
    num_validation: Count
    scales: Scales | None = None
    uniform: Uniform | None = None
    name: str | None = None
    best_single: str | None = None
    epsilon: Radius | None = None
    objective: float | None = None
    uniform_objective: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        check_weights(self.weights, self.scales, len(self.members))
        if self.uniform is not None:
            check_weights(self.uniform.weights, self.uniform.scales, len(self.members))
