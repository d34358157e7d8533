"""Projected gradient descent (Madry et al. 2018, arXiv:1706.06083)."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
        if self.loss == "kl" and (self.targets or not self.random_start):
            raise InputError(
                "PGD.loss 'kl' has no target, and no gradient at the image itself; set targets=0 and random_start=true."
            )

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
            ascents = Ascents(
                self,
                model,
                images,
                labels,
                threat,
                seed,
                restarts=self.restarts,
                loss=self.loss,
                targets=self.targets,
                random_start=self.random_start,
                first=points,
            )
            if ascents.count == 1:
                return self._climb(model, ascents.begin(0, slice(None)), threat.epsilon)
            return ascents.strongest(climb, leave=self.batch_norm == "running")

    def _climb(self, model: nn.Module, ascent: Ascent, epsilon: float) -> Tensor:
        """Return the last point of one ascent, or with `early_stop` the first misclassified one."""
        points, labels, against, ball = ascent.start, ascent.labels, ascent.against, ascent.ball
        first_step = self.step_size or (5 if self.schedule == "cosine" else 2.5) * epsilon / max(self.steps, 1)
        velocity = torch.zeros_like(points)
        found, left = points.clone(), torch.arange(len(points), device=points.device)
        for step in range(self.steps):
            logits, _, gradient = input_gradient(model, points, against, ascent.loss)
            if self.momentum:
                length = gradient.abs().flatten(1).sum(1).clamp_min(1e-37)
                velocity = gradient = self.momentum * velocity + gradient / per_sample(length)
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
