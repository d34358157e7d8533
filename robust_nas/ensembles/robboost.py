"""RobBoost: ensemble weights that minimise the hinge of the certified margins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from robust_nas.bounds import LinearMargins
from robust_nas.ensembles import EnsembleWeights
from robust_nas.ensembles._objective import MarginHinge
from robust_nas.errors import InputError
from robust_nas.seeds import generator_at
from robust_nas.threat import ThreatModel

Order = Literal["cyclic", "random"]


@dataclass(frozen=True, kw_only=True)
class RobBoost:
    """Coordinate descent on the simplex (Zhang et al. 2019, arXiv:1910.14655, section 3).

    From w = 1/T, take one member t after the other: w(q) = q e_t + (1 - q) v, with v the other members' weights scaled
    to sum 1, at the q in [0, 1] that minimises the mean of max(1 - M, 0) over images and wrong classes. The objective
    never rises. It is convex, but not smooth, so that coordinate descent can stop above its minimum.

    Three corrections to the paper: images on which every single member has negative margins are kept, because
    opposite slopes cancel in the joint bound; a member of weight 1 does not divide by zero; and the sign in
    equation 14 does not arise, since the step works on the objective itself.

    Args:
        sweeps: passes over all members, 2 to 3 in the paper; fewer are made once a pass changes nothing.
        order: "cyclic", or "random": another order in every sweep.
        seed: of the random orders.

    Raises:
        InputError: for an unknown `order`, or `sweeps` below 1.
    """

    sweeps: int = 3
    order: Order = "cyclic"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise InputError(f"RobBoost.order must be one of {', '.join(get_args(Order))}, but got '{self.order}'.")
        if self.sweeps < 1:
            raise InputError(f"RobBoost.sweeps must be at least 1, but got {self.sweeps}.")

    def fit(self, bounds: Sequence[LinearMargins], threat: ThreatModel) -> EnsembleWeights:
        """Return the weights for members with margins bounded by `bounds`, one per member on the same images.

        Raises:
            InputError: for no members, members bounded on different images, or bounds that are not finite.
        """
        hinge = MarginHinge.of(bounds, threat)
        num_members = hinge.num_members
        weights = [1 / num_members] * num_members
        objectives = [hinge.at(weights)]
        for sweep in range(self.sweeps if num_members > 1 else 0):
            before = objectives[-1]
            for t in self._members(num_members, sweep):
                vertex, others = _one_hot(t, num_members), _others(weights, t)
                q, objective = hinge.on_segment(others, vertex).minimum()
                candidate = _on_simplex([q * e + (1 - q) * v for e, v in zip(vertex, others, strict=True)])
                # Compared at the weights as they will be stored, so that rounding cannot make the objective rise.
                if objective < objectives[-1] and (objective := hinge.at(candidate)) < objectives[-1]:
                    weights = candidate
                objectives.append(min(objective, objectives[-1]))
            if objectives[-1] == before:
                break
        return hinge.result(weights, objectives)

    def _members(self, num_members: int, sweep: int) -> list[int]:
        if self.order == "cyclic":
            return list(range(num_members))
        generator = generator_at("cpu", self.seed, "robboost", sweep)
        return [int(t) for t in torch.randperm(num_members, generator=generator)]


def _one_hot(t: int, num_members: int) -> list[float]:
    return [float(s == t) for s in range(num_members)]


def _others(weights: Sequence[float], t: int) -> list[float]:
    """Return the weights of all members but t, scaled to sum 1; equal ones where t has all the weight."""
    rest = [0.0 if s == t else weight for s, weight in enumerate(weights)]
    if not sum(rest) > 0:
        rest = [float(s != t) for s in range(len(weights))]
    return _on_simplex(rest)


def _on_simplex(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [weight / total for weight in weights]
