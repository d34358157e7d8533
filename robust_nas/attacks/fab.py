"""FAB: the fast adaptive boundary attack, for the smallest change (Croce and Hein 2020, arXiv:1907.02044)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_nas.attacks import Minimising
from robust_nas.attacks._draws import Draws
from robust_nas.attacks._leaving import due, looking_is_free, next_best, next_targets, superseded
from robust_nas.core.checks import check_at_least
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import unit_images_and_labels
from robust_nas.models.frozen import frozen
from robust_nas.models.losses import choose, margin, per_sample, targeted_margin
from robust_nas.models.scores import check_finite, input_gradient, misclassified, scores
from robust_nas.threat import Norm, ThreatModel

_LARGEST_ALPHA = 0.1  # alpha_max, the most weight of the original image
_OVERSHOOT = 1.05  # eta
_BACKWARD = 0.9  # beta
_SEARCH_STEPS = 3
_NEWTON_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class FAB(Minimising):
    """FAB-T, the targeted fast adaptive boundary attack (Croce and Hein 2020, arXiv:1907.02044, algorithm 1).

    Each step goes to the boundary between label and target, linearised, by the shortest way inside [0, 1], with a
    bias towards the image; a misclassified point is remembered if it is the nearest so far, and pulled back towards
    the image. Only the boundary to the target of the run is looked at, as in AutoAttack (arXiv:2003.01690, section
    5), so that a step costs two forward passes and one backward pass whatever the number of classes.

    `perturb` returns a misclassified point inside the threat model where one is found, and the image where none is;
    `closest` the nearest misclassified point, however far.

    Args:
        steps: of one run.
        restarts: runs per target; the first starts at the image, the others at random points half as far away as the
            nearest misclassified one of the runs before (epsilon, where none is nearer).
        targets: number of classes with the next largest logits to aim at, each in runs of its own.

    Raises:
        InputError: for a value outside its range.
    """

    steps: int = 100
    restarts: int = 1
    targets: int = 9

    def __post_init__(self) -> None:
        check_at_least("FAB.steps", self.steps, 1)
        check_at_least("FAB.restarts", self.restarts, 1)
        check_at_least("FAB.targets", self.targets, 1)

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return adversarial images [B, C, H, W], detached, inside `threat` around `images`.

        A sample leaves the batch with its first misclassified point inside `threat`.
        """
        images, labels = unit_images_and_labels(images, labels)
        found, _ = self._search(model, images, labels, threat, seed, enough=True)
        inside = threat.around(images).contains(found)
        return choose(inside, found, images)

    def closest(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified points found [B, C, H, W], and how far they are in the threat's norm [B].

        The distance is 0 where the image itself is misclassified, and infinite, with the image as the point, where
        nothing was found. Epsilon is only the radius of the random restarts.
        """
        images, labels = unit_images_and_labels(images, labels)
        return self._search(model, images, labels, threat, seed, enough=False)

    def nearest(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return the nearest misclassified points that are found [B, C, H, W], or the images."""
        return self.closest(model, images, labels, threat, seed=seed)[0]

    def _search(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, seed: int, *, enough: bool
    ) -> tuple[Tensor, Tensor]:
        best, distance = images.clone(), torch.full((len(images),), torch.inf, dtype=torch.float64).to(images.device)
        if len(images) == 0:
            return best, distance
        radius = threat.epsilon if enough else 0.0
        ball, draws = threat.around(images), Draws(images, seed)
        with frozen(model):
            logits = scores(model, images)
            check_finite(self, logits)
            if logits.shape[1] < 2:
                raise InputError(f"FAB needs at least 2 classes, but the model has {logits.shape[1]}.")
            distance[misclassified(logits, labels)] = 0
            targets = next_best(logits, labels, self.targets)

            def begin(restart: int, rank: int, left: Tensor) -> Tensor:
                start = images[left]
                if restart:
                    number = restart * targets.shape[1] + rank
                    away = ball[left].at(draws[left].uniform(images[0].numel() + 1, number)) - start
                    reach = known[left].clamp_max(threat.epsilon) / 2 / threat.lengths(away).clamp_min(1e-30)
                    start = (start + per_sample(reach).to(away.dtype) * away).clamp(0, 1)
                return start

            for restart in range(self.restarts):
                known, rank = distance.clone(), 0
                while rank < targets.shape[1]:
                    left = (distance > radius).nonzero().squeeze(1)
                    if len(left) == 0:
                        break
                    together = next_targets(rank, targets.shape[1], images[left])
                    starts = torch.cat([begin(restart, each, left) for each in together])
                    pairs = torch.cat([torch.stack([labels[left], targets[left, each]], dim=1) for each in together])
                    runs = self._run(model, starts, images, pairs, left, best, distance, threat, radius)
                    for found, shortest in zip(*(part.split(len(left)) for part in runs), strict=True):
                        nearer = (shortest < distance[left]) & (distance[left] > radius)
                        best[left[nearer]], distance[left[nearer]] = found[nearer], shortest[nearer]
                    rank += len(together)
            # Points inside the ball already are not taken to its very boundary.
            far = (distance > radius).nonzero().squeeze(1)
            if len(far):
                best[far], distance[far] = self._final_search(
                    model, best[far], distance[far], images[far], labels[far], threat
                )
            return best, distance

    def _run(
        self,
        model: nn.Module,
        points: Tensor,
        images: Tensor,
        pairs: Tensor,
        which: Tensor,
        best: Tensor,
        distance: Tensor,
        threat: ThreatModel,
        radius: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified points after one run from `points` towards the targets in `pairs` [N, 2].

        N is a multiple of the number of images in `which`: one run of them per target, side by side.
        """
        copies = len(points) // len(which)
        which = which.repeat(copies)
        images, best, distance = images[which], best[which], distance[which]
        nearest, shortest = best.clone(), distance.clone()
        left = torch.arange(len(points), device=points.device)
        for step in range(self.steps):
            logits, values, gradient = input_gradient(model, points, pairs, targeted_margin)
            # The linearised boundary is {z: values + <gradient, z - points> = 0}; from the image, it is elsewhere.
            values = values.to(points.dtype)
            offset = (gradient * (points - images)).flatten(1).sum(1)
            change = _to_plane(points, gradient, values, threat.norm)
            change_original = _to_plane(images, gradient, values - offset, threat.norm)
            # Equation 9: the nearer the boundary is to the point than to the image, the less weight has the image.
            size, size_original = threat.lengths(change), threat.lengths(change_original)
            alpha = (size / (size + size_original).clamp_min(1e-30)).clamp_max(_LARGEST_ALPHA)
            weight = per_sample(alpha).to(points.dtype)
            forward = points + _OVERSHOOT * change
            points = ((1 - weight) * forward + weight * (images + _OVERSHOOT * change_original)).clamp(0, 1)

            wrong = misclassified(scores(model, points), pairs[:, 0])
            away = threat.lengths(points.double() - images.double())
            nearer = wrong & (away < distance)
            best, distance = choose(nearer, points, best), torch.where(nearer, away, distance)
            points = choose(wrong, images + _BACKWARD * (points - images), points)
            if due(points, step) and (distance <= radius).any():
                nearest[left], shortest[left] = best, distance
                stay = ~superseded(shortest <= radius, copies)[left]
                points, images, pairs, left = points[stay], images[stay], pairs[stay], left[stay]
                best, distance = best[stay], distance[stay]
                if len(left) == 0:
                    return nearest, shortest
        check_finite(self, logits, points)
        nearest[left], shortest[left] = best, distance
        return nearest, shortest

    def _final_search(
        self, model: nn.Module, best: Tensor, distance: Tensor, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> tuple[Tensor, Tensor]:
        """Return nearer misclassified points on the segments from the images to `best` (appendix A.3).

        The margin is taken for linear between the ends, of which the far one is misclassified: its zero is tried, and
        replaces the end on its side. Places on a segment are shares of it.
        """
        low, high = torch.zeros_like(distance), torch.ones_like(distance)
        below, beyond = (margin(scores(model, points), labels).double() for points in (images, best))
        nearest = best
        for _ in range(_SEARCH_STEPS):
            # The paper tries the zero itself, where rounding would decide; this is a thousandth further.
            place = low + (high - low) * (below / (below - beyond).clamp_max(-1e-30)).clamp(0, 1) + 1e-3
            place = torch.minimum(place, high)
            tried = (images + per_sample(place).to(images.dtype) * (best - images)).clamp(0, 1)
            logits = scores(model, tried)
            values = margin(logits, labels).double()
            # A misclassified image stays as it is.
            wrong = misclassified(logits, labels) & (distance > 0)
            nearest = choose(wrong, tried, nearest)
            high, beyond = torch.where(wrong, place, high), torch.where(wrong, values, beyond)
            low, below = torch.where(wrong, low, place), torch.where(wrong, below, values)
        return nearest, torch.where(distance.isfinite(), threat.lengths(nearest - images), distance)


def _to_plane(points: Tensor, normal: Tensor, value: Tensor, norm: Norm) -> Tensor:
    """Return the shortest change [B, C, H, W] in the norm that makes value + <normal, change> zero.

    It keeps the points in [0, 1] (section 2.2). Where no point of the box is on the plane, it leads to the corner that
    is nearest to it.
    """
    # Only ratios matter; scaled, the products of tiny gradients are not rounded to zero.
    scale = normal.abs().flatten(1).amax(1, keepdim=True).clamp_min(1e-37)
    w, needed = normal.flatten(1) / scale, (value.unsqueeze(1) / scale).abs()
    sign = -w.sign() * value.sign().unsqueeze(1)
    flat = points.flatten(1)
    room, w = torch.where(sign > 0, 1 - flat, flat), w.abs()
    if norm == "l1":
        # The steepest pixels go to their ends, one after the other.
        steepness, order = w.sort(dim=1, descending=True)
        gain = steepness * room.gather(1, order)
        gain = torch.minimum(gain, (needed - (gain.cumsum(1) - gain)).clamp_min(0))
        length = torch.zeros_like(gain).scatter(1, order, gain / steepness.clamp_min(1e-30))
    else:
        # Every pixel goes min(rate * time, room), and sum_i w_i min(rate_i * time, room_i) is concave in the time, and
        # linear until the next pixel reaches its end: Newton's method comes from below, and in a few steps, without the
        # sort that the authors have.
        rate = w if norm == "l2" else w.sign()
        speed, time, length = w * rate, torch.zeros_like(needed), torch.zeros_like(w)
        for _ in range(_NEWTON_STEPS):
            missing = needed - (w * length).sum(1, keepdim=True)
            moving = (speed * (length < room)).sum(1, keepdim=True)
            # With nothing left to move, the corner is the end.
            later = (time + missing.clamp_min(0) / moving.clamp_min(1e-30)).clamp_max(1e30)
            before, time, length = time, later, torch.minimum(rate * later, room)
            if looking_is_free(points) and (time <= before * (1 + 1e-6)).all():
                break
    return (sign * length).view_as(points)
