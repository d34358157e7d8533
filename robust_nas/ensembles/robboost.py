"""RobBoost: ensemble weights that minimise the hinge of the certified margins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from robust_nas.bounds import LinearMargins
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import generator_at
from robust_nas.ensembles import EnsembleWeights
from robust_nas.ensembles._cutting_planes import CuttingPlanes, Minimum
from robust_nas.ensembles._objective import Array, Hinge, MarginHinge
from robust_nas.ensembles._selection import Limits, Solver, eliminate
from robust_nas.threat import ThreatModel

Order = Literal["cyclic", "random"]
Method = Literal["cutting_planes", "coordinate"]


@dataclass(frozen=True, kw_only=True)
class RobBoost:
    """The weights with the least hinge of the ensemble's certified margins (Zhang et al. 2019, arXiv:1910.14655).

    The margin M of an image over a wrong class is the least of the members' joint linear bound over the allowed
    changes. Its hinge max(1 - M, 0) is convex in the weights.

    The solver "cutting_planes" finds the least objective up to `tolerance`, and proves it: the result has a lower
    bound of the objective. "coordinate" is coordinate descent as published (section 3): from w = 1/T, take one member
    t after the other: w(q) = q e_t + (1 - q) v, with v the other members' weights scaled to sum 1, at the q in [0, 1]
    that minimises the objective. It never rises, but is not smooth, so that coordinate descent can stop above the
    minimum.

    Three corrections to the paper: images on which every single member has negative margins are kept, because
    opposite slopes cancel in the joint bound; a member of weight 1 does not divide by zero; and the sign in
    equation 14 does not arise, since the step works on the objective itself.

    With a limit on the members, their parameters or their multiply-adds, members are removed by backward elimination
    on the objective: of all that have a weight, the one without which the others, fitted again, do best.

    Args:
        hinge: "target", the mean of max(1 - M, 0) over images and wrong classes, as published, or "example", the mean
            over images of the largest over the wrong classes.
        solver: "cutting_planes" or "coordinate".
        tolerance: of the cutting planes: the objective is at most this above its minimum, for objectives above 1 as a
            share of them.
        planes: of the cutting planes: evaluations of the objective, at most, each time weights are fitted.
        sweeps: of coordinate descent: passes over all members, 2 to 3 in the paper; fewer are made once a pass changes
            nothing.
        order: of coordinate descent: "cyclic", or "random": another order in every sweep.
        seed: of the random orders.
        members: with weights above 0, at most.
        parameters: of the members with weights above 0, at most in sum.
        multiply_adds: of the members with weights above 0, at most in sum.

    Raises:
        InputError: for an unknown `hinge`, `solver` or `order`, numbers and limits below 1, or a tolerance below 1e-9.
    """

    hinge: Hinge = "target"
    solver: Method = "cutting_planes"
    tolerance: float = 1e-7
    planes: int = 200
    sweeps: int = 3
    order: Order = "cyclic"
    seed: int = 0
    members: int | None = None
    parameters: int | None = None
    multiply_adds: int | None = None

    def __post_init__(self) -> None:
        for name, choices in {"hinge": Hinge, "solver": Method, "order": Order}.items():
            if getattr(self, name) not in get_args(choices):
                raise InputError(
                    f"RobBoost.{name} must be one of {', '.join(get_args(choices))}, but got '{getattr(self, name)}'."
                )
        for name in ("planes", "sweeps", "members", "parameters", "multiply_adds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"RobBoost.{name} must be at least 1, but got {value}.")
        # The linear programmes' own tolerance is 1e-10.
        if not self.tolerance >= 1e-9:
            raise InputError(f"RobBoost.tolerance must be at least 1e-9, but got {self.tolerance}.")

    def fit(
        self,
        bounds: Sequence[LinearMargins],
        threat: ThreatModel,
        *,
        parameters: Sequence[int] | None = None,
        multiply_adds: Sequence[int] | None = None,
    ) -> EnsembleWeights:
        """Return the weights for members with margins bounded by `bounds`, one per member on the same images.

        Args:
            bounds: the members' bounds.
            threat: the threat model that they hold for.
            parameters: of every member; needed where they are limited.
            multiply_adds: of every member for one image; needed where they are limited.

        Raises:
            InputError: for no members, members bounded on different images, bounds that are not finite, a limit on
                what is not given for every member, or limits that no member is within.
        """
        limits = self._limits(len(bounds), {"parameters": parameters, "multiply_adds": multiply_adds})
        objective = MarginHinge.of(bounds, threat, hinge=self.hinge)
        solver: Solver = (
            CuttingPlanes(objective, self.tolerance, self.planes)
            if self.solver == "cutting_planes"
            else _CoordinateDescent(objective, self.sweeps, self.order, self.seed)
        )
        best = eliminate(solver, len(bounds), limits)
        return objective.result(best.weights, best.objectives, best.lower)

    def _limits(self, num_members: int, amounts: dict[str, Sequence[int] | None]) -> Limits:
        limits = {} if self.members is None else {"members": (self.members, [1] * num_members)}
        for name, each in amounts.items():
            limit = getattr(self, name)
            if limit is None:
                continue
            if each is None or len(each) != num_members:
                raise InputError(
                    f"RobBoost.{name} limits what it is not told: give `fit` the {name} of every member, "
                    f"but got {None if each is None else len(each)} for {num_members}."
                )
            limits[name] = (limit, list(each))
        return limits


class _CoordinateDescent:
    """Minimises the objective over the weight of one member after the other, exactly."""

    def __init__(self, objective: MarginHinge, sweeps: int, order: Order, seed: int) -> None:
        self._objective, self._sweeps, self._order, self._seed = objective, sweeps, order, seed

    def bound(self, members: Sequence[int]) -> float:
        """Return 0: a hinge is not below it."""
        return 0.0

    def minimise(self, members: Sequence[int], start: Array) -> Minimum:
        """Return the weights [T] after the sweeps; members that are not listed have weight 0."""
        weights, objectives = start, [self._objective.at(start)]
        for sweep in range(self._sweeps if len(members) > 1 else 0):
            before = objectives[-1]
            for t in self._ordered(members, sweep):
                others = _others(weights, t, members)
                q, objective = self._objective.towards(t, others).minimum()
                candidate = (1 - q) * others
                candidate[t] = q
                candidate /= candidate.sum()
                # Compared at the weights as they will be stored, so that rounding cannot make the objective rise.
                if objective < objectives[-1] and (objective := self._objective.at(candidate)) < objectives[-1]:
                    weights = candidate
                objectives.append(min(objective, objectives[-1]))
            if objectives[-1] == before:
                break
        return Minimum(weights, objectives, None)

    def _ordered(self, members: Sequence[int], sweep: int) -> list[int]:
        if self._order == "cyclic":
            return list(members)
        generator = generator_at("cpu", self._seed, "robboost", sweep)
        return [members[int(i)] for i in torch.randperm(len(members), generator=generator)]


def _others(weights: Array, t: int, members: Sequence[int]) -> Array:
    """Return the weights of all members but t, scaled to sum 1; equal ones where t has all the weight."""
    rest = weights.copy()
    rest[t] = 0.0
    if not rest.sum() > 0:
        rest[members], rest[t] = 1.0, 0.0
    return rest / rest.sum()
