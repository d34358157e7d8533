"""The objective of the rules: the hinge of the ensemble's certified margins (Zhang et al. 2019, arXiv:1910.14655)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_nas.bounds import LinearMargins
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import unit_images
from robust_nas.ensembles import EnsembleWeights, common_images
from robust_nas.threat import Ball, Norm, ThreatModel

Hinge = Literal["target", "example"]
Array = NDArray[np.float64]
Weights = Sequence[float] | Array

CHUNK = 1_000_000
"""Numbers of the members' slopes that are in memory in double precision at a time."""

GROUPS = 50
"""Terms, at most, that the objective is taken apart into; each has cutting planes of its own."""


@dataclass(frozen=True, eq=False)
class MarginHinge:
    """L(w), the mean hinge of the ensemble's certified margins, convex in w.

    M_kj(w) = min over the allowed changes d of <sum_t w_t A_tkj, d> + sum_t w_t c_tkj is the margin of image k over the
    wrong class j, with the members' bounds divided by their scales. "target" is the mean over images and wrong classes
    of max(1 - M_kj(w), 0); the paper takes the sum, which has the same minima. "example" is the mean over images of
    max_j max(1 - M_kj(w), 0).

    A pair of an image and a wrong class with M_kj >= 1 for every member alone is not evaluated: M_kj is concave, so its
    hinge is 0 for all weights. One with a negative margin for every member is, because opposite slopes cancel. The
    members' slopes are neither copied nor converted as a whole.

    Args:
        offsets: c, [T, M], float64, over the M pairs that are evaluated, in the images' order.
        slopes: the members' own [N * K, D], as given and not divided by the scales, None for a member without slopes.
        rows: [M], the pairs' rows in `slopes`.
        images: [M], the pairs' images.
        scales: Z, [T], float64.
        allowed: the changes that keep the N images in [0, 1], or None for the whole ball of `threat`. For linf, they
            are a box: its centre and radius, [N, D] each, float64.
        threat: the ball.
        hinge: "target" or "example".
        num_terms: the divisor of the sum of hinges: the pairs or the images, those that are not evaluated included.
        chunks: the pairs that are evaluated together; an image's are in one chunk.
        parts: the same, cut where a group of terms ends, and the group.
    """

    offsets: Tensor
    slopes: tuple[Tensor | None, ...]
    rows: Tensor
    images: Tensor
    scales: Tensor
    allowed: Ball | tuple[Tensor, Tensor] | None
    threat: ThreatModel
    hinge: Hinge
    num_terms: int
    chunks: tuple[slice, ...]
    parts: tuple[tuple[slice, int], ...]

    @classmethod
    def of(
        cls,
        bounds: Sequence[LinearMargins],
        threat: ThreatModel,
        *,
        hinge: Hinge = "target",
        normalise: bool = True,
        chunk: int = CHUNK,
        groups: int = GROUPS,
    ) -> MarginHinge:
        """Return the objective for members with these bounds.

        Z_t is the mean size of the clean margins |f_y - f_j| over the images and wrong classes (of |c_t|, where the
        bounds do not bring clean margins), or 1 without `normalise`. The paper takes the mean of c_t, which for its
        linear bounds is a bound at the image itself. Interval bounds have no such c_t: theirs are for the whole ball,
        can have a negative mean, by which dividing would turn a network round, and differ between networks by
        powers of ten that say nothing about their logits.

        Raises:
            InputError: for no members, members bounded on different images, or bounds that are not finite.
        """
        wrong = _wrong_classes(bounds)
        sizes = [bound.offsets if bound.clean is None else bound.clean for bound in bounds]
        # A member whose margins are all 0 has nothing to be divided by.
        scales = [float(size[wrong].double().abs().mean()) or 1.0 if normalise else 1.0 for size in sizes]
        offsets = torch.stack([bound.offsets[wrong].double() / z for bound, z in zip(bounds, scales, strict=True)])
        around = common_images(bounds)
        rows = wrong.flatten().nonzero().squeeze(1)
        images = rows // wrong.shape[1]
        slopes = tuple(None if bound.slopes is None else bound.slopes.detach().flatten(0, 1) for bound in bounds)
        sloped = [s for s in slopes if s is not None]
        pairs_at_a_time = chunk // max(1, sum(s.shape[1] for s in sloped))
        every = cls(
            offsets=offsets,
            slopes=slopes,
            rows=rows,
            images=images,
            scales=offsets.new_tensor(scales),
            allowed=None if around is None else _allowed(around, threat),
            threat=threat,
            hinge=hinge,
            num_terms=len(rows) if hinge == "target" else len(images.unique()),
            chunks=_chunks(images, pairs_at_a_time),
            parts=(),
        )
        open_ = ~every._closed()
        images = images[open_]
        return replace(
            every,
            offsets=offsets[:, open_],
            rows=rows[open_],
            images=images,
            chunks=_chunks(images, pairs_at_a_time),
            parts=_parts(images, pairs_at_a_time, groups),
        )

    @property
    def num_members(self) -> int:
        """T."""
        return len(self.offsets)

    def at(self, weights: Weights) -> float:
        """Return L(w)."""
        members = [t for t in self._sloped if weights[t] > 0]
        w, total = self._tensor(weights), 0.0
        for part, slopes in self._slopes(members, self.chunks):
            _, margins = self._worst(self._joint(w, members, slopes), w @ self.offsets[:, part], part)
            total += float(self._counted(margins, part) @ (1 - margins))
        return total / self.num_terms

    def planes(self, weights: Weights) -> Array:
        """Return a tangent plane at w of each term of L, as its heights at the corners of the simplex, [G, T].

        The terms are the groups' shares of L. A plane's height at v, heights @ v, is nowhere above the term, and is the
        term at w. With d the change that is worst for the ensemble, M_kj(v) <= sum_t v_t (<A_tkj, d> + c_tkj).
        """
        w, members = self._tensor(weights), self._sloped
        parts, groups = [part for part, _ in self.parts], [group for _, group in self.parts]
        # Where no pair is evaluated, there is one term, and it is 0.
        heights = np.zeros((1 + max(groups, default=0), self.num_members))
        for group, (part, slopes) in zip(groups, self._slopes(members, parts), strict=True):
            change, margins = self._worst(self._joint(w, members, slopes), w @ self.offsets[:, part], part)
            counted = self._counted(margins, part)
            height = (1 - self.offsets[:, part]) @ counted
            change = (change * counted[:, None]).flatten()
            height[members] -= slopes.flatten(1) @ change / self.scales[members]
            heights[group] += height.cpu().numpy()
        return heights / self.num_terms

    def towards(self, t: int, others: Weights) -> Segment:
        """Return L on the segment from `others` (q = 0) to member t alone (q = 1)."""
        members = [s for s in self._sloped if others[s] > 0]
        w = self._tensor(others)
        joints = [self._joint(w, members, slopes) for _, slopes in self._slopes(members, self.chunks)]
        return Segment(self, t, joints, w @ self.offsets)

    def result(self, weights: Weights, objectives: Sequence[float], lower: float | None = None) -> EnsembleWeights:
        """Return a rule's result, on the CPU."""
        return EnsembleWeights(
            weights=torch.tensor([float(w) for w in weights], dtype=torch.float64),
            scales=self.scales.cpu(),
            objectives=tuple(objectives),
            lower=lower,
        )

    @property
    def _sloped(self) -> list[int]:
        return [t for t, slopes in enumerate(self.slopes) if slopes is not None]

    def _tensor(self, weights: Weights) -> Tensor:
        return self.offsets.new_tensor([float(w) for w in weights])

    def _slopes(self, members: Sequence[int], parts: Sequence[slice]) -> Iterator[tuple[slice, Tensor]]:
        """Yield each part with these members' slopes [S, P, D] in double precision, valid until the next part."""
        kept = [slopes for t in members if (slopes := self.slopes[t]) is not None]
        pixels = next((slopes.shape[1] for slopes in self.slopes if slopes is not None), 0)
        most = max((part.stop - part.start for part in parts), default=0)
        buffer = self.offsets.new_empty(len(kept) * most * pixels)
        for part in parts:
            rows = self.rows[part]
            loaded = buffer[: len(kept) * len(rows) * pixels].view(len(kept), len(rows), pixels)
            for target, slopes in zip(loaded, kept, strict=True):
                target.copy_(slopes[rows])
            yield part, loaded

    def _joint(self, w: Tensor, members: Sequence[int], slopes: Tensor) -> Tensor:
        """Return sum_t w_t A_t / Z_t, [P, D]."""
        return torch.tensordot(w[members] / self.scales[members], slopes, 1)

    def _worst(self, slopes: Tensor, offsets: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Return the allowed changes d [P, D] at which <slopes, d> is least, and the margins [P] there."""
        if slopes.shape[1] == 0:
            change = slopes
        elif self.allowed is None:
            change = -self.threat.epsilon * _steepest(slopes, self.threat.norm)
        elif isinstance(self.allowed, tuple):
            centre, radius = (of_images[self.images[part]] for of_images in self.allowed)
            change = centre - radius * slopes.sign()
        else:
            change = self.allowed[self.images[part]].least_at(slopes)
        return change, (slopes * change).sum(-1) + offsets

    def _counted(self, margins: Tensor, part: slice) -> Tensor:
        """Return the weight of each pair's 1 - M [P] in the sum of hinges."""
        open_ = (margins < 1).to(margins)
        if self.hinge == "target":
            return open_
        image = self.images[part] - self.images[part.start]
        least = margins.new_full((int(image[-1]) + 1,), torch.inf).scatter_reduce(0, image, margins, "amin")
        # Of classes that are equally bad, each counts in part: any average of subgradients is one.
        worst = (margins == least[image]).to(margins)
        return open_ * worst / torch.zeros_like(least).scatter_add(0, image, worst)[image]

    def _closed(self) -> Tensor:
        """Return [M] booleans: whether the margin is at least 1 for every member alone.

        Raises:
            InputError: for members whose margins are not finite.
        """
        members = self._sloped
        closed = (self.offsets[[t for t in range(self.num_members) if t not in members]] >= 1).all(0)
        for part, slopes in self._slopes(members, self.chunks):
            for t, own in zip(members, slopes, strict=True):
                _, margins = self._worst(own / self.scales[t], self.offsets[t, part], part)
                if not margins.isfinite().all():
                    raise InputError(_NOT_FINITE.format(t))
                closed[part] &= margins >= 1
        return closed


def _allowed(images: Tensor, threat: ThreatModel) -> Ball | tuple[Tensor, Tensor]:
    """Return the changes that keep `images` in the ball and in [0, 1]."""
    if threat.norm != "linf":
        return threat.around(images)
    pixels = unit_images(images).double().flatten(1)
    down, up = (room.clamp_max(threat.epsilon) for room in (pixels, 1 - pixels))
    return (up - down) / 2, (up + down) / 2


def _steepest(slopes: Tensor, norm: Norm) -> Tensor:
    """Return the change [P, D] of norm 1 that <slopes, d> grows fastest along; 0 where the slopes are."""
    if norm == "linf":
        return slopes.sign()
    if norm == "l2":
        length = slopes.norm(dim=1, keepdim=True)
        return slopes / torch.where(length > 0, length, 1.0)
    largest = slopes.abs().argmax(1, keepdim=True)
    return torch.zeros_like(slopes).scatter(1, largest, slopes.gather(1, largest).sign())


def _wrong_classes(bounds: Sequence[LinearMargins]) -> Tensor:
    """Return [N, K] booleans: which classes are wrong, on which all members must agree."""
    if not bounds:
        raise InputError("An ensemble needs at least one member, but got none.")
    wrong = ~torch.isposinf(bounds[0].offsets)
    for t, bound in enumerate(bounds):
        if bound.offsets.shape != wrong.shape or not torch.equal(~torch.isposinf(bound.offsets), wrong):
            raise InputError(
                f"Member {t} is bounded on other images or labels than member 0; bound all on the same images."
            )
        if not bound.offsets[wrong].isfinite().all():
            raise InputError(_NOT_FINITE.format(t))
    if not wrong.any():
        raise InputError("An ensemble is fitted on at least one image with two classes, but got none.")
    return wrong


_NOT_FINITE = "Member {} has bounds that are not finite; choose a smaller epsilon, or leave it out."


def _chunks(images: Tensor, most: int) -> tuple[slice, ...]:
    return tuple(part for part, _ in _parts(images, most, 1))


def _parts(images: Tensor, most: int, groups: int) -> tuple[tuple[slice, int], ...]:
    """Return slices of at most `most` pairs, but of whole images, and the group of images that each belongs to.

    Args:
        images: [M], the pairs' images, in ascending order.
    """
    _, counts = images.unique_consecutive(return_counts=True)
    sizes = counts.tolist()
    parts: list[tuple[slice, int]] = []
    stop = 0
    for i, size in enumerate(sizes):
        group = i * min(groups, len(sizes)) // len(sizes)
        if parts and parts[-1][1] == group and stop + size - parts[-1][0].start <= most:
            parts[-1] = (slice(parts[-1][0].start, stop + size), group)
        else:
            parts.append((slice(stop, stop + size), group))
        stop += size
    return tuple(parts)


@dataclass(frozen=True, eq=False)
class Segment:
    """The objective on a segment of the simplex that ends at one member: q in [0, 1] to its value and a subgradient.

    Args:
        objective: L.
        t: the member at q = 1.
        slopes: the joint slopes at q = 0, [P, D] for each chunk of the objective's pairs.
        offsets: the joint offsets at q = 0, [M].
    """

    objective: MarginHinge
    t: int
    slopes: list[Tensor]
    offsets: Tensor

    def __call__(self, q: float) -> tuple[float, float]:
        objective, t = self.objective, self.t
        member = [t] if t in objective._sloped else []
        value = slope = 0.0
        for start, (part, own) in zip(self.slopes, objective._slopes(member, objective.chunks), strict=True):
            turn = own[0] / objective.scales[t] - start if member else -start
            change = objective.offsets[t, part] - self.offsets[part]
            worst, margins = objective._worst(start + q * turn, self.offsets[part] + q * change, part)
            counted = objective._counted(margins, part)
            value += float(counted @ (1 - margins))
            slope -= float(counted @ ((turn * worst).sum(-1) + change))
        return value / objective.num_terms, slope / objective.num_terms

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
