"""Fewer members: backward elimination on the certified objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from robust_nas.core.errors import InputError
from robust_nas.ensembles._cutting_planes import Minimum
from robust_nas.ensembles._objective import Array

Limits = Mapping[str, tuple[int, Sequence[int]]]
"""Limits: the largest sum, and each member's part of it: {"parameters": (5_000_000, [P_1, ..., P_T])}."""


class Solver(Protocol):
    """Fits the weights of some of the members."""

    def bound(self, members: Sequence[int]) -> float:
        """Return a lower bound of the objective where only these members have weights, without evaluating it."""

    def minimise(self, members: Sequence[int], start: Array) -> Minimum:
        """Return the weights of these members with the least objective it finds from `start` [T]."""


def eliminate(solver: Solver, num_members: int, limits: Limits) -> Minimum:
    """Return the least objective over weights of members within the limits, found by backward elimination.

    All are fitted. Members of weight 0 are out; then, while the others exceed a limit, the one whose removal raises the
    objective least, with the rest fitted again. A member that exceeds a limit alone is out from the start.

    Raises:
        InputError: if every member exceeds a limit.
    """
    kept = [t for t in range(num_members) if _within([t], limits)]
    if not kept:
        listed = ", ".join(f"{name} {limit}" for name, (limit, _) in limits.items())
        raise InputError(f"No single member is within the limits on an ensemble ({listed}); raise them.")
    best = solver.minimise(kept, _equal(kept, num_members))
    objectives = best.objectives
    while not _within(used := [int(t) for t in best.weights.nonzero()[0]], limits):
        best = _without_one(solver, used, best.weights)
        objectives = [*objectives, best.objective]
    return replace(best, objectives=objectives)


def _without_one(solver: Solver, members: Sequence[int], weights: Array) -> Minimum:
    """Return the best minimum without one of the members.

    The solver's bounds are looked at first: what cannot be better than the best found is not fitted.
    """
    faces = [[s for s in members if s != t] for t in members]
    bounds = [solver.bound(face) for face in faces]
    best: Minimum | None = None
    for bound, face in sorted(zip(bounds, faces, strict=True)):
        if best is not None and bound >= best.objective:
            break
        rest = np.where(np.isin(np.arange(len(weights)), face), weights, 0.0)
        found = solver.minimise(face, rest / rest.sum())
        if best is None or found.objective < best.objective:
            best = found
    assert best is not None
    return best


def _within(members: Sequence[int], limits: Limits) -> bool:
    return all(sum(amounts[t] for t in members) <= limit for limit, amounts in limits.values())


def _equal(members: Sequence[int], num_members: int) -> Array:
    weights = np.zeros(num_members)
    weights[members] = 1 / len(members)
    return weights
