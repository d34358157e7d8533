"""What the rules minimise: the hinge of the ensemble's certified margins (Zhang et al. 2019, arXiv:1910.14655)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.linalg import vecdot

from robust_nas.bounds import LinearMargins
from robust_nas.ensembles import EnsembleWeights
from robust_nas.errors import InputError
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, eq=False)
class MarginHinge:
    """L(w) = mean over images k and wrong classes j of max(1 - M_kj(w), 0), convex in w.

    M_kj(w) = -epsilon |sum_t w_t A_tkj|_q + sum_t w_t c_tkj, with the members' bounds divided by their scales. The
    paper takes the sum; the mean has the same minima and does not grow with the number of images.

    Args:
        offsets: c, one [M] per member, over the M pairs of an image and a wrong class.
        slopes: A, one [M, D] per member, or None if no member has slopes.
        epsilon: the ball's radius.
        order: q, 1 for the linf ball and 2 for the l2 ball.
        scales: Z, what the members' bounds were divided by.
    """

    offsets: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...] | None
    epsilon: float
    order: int
    scales: tuple[float, ...]

    @classmethod
    def of(cls, bounds: Sequence[LinearMargins], threat: ThreatModel, *, normalise: bool = True) -> MarginHinge:
        """Return the objective for members with these bounds.

        Z_t is the mean size of the clean margins |f_y - f_j| over the images and wrong classes (of |c_t|, where the
        bounds do not bring clean margins), or 1 without `normalise`. The paper takes the mean of c_t, which for its
        linear bounds is a bound at the image itself. Interval bounds have no such c_t: theirs are for the whole ball,
        can have a negative mean, by which dividing would turn a network round, and differ between networks by
        powers of ten that say nothing about their logits.
        """
        if not bounds:
            raise InputError("An ensemble needs at least one member, but got none.")
        wrong = ~torch.isposinf(bounds[0].offsets)
        for t, bound in enumerate(bounds):
            if bound.offsets.shape != wrong.shape or not torch.equal(~torch.isposinf(bound.offsets), wrong):
                raise InputError(
                    f"Member {t} is bounded on other images or labels than member 0; bound all on the same images."
                )
            if not bound.offsets[wrong].isfinite().all():
                raise InputError(
                    f"Member {t} has bounds that are not finite; choose a smaller epsilon, or leave it out."
                )
        offsets = [bound.offsets[wrong].double() for bound in bounds]
        if not offsets[0].numel():
            raise InputError("An ensemble is fitted on at least one image with two classes, but got none.")
        # A member whose margins are all 0 has nothing to be divided by.
        sizes = [
            c if bound.clean is None else bound.clean[wrong].double() for c, bound in zip(offsets, bounds, strict=True)
        ]
        scales = [float(size.abs().mean()) or 1.0 for size in sizes] if normalise else [1.0] * len(bounds)
        slopes = None
        if any(bound.slopes is not None for bound in bounds):
            shape = next(bound.slopes[wrong].shape for bound in bounds if bound.slopes is not None)
            slopes = tuple(
                offsets[0].new_zeros(shape) if bound.slopes is None else bound.slopes[wrong].double() / scale
                for bound, scale in zip(bounds, scales, strict=True)
            )
        return cls(
            offsets=tuple(c / scale for c, scale in zip(offsets, scales, strict=True)),
            slopes=slopes,
            epsilon=threat.epsilon,
            order=1 if slopes is None else _order(threat),
            scales=tuple(scales),
        )

    @property
    def num_members(self) -> int:
        """T."""
        return len(self.offsets)

    def at(self, weights: Sequence[float]) -> float:
        """Return L(w)."""
        return self.on_segment(weights, weights)(0.0)[0]

    def result(self, weights: Sequence[float], objectives: Sequence[float]) -> EnsembleWeights:
        """Return a rule's result, on the CPU."""
        return EnsembleWeights(
            weights=torch.tensor(weights, dtype=torch.float64),
            scales=torch.tensor(self.scales, dtype=torch.float64),
            objectives=tuple(objectives),
        )

    def on_segment(self, start: Sequence[float], end: Sequence[float]) -> Segment:
        """Return L on the segment from `start` (q = 0) to `end` (q = 1), two points of the simplex."""
        (c0, a0), (c1, a1) = self._combined(start), self._combined(end)
        return Segment(c0, c1, a0, a1, self.epsilon, self.order)

    def _combined(self, weights: Sequence[float]) -> tuple[Tensor, Tensor | None]:
        used = [t for t, weight in enumerate(weights) if weight > 0]
        offsets = torch.stack([weights[t] * self.offsets[t] for t in used]).sum(0)
        if self.slopes is None:
            return offsets, None
        slopes = weights[used[0]] * self.slopes[used[0]]
        for t in used[1:]:
            slopes.add_(self.slopes[t], alpha=weights[t])
        return offsets, slopes


def _order(threat: ThreatModel) -> int:
    """Return q of the norm that is dual to the threat's.

    Raises:
        InputError: for the l1 ball, whose dual norm the exact minimisation does not handle.
    """
    orders = {"linf": 1, "l2": 2}
    if threat.norm not in orders:
        raise InputError(
            f"RobBoost joins linear bounds for the norms linf and l2, but the threat's is {threat.norm}; "
            "use interval bounds."
        )
    return orders[threat.norm]


@dataclass(frozen=True, eq=False)
class Segment:
    """The objective on a segment of the simplex: q in [0, 1] to its value and a subgradient.

    Args:
        start_offsets: sum_t w_t c_t at q = 0, [M]; `end_offsets` at q = 1.
        start_slopes: sum_t w_t A_t at q = 0, [M, D], or None; `end_slopes` at q = 1.
        epsilon: the ball's radius.
        order: q of the dual norm, 1 or 2.
    """

    start_offsets: Tensor
    end_offsets: Tensor
    start_slopes: Tensor | None
    end_slopes: Tensor | None
    epsilon: float
    order: int

    @cached_property
    def _turn(self) -> Tensor | None:
        return None if self.start_slopes is None or self.end_slopes is None else self.end_slopes - self.start_slopes

    def __call__(self, q: float) -> tuple[float, float]:
        change = self.end_offsets - self.start_offsets
        margins = self.start_offsets + q * change
        if self.start_slopes is not None and self._turn is not None:
            slopes = torch.add(self.start_slopes, self._turn, alpha=q)
            if self.order == 1:
                signs = slopes.sign()
                norm, norm_change = vecdot(signs, slopes), vecdot(signs, self._turn)
            else:
                norm = slopes.norm(dim=1)
                # The norm has the subgradient 0 where it is 0.
                norm_change = vecdot(slopes, self._turn) / torch.where(norm > 0, norm, 1.0)
            margins, change = margins - self.epsilon * norm, change - self.epsilon * norm_change
        hinge = 1 - margins
        return float(hinge.clamp(min=0).mean()), float(torch.where(hinge > 0, -change, 0.0).mean())

    def minimum(self) -> tuple[float, float]:
        """Return the q in [0, 1] with the least value, and the value.

        The tangents at the ends of an interval that holds the minimum meet at or below it. The next point is where
        they meet, or the middle; the search ends when the least value found is where they meet. For a piecewise linear
        objective (no slopes, or the linf ball) this is its lowest break point, exactly up to rounding, without the
        table of all break points that the paper sorts; for the l2 ball the value is the minimum up to 1e-13.
        """
        low, high = 0.0, 1.0
        (low_value, low_slope), (high_value, high_slope) = self(low), self(high)
        best = min((low_value, low), (high_value, high))
        for step in range(_MAX_STEPS):
            if low_slope >= 0 or high_slope <= 0:
                break
            meet = (high_value - low_value + low_slope * low - high_slope * high) / (low_slope - high_slope)
            below = low_value + low_slope * (meet - low)
            # Every third point halves the interval, so that tangents that hardly move cannot hold up the search.
            q = meet if step % 3 < 2 else (low + high) / 2
            if best[0] - below <= 1e-13 * max(1.0, abs(best[0])) or not low < q < high:
                break
            value, slope = self(q)
            best = min(best, (value, q))
            if slope <= 0:
                low, low_value, low_slope = q, value, slope
            if slope >= 0:
                high, high_value, high_slope = q, value, slope
        return best[1], best[0]


_MAX_STEPS = 200
