"""A level bundle method on the simplex (Lemarechal, Nemirovskii and Nesterov 1995, Mathematical Programming 69)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robust_nas.ensembles._objective import Array, MarginHinge

LEVEL = 0.3
"""The place of the next point's model value between the lower and the upper bound."""

DUST = 1e-9
"""Weights below this are rounding, and set to 0."""


@dataclass(frozen=True, eq=False)
class Minimum:
    """A solver's minimum on a face of the simplex.

    Args:
        weights: w, [T], 0 for the members that are not on the face.
        objectives: the least objective so far, at the start and after every step.
        lower: a lower bound of the objective on the face, or None if the solver does not know.
    """

    weights: Array
    objectives: list[float]
    lower: float | None

    @property
    def objective(self) -> float:
        """The objective at `weights`."""
        return self.objectives[-1]


class CuttingPlanes:
    """Minimises the objective from below and above.

    The objective is a sum of convex terms, one for each group of images, and each has a model of its own: the largest
    of its tangent planes so far. The models' sum is nowhere above the objective, so that its least value on the
    simplex, a linear programme's, is a lower bound. The next point is the one nearest to the best so far at which the
    models' sum is at most the level, a little above the lower bound. Kelley's method, which goes to where the models'
    sum is least, needs many times as many points.

    Planes are kept: they are below the objective on every face of the simplex.

    Args:
        objective: the function to minimise.
        tolerance: the gap between the least objective found and the lower bound at which the search ends, for
            objectives above 1 as a share of them.
        most: points on one face at which the objective is evaluated.
    """

    def __init__(self, objective: MarginHinge, tolerance: float, most: int) -> None:
        self._objective, self._tolerance, self._most = objective, tolerance, most
        # Each term's tangent planes at each point so far, as heights at the corners of the simplex: [I, G, T].
        self._planes = np.empty((0, 1, objective.num_members))

    def bound(self, members: Sequence[int]) -> float:
        """Return a lower bound of the objective where only these members have weights; evaluates nothing."""
        return self._lowest(members, 1.0)[1] if len(self._planes) else 0.0

    def minimise(self, members: Sequence[int], start: Array) -> Minimum:
        """Return the weights [T] of these members with the least objective; all others have weight 0."""
        point, best, lower = start, start, self.bound(members)
        objectives: list[float] = []
        for _ in range(self._most):
            planes = self._objective.planes(point)
            self._planes = np.concatenate([self._planes.reshape(-1, *planes.shape), planes[None]])
            value = float((planes @ point).sum())
            if not objectives or value < objectives[-1]:
                best = point
            objectives.append(min([value, *objectives[-1:]]))
            unit = max(1.0, objectives[-1])
            lowest, bound = self._lowest(members, unit)
            # Above the least objective found, a bound is above it by rounding alone.
            lower = min(max(lower, bound), objectives[-1])
            gap = objectives[-1] - lower
            if gap <= self._tolerance * unit:
                break
            nearest = self._project(best, lowest, members, lower + LEVEL * gap, 0.1 * gap, unit)
            following = [new for new in (nearest, lowest) if not np.array_equal(new, point)]
            if not following:
                break
            point = following[0]
        return Minimum(best, objectives, lower)

    def _lowest(self, members: Sequence[int], unit: float) -> tuple[Array, float]:
        """Return the point of the face where the models' sum is least, [T], and a lower bound of the objective there.

        The bound comes from the linear programme's multipliers, made to sum to 1 for every term: whatever these are, a
        weighted average of planes is below the objective. So the solver's tolerances do not make it wrong.
        """
        from scipy import sparse  # imported here: it takes most of a second, which other commands need not wait
        from scipy.optimize import linprog

        heights, sizes = self._planes[:, :, members], self._sizes(members, unit)
        points, groups, count = heights.shape
        # Over u = sizes * w and the terms' models r: minimise sum_g r_g with r_g above every plane.
        planes = points * groups
        models = sparse.csr_array(
            (-np.ones(planes), np.tile(np.arange(groups), points), np.arange(planes + 1)), (planes, groups)
        )
        result = linprog(
            np.r_[np.zeros(count), np.ones(groups)],
            A_ub=sparse.hstack([sparse.csr_array((heights / (unit * sizes)).reshape(-1, count)), models]),
            b_ub=np.zeros(planes),
            A_eq=np.r_[1 / sizes, np.zeros(groups)][None],
            b_eq=[1.0],
            bounds=[(0, None)] * count + [(None, None)] * groups,
            method="highs",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        shares, weights = np.ones((points, groups)), np.ones(count)
        if result.x is not None:
            shares = np.maximum(-result.ineqlin.marginals, 0).reshape(points, groups)
            shares[:, shares.sum(0) == 0] = 1.0
            weights = np.maximum(result.x[:count] / sizes, 0)
        bound = ((shares / shares.sum(0))[:, :, None] * heights).sum((0, 1)).min()
        return self._on_face(weights, members), float(bound)

    def _project(
        self, best: Array, lowest: Array, members: Sequence[int], level: float, slack: float, unit: float
    ) -> Array:
        """Return the point of the face nearest to `best` where the models' sum is at most `level`, up to `slack`.

        The models' sum is itself approached by planes, its tangents at the points tried. Where that does not get there,
        the point where the models' sum is least will do.
        """
        sizes = self._sizes(members, unit)
        planes = [self._tangent(lowest)[members], self._tangent(best)[members]]
        for _ in range(_INNER):
            nearest = _nearest(best[members] * sizes, 1 / sizes, np.array(planes) / (unit * sizes), level / unit)
            if nearest is None:
                break
            point = self._on_face(nearest / sizes, members)
            tangent = self._tangent(point)
            if tangent @ point <= level + slack:
                return point
            planes.append(tangent[members])
        return lowest

    def _tangent(self, point: Array) -> Array:
        """Return a plane that touches the models' sum at a point, as heights at the corners of the simplex, [T]."""
        highest = (self._planes @ point).argmax(0)
        tangent: Array = self._planes[highest, np.arange(len(highest))].sum(0)
        return tangent

    def _sizes(self, members: Sequence[int], unit: float) -> Array:
        """Return the objective's steepness for each member, at least 1, in units of the objective.

        Interval bounds differ between networks by powers of ten, so that all is solved in weights times these.
        """
        sizes: Array = np.maximum(1.0, np.abs(self._planes[:, :, members]).sum(1).max(0) / unit)
        return sizes

    def _on_face(self, weights: Array, members: Sequence[int]) -> Array:
        full = np.zeros(self._objective.num_members)
        full[members] = np.where(weights > DUST * weights.sum(), weights, 0.0)
        return full / full.sum()


_INNER = 50


def _nearest(point: Array, row: Array, planes: Array, level: float) -> Array | None:
    """Return the u >= 0 nearest to `point` with <row, u> = 1 and planes @ u <= level; None if none was found.

    With v = u - point this is the least |v| with G v >= h, which is a least squares problem with positive unknowns
    (Lawson and Hanson 1974, Solving Least Squares Problems, chapter 23).
    """
    from scipy.optimize import nnls

    count = len(point)
    rows = np.concatenate([-planes, np.eye(count), row[None], -row[None]])
    least = np.r_[planes @ point - level, -point, 1 - row @ point, row @ point - 1]
    size = np.maximum(np.abs(rows).max(1), 1e-300)
    matrix = np.concatenate([rows.T, least[None]]) / size
    target = np.r_[np.zeros(count), 1.0]
    try:
        multipliers, _ = nnls(matrix, target, maxiter=30 * matrix.shape[1])
    except RuntimeError:
        return None
    residual = matrix @ multipliers - target
    if not residual[-1] < 0:
        return None
    nearest: Array = np.maximum(point - residual[:-1] / residual[-1], 0)
    return nearest if row @ nearest > 0 else None
