"""SZVR-G: zeroth-order ascent by scores, with variance reduction over samples and directions (arXiv:1805.11811)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from robust_nas.attacks import Attack, check_norm
from robust_nas.core.checks import check_at_least, check_choice
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import unit_images_and_labels
from robust_nas.core.seeds import generator_at
from robust_nas.models.frozen import frozen
from robust_nas.models.losses import margin
from robust_nas.models.scores import check_finite, scores
from robust_nas.threat import Norm, Pixels, ThreatModel, check_pixels

Reduction = Literal["memory", "snapshot", "none"]
"""The correction of a gradient's estimate: by the memory of earlier steps, by a snapshot, or none."""


@dataclass(frozen=True, kw_only=True)
class SZVRG(Attack):
    """Projected zeroth-order ascent on the margin (Liu et al. 2018, arXiv:1805.11811, algorithm 1), black-box.

    It asks the model for logits only. With f the largest other logit minus the label's, at the image moved by delta,
    the two-point estimate of its gradient, smoothed by a Gaussian of deviation mu, is

        G(delta) = mean over samples i and directions u of (f_i(delta + mu u) - f_i(delta)) / mu * u.

    Variance reduction subtracts, for the same samples and directions, what is known already, and adds its mean.

    "snapshot" is the paper's. An epoch estimates G from all samples and many directions at a snapshot of delta; each of
    its steps then goes along G_S(delta) - G_S(snapshot) + G(snapshot), with S a few of the same samples and directions,
    so that the snapshot's answers are used again and not asked for twice.

    "memory", the default, deviates: it keeps an estimate v_i of each image's gradient, and what it subtracts, the slope
    of v_i along u, takes no query. v_i moves to where it agrees with the answers of a step, the least it can, and the
    step goes along v_i, or along the mean of all if universal. The unbiased correction is D / K times as long, for D
    pixels and K directions, and its noise is larger than the error that it removes: that is why a snapshot gains
    little where D is large. Where [0, 1] cuts a move off, v_i is compared along the move that was made.

    The paper penalises the size of the perturbation; here it is projected onto the threat model's ball, and steps are
    of steepest ascent in its norm, as in the other attacks.

    Args:
        queries: the most images that the model is asked about for one image; on average over the batch, if universal.
        universal: whether to look for one perturbation for the whole batch, instead of one for each image.
        variance_reduction: "memory", "snapshot", or "none" for steps along the plain two-point estimate.
        directions: directions of a step; with "snapshot", some of the snapshot's.
        samples: images of a step, if universal.
        snapshot_directions: directions of an epoch's snapshot.
        inner_steps: steps of an epoch; the first goes along the snapshot's gradient and costs nothing more.
        smoothing: mu, in pixel units.
        step_size: step length in pixel units of [0, 1]; if not given, 0.4 epsilon with the memory and else
            epsilon / 20.
        batch_size: the most images in one forward pass.

    Raises:
        InputError: for a value outside its range, or more directions in a step than in its snapshot.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    queries: int = 5000
    universal: bool = False
    variance_reduction: Reduction = "memory"
    directions: int = 5
    samples: int = 1
    snapshot_directions: int = 100
    inner_steps: int = 20
    smoothing: Pixels = 0.003
    step_size: Pixels | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name in ("queries", "snapshot_directions", "directions", "samples", "inner_steps", "batch_size"):
            check_at_least(f"SZVRG.{name}", getattr(self, name), 1)
        check_choice("SZVRG.variance_reduction", self.variance_reduction, Reduction)
        object.__setattr__(self, "smoothing", check_pixels("SZVRG.smoothing", self.smoothing))
        if self.step_size is not None:
            object.__setattr__(self, "step_size", check_pixels("SZVRG.step_size", self.step_size))
        snapshot = self.variance_reduction == "snapshot"
        if snapshot and self.directions > self.snapshot_directions:
            raise InputError(
                f"SZVRG.directions are some of the snapshot's, at most {self.snapshot_directions}, but got "
                f"{self.directions}; raise snapshot_directions."
            )
        least = 1 + (self.snapshot_directions if snapshot else self.directions)
        if self.queries < least:
            raise InputError(
                f"SZVRG.queries must pay for one estimate of the gradient, {least}, but got {self.queries}."
            )

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return adversarial images [B, C, H, W], detached, inside `threat` around `images`.

        An image for itself is finished as soon as a point is misclassified. A universal perturbation is one change that
        is added to every image, then cut to [0, 1].

        Raises:
            InputError: for an l1 threat model.
        """
        images, labels = unit_images_and_labels(images, labels)
        check_norm(self, threat)
        if len(images) == 0:
            return images.clone()
        with frozen(model):
            run = _Ascent(self, model, images, labels, threat, seed)
            (run.epochs if self.variance_reduction == "snapshot" else run.steps)()
        return run.points(torch.arange(len(images), device=images.device))


class _Ascent:
    """The perturbation [P, D] of P = B images, or of P = 1 batch, on its way."""

    def __init__(
        self, attack: SZVRG, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, seed: int
    ) -> None:
        self.attack, self.model, self.threat, self.seed = attack, model, threat, seed
        self.images, self.labels = images, labels
        flat = images.flatten(1)
        self.delta = torch.zeros_like(flat[:1] if attack.universal else flat, dtype=torch.float64)
        self.memory = torch.zeros_like(flat, dtype=torch.float64)
        self.fooled = torch.zeros_like(labels, dtype=torch.bool)
        # All together, for a universal perturbation; else of each image that is not finished.
        self.asked, self.budget = 0, attack.queries * (len(images) if attack.universal else 1)
        # The memory averages over steps; without it, only short ones do.
        self.step_size = attack.step_size or threat.epsilon * (0.4 if attack.variance_reduction == "memory" else 0.05)

    def points(self, rows: Tensor) -> Tensor:
        """Return some of the images, perturbed."""
        images = self.images[rows]
        delta = self.delta.expand(len(rows), -1) if self.attack.universal else self.delta[rows]
        return self.threat.around(images).project(images + delta.view_as(images).to(images.dtype))

    def epochs(self) -> None:
        """Ascend from snapshot to snapshot."""
        attack, epoch = self.attack, 0
        while len(rows := self._left()) and self._affords(len(rows), attack.snapshot_directions):
            generator = generator_at(self.delta.device, self.seed, "epoch", epoch)
            directions = self._draw(attack.snapshot_directions, generator)
            snapshot = self.slopes(rows, directions)
            anchor = self.mean(snapshot, directions)
            self._ascend(rows, anchor)
            for _ in range(1, attack.inner_steps):
                # Some samples and directions of the snapshot, the same at both points.
                some = _subset(attack.snapshot_directions, attack.directions, generator)
                chosen = _subset(len(rows), attack.samples, generator) if attack.universal else self._still(rows)
                if len(chosen) == 0 or not self._affords(len(chosen), attack.directions):
                    break
                base = anchor if attack.universal else anchor[chosen]
                self._ascend(
                    rows[chosen], self.corrected(rows[chosen], directions[some], snapshot[chosen][:, some], base)
                )
            epoch += 1

    def steps(self) -> None:
        """Ascend along two-point estimates, corrected by the memory or not."""
        attack, step = self.attack, 0
        while len(rows := self._left()):
            directions = self._draw(attack.directions, generator_at(self.delta.device, self.seed, "step", step))
            if attack.universal:
                # All samples in turn, in another order each time.
                turn, place = divmod(step, -(-len(rows) // attack.samples))
                order = _subset(len(rows), len(rows), generator_at(self.delta.device, self.seed, "turn", turn))
                rows = order.split(attack.samples)[place]
            if not self._affords(len(rows), attack.directions):
                return
            if attack.variance_reduction == "memory":
                gradient = self.remembered(rows, directions)
            else:
                gradient = self.mean(self.slopes(rows, directions), directions)
            self._ascend(rows, gradient)
            step += 1

    def remembered(self, rows: Tensor, directions: Tensor) -> Tensor:
        """Return the estimate of the gradient, [S, D], or [1, D] over all samples if universal, with new answers."""
        points, slopes = self.points(rows), self.slopes(rows, directions)
        estimate = self.memory[rows]
        for direction, slope in zip(directions.view(-1, *points.shape[1:]), slopes.unbind(1), strict=True):
            made = (self._moved(points, direction) - points).flatten(1).double() / self.attack.smoothing
            error = slope - (estimate * made).sum(1)
            estimate = estimate + (error / made.square().sum(1).clamp_min(1e-30)).unsqueeze(1) * made
        self.memory[rows] = estimate
        return self.memory.mean(0, keepdim=True) if self.attack.universal else estimate

    def slopes(self, rows: Tensor, directions: Tensor) -> Tensor:
        """Return (f(delta + mu u) - f(delta)) / mu for each image and direction u [K, D], [S, K].

        K + 1 queries an image. In double precision: differences of float32 logits are all noise beside their rounding.
        """
        attack, points = self.attack, self.points(rows)
        moves = torch.cat([torch.zeros_like(directions[:1]), directions]).view(-1, *points.shape[1:])
        values = torch.empty(len(rows), len(moves), dtype=torch.float64, device=points.device)
        pairs = torch.cartesian_prod(
            torch.arange(len(rows), device=points.device), torch.arange(len(moves), device=points.device)
        )
        for sample, move in (part.unbind(1) for part in pairs.split(attack.batch_size)):
            logits = scores(self.model, self._moved(points[sample], moves[move]))
            check_finite(attack, logits)
            values[sample, move] = margin(logits.double(), self.labels[rows[sample]])
        self.fooled[rows] |= values[:, 0] > 0
        self.asked += len(moves) * (len(rows) if attack.universal else 1)
        return (values[:, 1:] - values[:, :1]) / attack.smoothing

    def corrected(self, rows: Tensor, directions: Tensor, snapshot: Tensor, anchor: Tensor) -> Tensor:
        """Return G_S(delta) - G_S(snapshot) + G(snapshot); `snapshot` [S, K] has slopes, `anchor` is the last term."""
        return self.mean(self.slopes(rows, directions) - snapshot, directions) + anchor

    def mean(self, slopes: Tensor, directions: Tensor) -> Tensor:
        """Return the estimate of the gradient [S, D], or [1, D] over all samples if universal."""
        gradients = slopes @ directions.double() / len(directions)
        return gradients.mean(0, keepdim=True) if self.attack.universal else gradients

    def _moved(self, points: Tensor, directions: Tensor) -> Tensor:
        return (points + self.attack.smoothing * directions).clamp(0, 1)

    def _affords(self, rows: int, directions: int) -> bool:
        return self.asked + (directions + 1) * (rows if self.attack.universal else 1) <= self.budget

    def _left(self) -> Tensor:
        return (
            torch.arange(len(self.images), device=self.delta.device)
            if self.attack.universal
            else ((~self.fooled).nonzero().squeeze(1))
        )

    def _still(self, rows: Tensor) -> Tensor:
        return (~self.fooled[rows]).nonzero().squeeze(1)

    def _draw(self, count: int, generator: torch.Generator) -> Tensor:
        # The same directions for every image: an image's result does not depend on its neighbours.
        return torch.empty(count, self.delta.shape[1], device=self.delta.device).normal_(generator=generator)

    def _ascend(self, rows: Tensor, gradient: Tensor) -> None:
        """Step along `gradient` and project onto the norm's ball, those of `rows` that are not fooled."""
        if self.attack.universal:
            rows = rows.new_zeros(1)
        else:
            still = self._still(rows)
            rows, gradient = rows[still], gradient[still]
        epsilon = self.threat.epsilon
        if self.threat.norm == "linf":
            self.delta[rows] = (self.delta[rows] + self.step_size * gradient.sign()).clamp(-epsilon, epsilon)
        else:
            unit = gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-30)
            moved = self.delta[rows] + self.step_size * unit
            self.delta[rows] = moved * (epsilon / moved.norm(dim=1, keepdim=True).clamp_min(epsilon))


def _subset(total: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(total, device=generator.device, generator=generator)[:count]
