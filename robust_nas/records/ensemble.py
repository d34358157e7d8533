"""ensemble.json: the weights of the trained networks in an ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from robust_nas.records import Record
from robust_nas.records.evaluation import Count, Radius

Weights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]
Scales = tuple[Annotated[float, Field(gt=0)], ...]


def check_weights(weights: Weights, scales: Scales, members: int) -> None:
    """Raise ValueError unless there is a weight, and a scale, for each member, and a weight above 0."""
    if not len(weights) == len(scales) == members:
        raise ValueError(f"weights and scales must be as many as the members, {members}")
    if not any(weights):
        raise ValueError("a weight must be above 0")


@dataclass(frozen=True, kw_only=True)
class SavedEnsemble(Record):
    """config.json of a saved ensemble: how each member is made, and its weight."""

    members: tuple[dict[str, Any], ...]
    weights: Weights
    scales: Scales
    sha256: str

    def __post_init__(self) -> None:
        check_weights(self.weights, self.scales, len(self.members))


@dataclass(frozen=True, kw_only=True)
class Weighting(Record):
    """The weights and scales of members."""

    weights: Weights
    scales: Scales


@dataclass(frozen=True, kw_only=True)
class EnsembleRecord(Weighting):
    """The weights of the fitted ensemble, and what they were fitted on."""

    name: str
    members: tuple[str, ...]
    uniform: Weighting
    epsilon: Radius
    objective: float
    least_objective: float | None
    uniform_objective: float
    best_single: str
    num_validation: Count
    seconds: float

    def __post_init__(self) -> None:
        check_weights(self.weights, self.scales, len(self.members))
        check_weights(self.uniform.weights, self.uniform.scales, len(self.members))
