"""Projected gradient descent (Madry et al. 2018, arXiv:1706.06083)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robust_nas.attacks._ascents import Ascent, Ascents, Climbing
from robust_nas.attacks._leaving import check_leaving, due
from robust_nas.core.checks import check_at_least, check_choice
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import unit_images_and_labels
from robust_nas.models.frozen import BatchNorm, frozen
from robust_nas.models.losses import choose, per_sample
from robust_nas.models.scores import check_finite, input_gradient, misclassified, scores
from robust_nas.threat import Pixels, ThreatModel, check_pixels

PGDLoss = Literal["cross_entropy", "margin", "dlr", "kl"]
Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class Underway:
    """An ascent that can go on, and the points that have fooled the model on its way.

    Args:
        ascent: its start and its objective.
        points: where it is, [B, C, H, W].
        velocity: the accumulated gradient, [B, C, H, W].
        fooling: each sample's first misclassified point [B, C, H, W], where there was one.
        fooled: whether there was one, [B].
    """

    ascent: Ascent
    points: Tensor
    velocity: Tensor
    fooling: Tensor
    fooled: Tensor

    def __getitem__(self, index: Tensor) -> Underway:
        """Return the ascents of some of the samples, by a mask [B] or by their numbers."""
        ascent = replace(
            self.ascent,
            **{name: getattr(self.ascent, name)[index] for name in ("start", "images", "labels", "against", "ball")},
        )
        rest = (self.points, self.velocity, self.fooling, self.fooled)
        return Underway(ascent, *(part[index] for part in rest))


@dataclass(frozen=True, kw_only=True)
class PGD(Climbing):
    """Projected gradient ascent on the loss inside the ball.

    From a random point of the ball, repeat `steps` times: move by `step_size` in the direction of steepest ascent,
    then project back onto the ball and onto valid images (Madry et al. 2018, arXiv:1706.06083, section 2.1). One
    start costs exactly `steps` forward and backward passes and gives the last point. Several starts or targets cost
    one more forward pass each and give, sample by sample, the strongest of the last points: a misclassified one if
    there is one, then the one of the highest loss. Targets and "kl" cost one forward pass of the clean images.

    Args:
        step_size: length of the (first) step in pixel units of [0, 1]; by default 2.5 epsilon / steps, or twice that
            where steps fall, with which a point can travel from any start to any point of the ball.
        steps: gradient steps; 0 leaves the random start.
        restarts: independent random starts; a sample that one has fooled is left out of the next ones.
        random_start: whether to start at a random point of the ball, or at the image itself.
        loss: "cross_entropy"; "margin": the largest other logit minus the label's; "dlr": the difference of logits
            ratio (Croce and Hein 2020, arXiv:2003.01690), from 3 classes on; "kl": the divergence from the prediction
            for the clean image (TRADES, Zhang et al. 2019, arXiv:1901.08573), which needs a random start.
        targets: 0, or how many of the classes with the next largest logits to aim at, each in an ascent of its own
            (MultiTargeted, Gowal et al. 2019, arXiv:1910.09338); any wrong prediction counts. "dlr" needs 4 classes.
        random_target: whether to aim at one class other than the label, drawn sample by sample and start by start, each
            as likely (the attacker of Xie and Yuille 2020, arXiv:1906.03787); any wrong prediction counts.
        clean_start: the probability with which a sample's ascent starts at the image itself instead of a random point
            (0.2 there).
        momentum: the share of the accumulated gradient that a step keeps; each gradient enters divided by its l1 norm
            (MI-FGSM, Dong et al. 2018, arXiv:1710.06081, algorithm 1).
        schedule: "constant" steps, or "cosine": falling from `step_size` to almost 0 along half a cosine.
        early_stop: whether a sample stays at its first misclassified point and leaves the batch. It saves work and
            fools no fewer samples, but the points are not the strongest ones.
        batch_norm: "running" or "batch" statistics while attacking. With "batch" no sample leaves the batch.

    Raises:
        InputError: for a value outside its range, or settings that contradict each other.
    """

    step_size: Pixels | None = None
    steps: int = 20
    restarts: int = 1
    random_start: bool = True
    loss: PGDLoss = "cross_entropy"
    targets: int = 0
    random_target: bool = False
    clean_start: float = 0.0
    momentum: float = 0.0
    schedule: Schedule = "constant"
    early_stop: bool = False
    batch_norm: BatchNorm = "running"

    def __post_init__(self) -> None:
        if self.step_size is not None:
            object.__setattr__(self, "step_size", check_pixels("PGD.step_size", self.step_size))
        check_at_least("PGD.steps", self.steps, 0)
        check_at_least("PGD.restarts", self.restarts, 1)
        check_at_least("PGD.targets", self.targets, 0)
        check_choice("PGD.loss", self.loss, PGDLoss)
        check_choice("PGD.schedule", self.schedule, Schedule)
        check_choice("PGD.batch_norm", self.batch_norm, BatchNorm)
        check_leaving("PGD", self.early_stop, self.batch_norm)
        if not self.momentum >= 0:
            raise InputError(f"PGD.momentum must be at least 0, but got {self.momentum}.")
        if self.restarts > 1 and not self.random_start:
            raise InputError(
                f"PGD.restarts must be 1 without a random start (every start is the image itself), "
                f"but got {self.restarts}; set random_start=true."
            )
        if not 0 <= self.clean_start <= 1:
            raise InputError(f"PGD.clean_start is a share of the samples in [0, 1], but got {self.clean_start}.")
        if self.clean_start and not self.random_start:
            raise InputError(
                f"PGD.clean_start is the share of the samples that do not start at random, but with random_start=false "
                f"none does; set clean_start=0 or random_start=true (got {self.clean_start})."
            )
        if self.random_target and self.targets:
            raise InputError(
                f"PGD.random_target draws the class to aim at, but targets={self.targets} takes the next largest; set "
                "targets=0 or random_target=false."
            )
        if self.loss == "kl" and (self.random_target or self.clean_start):
            raise InputError(
                "PGD.loss 'kl' has no target, and no gradient at the image itself; set random_target=false and "
                "clean_start=0."
            )
        if self.loss == "kl" and (self.targets or not self.random_start):
            raise InputError(
                "PGD.loss 'kl' has no target, and no gradient at the image itself; set targets=0 and random_start=true."
            )

    @property
    def classes(self) -> int:
        """The number of classes that its loss compares."""
        return 4 if self.random_target and self.loss == "dlr" else super().classes

    def continue_from(
        self,
        model: nn.Module,
        points: Tensor | None,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        *,
        seed: int = 0,
    ) -> Tensor:
        """Attack as `perturb` does, with `points` [B, C, H, W] of the ball, if any, as the first start."""
        images, labels = unit_images_and_labels(images, labels)
        if len(images) == 0:
            return images.clone()

        def climb(ascent: Ascent) -> tuple[Tensor, Tensor, Tensor]:
            points = self._climb(model, ascent, threat.epsilon)
            logits = scores(model, points)
            check_finite(self, logits)
            return points, misclassified(logits, ascent.labels), ascent.loss(logits, ascent.against)

        with frozen(model, self.batch_norm):
            ascents = self._ascents(model, points, images, labels, threat, seed)
            if ascents.count == 1:
                return self._climb(model, ascents.begin(0, slice(None)), threat.epsilon)
            return ascents.strongest(climb, leave=self.batch_norm == "running")

    def begin(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Underway:
        """Begin the first ascent of `perturb`, for `go_on`; further starts and targets are not begun."""
        images, labels = unit_images_and_labels(images, labels)
        with frozen(model, self.batch_norm):
            ascent = self._ascents(model, None, images, labels, threat, seed).begin(0, slice(None))
        start = ascent.start
        return Underway(ascent, start, torch.zeros_like(start), start.clone(), torch.zeros_like(labels).bool())

    def go_on(self, model: nn.Module, underway: Underway, step_size: float, steps: int) -> Underway:
        """Take `steps` constant steps of an ascent, and keep the first misclassified point of each sample on the way.

        Its points are, bit by bit, those of `perturb` with as many steps of this size. The last ones are not looked at:
        that would cost a pass.
        """
        ascent, points, velocity = underway.ascent, underway.points, underway.velocity
        fooling, fooled = underway.fooling, underway.fooled
        with frozen(model, self.batch_norm):
            for _ in range(steps):
                logits, _, gradient = input_gradient(model, points, ascent.against, ascent.loss)
                wrong = misclassified(logits, ascent.labels) & ~fooled
                fooling, fooled = choose(wrong, points, fooling), fooled | wrong
                gradient = velocity = self._direction(gradient, velocity)
                points = ascent.ball.ascend(points, gradient, step_size)
        if steps:
            check_finite(self, logits, points)
        return Underway(ascent, points, velocity, fooling, fooled)

    def _ascents(
        self,
        model: nn.Module,
        points: Tensor | None,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        seed: int,
    ) -> Ascents:
        return Ascents(
            self,
            model,
            images,
            labels,
            threat,
            seed,
            restarts=self.restarts,
            loss=self.loss,
            targets=self.targets,
            random_target=self.random_target,
            random_start=self.random_start,
            clean_start=self.clean_start,
            first=points,
        )

    def _direction(self, gradient: Tensor, velocity: Tensor) -> Tensor:
        """Return the direction of a step: the gradient, or with momentum what has accumulated."""
        if not self.momentum:
            return gradient
        length = gradient.abs().flatten(1).sum(1).clamp_min(1e-37)
        return self.momentum * velocity + gradient / per_sample(length)

    def _climb(self, model: nn.Module, ascent: Ascent, epsilon: float) -> Tensor:
        """Return the last point of one ascent, or with `early_stop` the first misclassified one."""
        points, labels, against, ball = ascent.start, ascent.labels, ascent.against, ascent.ball
        first_step = self.step_size or (5 if self.schedule == "cosine" else 2.5) * epsilon / max(self.steps, 1)
        velocity = torch.zeros_like(points)
        found, left = points.clone(), torch.arange(len(points), device=points.device)
        for step in range(self.steps):
            logits, _, gradient = input_gradient(model, points, against, ascent.loss)
            gradient = velocity = self._direction(gradient, velocity)
            falling = (1 + math.cos(math.pi * step / self.steps)) / 2 if self.schedule == "cosine" else 1.0
            ascended = ball.ascend(points, gradient, first_step * falling)
            if self.early_stop:
                wrong = misclassified(logits, labels)
                ascended = choose(wrong, points, ascended)
                if due(points, step) and wrong.any():
                    check_finite(self, logits)
                    found[left[wrong]], stay = points[wrong], ~wrong
                    left, labels, against, ball = left[stay], labels[stay], against[stay], ball[stay]
                    ascended, velocity = ascended[stay], velocity[stay]
            points = ascended
            if len(points) == 0:
                return found
        if self.steps:
            # A NaN at any step has made the point NaN, and every later one.
            check_finite(self, logits, points)
        found[left] = points
        return found
