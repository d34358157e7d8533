"""The common parts of hard-label attacks: counted queries, the way to the boundary along a direction, the descent."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks import Minimising, check_norm
from robust_nas.core.checks import check_at_least
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import class_labels, unit_images, unit_images_and_labels
from robust_nas.core.seeds import generator_at
from robust_nas.models.frozen import frozen
from robust_nas.models.scores import check_finite, scores
from robust_nas.threat import Norm, ThreatModel

# Starts are looked for at these shares of the longest way, one after the other, in noise that is smooth or not: an
# image that white noise leaves in its class (on MNIST, all noise looks like an 8) is moved by smooth noise.
_STARTS = ((0.35, False), (0.35, True), (1.0, False))
# The first step of the line search, and the steps tried around the last one that was taken; theta has length 1.
_FIRST_STEP = 0.5
_STEPS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
# How exact the distance to the boundary must be, as a share of beta: a probe must change it by more than that.
_EXACTNESS = 0.02
# Below, float32 images are too coarse to find the boundary so exactly.
_LEAST_BETA = 1e-4
# In linf, a pixel whose part of theta is above this share of the mean (root of the square) moves all the way.
_CLIPPED = 0.5
# How many numbers the directions that are asked about together may have.
_MOST_NUMBERS = 2**25
# How many numbers the points that are computed together may have, on a CPU.
_CACHED_NUMBERS = 2**16


class Distortion(NamedTuple):
    """The nearest adversarial examples that a minimal-distortion attack found.

    Args:
        images: [B, ...], like the images attacked; an image for which nothing was found is as it was.
        distances: [B], from the original, in the norm asked for; 0 for an image that is misclassified as it is,
            infinite where nothing was found.
        queries: [B], images of each sample that `predict` was given.
        curve: [B, Q], the least distance found with at most 1, 2, ..., Q queries, Q being the budget.
    """

    images: Tensor
    distances: Tensor
    queries: Tensor
    curve: Tensor

    def after(self, queries: int) -> Tensor:
        """Return the distances [B] that were reached with at most `queries` queries."""
        return self.curve[:, min(queries, self.curve.shape[1]) - 1]


@dataclass(frozen=True, kw_only=True)
class HardLabelAttack(Minimising):
    """The descent of OPT and Sign-OPT, which differ in the gradient that they estimate.

    For a direction theta, g(theta) is the distance to the nearest point in this direction that is misclassified
    (arXiv:1807.04457, equation 3). It is minimised over theta, from the best of random directions, by estimated
    gradients and a line search. All samples and directions of a step are asked about together; a sample's outcome does
    not depend on the batch it is in.

    Args:
        queries: the most images of one sample that the model is asked about.
        starts: random directions to start from the best of.
        directions: random directions of one gradient estimate.
        smoothing: beta, the length of a random direction beside theta's 1, at first. The authors use 0.001 and find
            distances to 2e-6 for it; a longer one needs fewer queries for that.
        batch_size: the most images in one call of the model.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    queries: int = 20_000
    starts: int = 100
    directions: int = 200
    smoothing: float = 1e-2
    batch_size: int = 256

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in ("queries", "starts", "directions", "batch_size"):
            check_at_least(f"{name}.{field}", getattr(self, field), 1)
        if not 0 < self.smoothing <= 1:
            raise InputError(f"{name}.smoothing must be in (0, 1], but got {self.smoothing}.")

    @abstractmethod
    def _farther(self, boundary: Boundary, rows: Tensor, beside: Tensor, radius: Tensor, exact: Tensor) -> Tensor:
        """Return, up to a positive factor for each sample, how much farther than `radius` [S] the boundary is, [S, K].

        `beside` [S, K, D] are directions beside theta, and `exact` [S] is how exact distances must be.
        """

    def minimise(
        self,
        predict: Callable[[Any], Any],
        images: Any,
        labels: Any,
        *,
        norm: Norm = "l2",
        seed: int = 0,
        goal: float = 0.0,
    ) -> Distortion:
        """Return the nearest misclassified images that are found.

        Args:
            predict: returns a label [M] for each of M images. It is given arrays if `images` is an array, else tensors,
                shaped like `images` but for the first dimension, which it may write into.
            images: [B, ...], as `pixels.stored_images` takes them.
            labels: [B], what a found image is not classified as.
            norm: of the distance, "l2" or "linf".
            seed: of all random directions.
            goal: a sample whose distance is not above this one is finished.

        Raises:
            InputError: for an unknown norm, or images outside [0, 1].
        """
        if norm not in ("l2", "linf"):
            raise InputError(f"{type(self).__name__} is for linf and l2, but got '{norm}'; use another attack instead.")
        given = torch.as_tensor(images).detach()
        shaped = given if given.ndim == 4 else given.reshape(len(given), 1, 1, -1)
        originals = unit_images(shaped).reshape(given.shape)
        labels = class_labels(torch.as_tensor(labels, device=originals.device), len(originals))
        as_given = Tensor.clone if isinstance(images, Tensor) else (lambda points: points.clone().numpy())
        # Samples do not depend on each other: as many together as memory has room for.
        together = max(1, _MOST_NUMBERS // (max(self.directions, self.starts) * max(originals[:1].numel(), 1)))
        parts = []
        for first in range(0, max(len(originals), 1), together):
            part = slice(first, first + together)
            boundary = Boundary(
                lambda points: predict(as_given(points)),
                originals[part],
                labels[part],
                norm,
                self.queries,
                goal,
                self.batch_size,
            )
            self._descend(boundary, seed)
            parts.append(boundary.distortion())
        return Distortion(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return adversarial images [B, C, H, W], detached, inside `threat` around `images`.

        A sample is finished as soon as an example inside the ball is found. Where the nearest one found is outside, it
        is projected onto the ball, where it is as a rule classified correctly.
        """
        check_norm(self, threat)
        images, labels = unit_images_and_labels(images, labels)
        ball = threat.around(images)

        def predict(points: Tensor) -> Tensor:
            logits = scores(model, points)
            check_finite(self, logits)
            return logits.argmax(1)

        with frozen(model):
            # A little less than epsilon, so that rounding does not decide.
            found = self.minimise(
                predict, images, labels, norm=threat.norm, seed=seed, goal=threat.epsilon * (1 - 1e-6)
            ).images
        inside = ball.contains(found).view(-1, *[1] * (images.ndim - 1))
        return torch.where(inside, found, ball.project(found))

    def nearest(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return the nearest misclassified points that are found [B, C, H, W]."""
        with frozen(model):
            return self.minimise(
                lambda points: scores(model, points).argmax(1), images, labels, norm=threat.norm, seed=seed
            ).images

    def _descend(self, boundary: Boundary, seed: int) -> None:
        theta, radius = self._start(boundary, seed)
        step, beta = torch.full_like(radius, _FIRST_STEP), torch.full_like(radius, self.smoothing)
        shape = (self.directions, theta.shape[1])
        for iteration in count():
            rows = boundary.left()
            rows = rows[radius[rows].isfinite()]
            if len(rows) == 0:
                return
            # The same directions for every sample: a sample's result does not depend on its neighbours.
            probes = unit(_normal(shape, theta, seed, "directions", iteration))
            at, length = theta[rows], radius[rows]
            beside = at.unsqueeze(1) + beta[rows].view(-1, 1, 1) * probes
            farther = self._farther(boundary, rows, beside, length, _EXACTNESS * beta[rows] * length)
            # In double precision, so that the size of the batch does not show in the rounding of the sums.
            gradient = (farther.double() @ probes.double()).to(theta)
            # Line search: of all steps at once, the one that gets nearest.
            steps = step[rows].unsqueeze(1) * torch.tensor(_STEPS).to(theta)
            tried = at.unsqueeze(1) - steps.unsqueeze(2) * unit(gradient).unsqueeze(1)
            chosen, length = boundary.shortest(rows, tried, length, beta[rows] * _EXACTNESS)
            moved = chosen >= 0
            taken = rows[moved]
            # Not cut to what clamping leaves of it: at a wall the noise of the gradients would push to one side only.
            theta[taken] = unit(tried[moved, chosen[moved]])
            radius[taken], step[taken] = length[moved], steps[moved, chosen[moved]]
            # Where no step helps, steps and probes are too long.
            step[rows[~moved]] *= 0.125
            beta[rows[~moved]] = (0.5 * beta[rows[~moved]]).clamp_min(_LEAST_BETA)

    def _start(self, boundary: Boundary, seed: int) -> tuple[Tensor, Tensor]:
        """Return the best of random directions for each sample, [B, D], and the distances [B], infinite for none."""
        flat = boundary.originals
        theta, radius = torch.zeros_like(flat), flat.new_full((len(flat),), torch.inf)
        everything = torch.arange(len(flat), device=flat.device)
        boundary.ask(everything, theta.unsqueeze(1), torch.zeros_like(radius).unsqueeze(1))
        for attempt, (share, smooth) in enumerate(_STARTS):
            rows = boundary.left()
            rows = rows[radius[rows].isinf()]
            if len(rows) == 0:
                break
            directions = boundary.starts(self.starts, smooth, seed, attempt)
            directions = directions.expand(len(rows), -1, -1)
            length = flat.new_full((len(rows),), share * boundary.diameter)
            # A few at a time, so that most are asked about once, at the best distance of those before.
            for block in directions.split(10, dim=1):
                chosen, length = boundary.shortest(rows, block, length, torch.full_like(length, 0.05))
                found = chosen >= 0
                theta[rows[found]], radius[rows[found]] = block[found, chosen[found]], length[found]
        rows = radius.isfinite().nonzero().squeeze(1)
        at, length = theta[rows], radius[rows]
        exact = _EXACTNESS * self.smoothing * length
        yes = torch.ones_like(length, dtype=torch.bool).unsqueeze(1)
        length = boundary.boundary(rows, at.unsqueeze(1), length.unsqueeze(1), yes, 0.05 * length, exact).squeeze(1)
        radius[rows] = length
        return theta, radius


def _normal(shape: tuple[int, int], like: Tensor, seed: int, *place: str | int) -> Tensor:
    generator = generator_at(like.device, seed, *place)
    return torch.empty(shape, dtype=like.dtype, device=like.device).normal_(generator=generator)


def unit(directions: Tensor) -> Tensor:
    """Return directions [..., D] with Euclidean length 1."""
    # Summed in double precision, here and below: how float32 sums are rounded depends on the size of the batch.
    length = torch.linalg.vector_norm(directions, dim=-1, keepdim=True, dtype=torch.float64)
    return directions / length.clamp_min(1e-30).to(directions)


class Boundary:
    """The search for a classifier's boundary: counts queries, keeps to the budget and keeps the nearest examples."""

    def __init__(
        self,
        predict: Callable[[Tensor], Any],
        images: Tensor,
        labels: Tensor,
        norm: Norm,
        budget: int,
        goal: float,
        batch_size: int,
    ) -> None:
        self.originals = images.flatten(1)
        self._predict, self._labels, self._norm, self._shape = predict, labels, norm, images.shape[1:]
        self._budget, self._goal, self._batch_size = budget, goal, batch_size
        # On a CPU, as many points at a time as its cache has room for.
        self._block = (
            max(1, _CACHED_NUMBERS // max(self.originals.shape[1], 1)) if images.device.type == "cpu" else batch_size
        )
        self._asked = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self._nearest = self.originals.clone()
        self._distances = self.originals.new_full((len(images),), torch.inf)
        self._curve = self.originals.new_full((len(images), budget), torch.inf)

    @property
    def diameter(self) -> float:
        """The longest way in [0, 1]."""
        return float(self.originals.shape[1] ** 0.5) if self._norm == "l2" else 1.0

    def starts(self, count: int, smooth: bool, seed: int, attempt: int) -> Tensor:
        """Return random directions [K, D], of Gaussian noise; smooth noise is a random 4 x 4 image, enlarged."""
        noise = _normal((count, self.originals.shape[1]), self.originals, seed, "starts", attempt)
        if smooth and len(self._shape) == 3:
            small = noise.view(-1, *self._shape)[:, :, :4, :4]
            noise = F.interpolate(small, size=self._shape[1:], mode="bilinear").flatten(1)
        return unit(noise)

    def distortion(self) -> Distortion:
        """Return the nearest misclassified points so far."""
        curve = self._curve.cummin(1).values
        return Distortion(self._nearest.view(-1, *self._shape), self._distances, self._asked, curve)

    def left(self) -> Tensor:
        """Return the numbers of the samples that are not finished."""
        return ((self._asked < self._budget) & (self._distances > self._goal)).nonzero().squeeze(1)

    def points(self, originals: Tensor, directions: Tensor, radii: Tensor) -> Tensor:
        """Return the images [M, D] at a distance of at most `radii` [M] in the directions [M, D], clamped to [0, 1].

        The authors' code does not clamp: it asks about points outside [0, 1]. Here, in l2, the other pixels make up for
        what is cut off, so that the point is as far away as `radii` says if the box reaches that far. In linf the
        authors divide theta by its largest number, so that most pixels hardly move; here large numbers are clipped.
        """
        directions, scale = unit(directions), radii.unsqueeze(1)
        if self._norm == "linf":
            directions = (directions * directions.shape[1] ** 0.5 / _CLIPPED).clamp_(-1, 1)
        else:
            # |clamp(x + s theta) - x| = radius, solved for s from below: cut, lengthen the rest, see what is cut now.
            room = (directions > 0).to(originals).sub_(originals).abs_()
            size, square, radius = directions.abs(), directions**2, scale**2
            most = room**2
            for _ in range(3):
                # 1 and 0: several times faster than booleans.
                cut = (size * scale).gt_(room)
                used = (most * cut).sum(1, keepdim=True, dtype=torch.float64)
                free = (square * (1 - cut)).sum(1, keepdim=True, dtype=torch.float64)
                scale = ((radius - used).clamp_min(0) / free.clamp_min(1e-12)).sqrt().to(originals)
        return directions.mul_(scale).add_(originals).clamp_(0, 1)

    def ask(self, rows: Tensor, directions: Tensor, radii: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return [S, K] booleans: whether the points at `radii` [S, K] in `directions` [S, K, D] are misclassified.

        Only where `mask` [S, K] is true, and only as far as the budget goes, from the left; the others are false.
        """
        mask = torch.ones_like(radii, dtype=torch.bool) if mask is None else mask
        number = self._asked[rows].unsqueeze(1) + mask.cumsum(1)
        mask = mask & (number <= self._budget)
        self._asked[rows] += mask.sum(1)
        misclassified = torch.zeros_like(mask)
        places = mask.nonzero()
        for sample, probe in (part.unbind(1) for part in places.split(self._batch_size) if len(part)):
            owner = rows[sample]
            points = torch.cat(
                [
                    self.points(self.originals[rows[few]], directions[few, some], radii[few, some])
                    for few, some in zip(sample.split(self._block), probe.split(self._block), strict=True)
                ]
            )
            labels = torch.as_tensor(self._predict(points.view(-1, *self._shape)), device=points.device)
            wrong = labels.view(-1) != self._labels[owner]
            misclassified[sample, probe] = wrong
            sample, probe, owner, points = sample[wrong], probe[wrong], owner[wrong], points[wrong]
            order = 2 if self._norm == "l2" else torch.inf
            distances = torch.linalg.vector_norm(points - self.originals[owner], order, dim=1, dtype=torch.float64)
            distances = distances.to(points)
            self._curve[owner, number[sample, probe] - 1] = distances
            nearest = self._distances.scatter_reduce(0, owner, distances, "amin")
            nearer = (distances == nearest[owner]) & (distances < self._distances[owner])
            # Of equally near ones the first, which is written last.
            for index in nearer.nonzero().squeeze(1).flip(0).tolist():
                self._nearest[owner[index]], self._distances[owner[index]] = points[index], distances[index]
        return misclassified

    def boundary(
        self, rows: Tensor, directions: Tensor, radii: Tensor, misclassified: Tensor, step: Tensor, tolerance: Tensor
    ) -> Tensor:
        """Return the distances [S, K] to the boundary in `directions` [S, K, D], from its far side.

        Args:
            radii: [S, K], where the search begins.
            misclassified: [S, K], whether the points there are.
            step: [S], the first step of the search, which doubles until the boundary is crossed.
            tolerance: [S], how exact the distances are.
        """
        low, high = torch.where(misclassified, 0.0, radii), torch.where(misclassified, radii, torch.inf)
        step, tolerance = step.unsqueeze(1).expand_as(radii).clone(), tolerance.unsqueeze(1)
        while True:
            # A boundary twice as far away is as good as none.
            open_ = (high - low > tolerance) & (low < 2 * radii) & (self._asked[rows] < self._budget).unsqueeze(1)
            if not open_.any():
                return high
            outwards, inwards = high.isinf(), low == 0
            middle = torch.where(inwards, torch.maximum(high - step, high / 2), (low + high) / 2)
            middle = torch.where(outwards, low + step, middle)
            wrong = self.ask(rows, directions, middle, open_)
            high, low = torch.where(open_ & wrong, middle, high), torch.where(open_ & ~wrong, middle, low)
            step = torch.where(outwards | inwards, 2 * step, step)

    def shortest(self, rows: Tensor, directions: Tensor, radius: Tensor, tolerance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first of `directions` [S, K, D] to cross the boundary, and where, if nearer than `radius` [S].

        The number is -1 where none does. `tolerance` [S] is a share of the radius.
        """
        chosen = torch.full_like(rows, -1)
        # Directions are only worth a search if they are misclassified at the best distance so far.
        better = radius * (1 - tolerance)
        alive = self.ask(rows, directions, better.unsqueeze(1).expand(directions.shape[:2]))
        radius = radius.clone()
        while True:
            some = alive.any(1).nonzero().squeeze(1)
            if len(some) == 0:
                return chosen, radius
            # The one in the middle of those left.
            rank = alive[some].cumsum(1)
            pivot = (rank == (rank[:, -1:] + 1) // 2).int().argmax(1)
            best, exact = better[some], tolerance[some] * better[some]
            found = self.boundary(
                rows[some],
                directions[some, pivot].unsqueeze(1),
                best.unsqueeze(1),
                torch.ones_like(best, dtype=torch.bool).unsqueeze(1),
                4 * exact,
                exact,
            ).squeeze(1)
            chosen[some], radius[some] = pivot, found
            better[some] = found * (1 - tolerance[some])
            alive[some, pivot] = False
            alive[some] = self.ask(rows[some], directions[some], better[some].unsqueeze(1).expand_as(rank), alive[some])
