"""Projected gradient descent (Madry et al. 2018, arXiv:1706.06083)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robust_nas.attacks._model_state import (
    LOSSES,
    BatchNorm,
    check_at_least,
    check_choice,
    check_finite,
    frozen,
    input_gradient,
    misclassified,
    scores,
)
from robust_nas.errors import InputError
from robust_nas.seeds import generator_at
from robust_nas.threat import Pixels, ThreatModel, check_pixels

PGDLoss = Literal["cross_entropy", "margin"]


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Projected gradient ascent on the loss inside the ball.

    From a random point of the ball, repeat `steps` times: move by `step_size` in the direction of steepest ascent,
    then project back onto the ball and onto valid images (Madry et al. 2018, arXiv:1706.06083, section 2.1). One
    start costs exactly `steps` forward and backward passes and gives the last point. Several starts cost one more
    forward pass each and give, sample by sample, the strongest of the last points: a misclassified one if there is
    one, then the one of the highest loss.

    Args:
        step_size: step length in pixel units of [0, 1]; by default 2.5 epsilon / steps, with which a point can
            travel from any start to any point of the ball.
        steps: gradient steps; 0 leaves the random start.
        restarts: independent random starts; a sample that one has fooled is left out of the next ones.
        random_start: whether to start at a random point of the ball, or at the image itself.
        loss: "cross_entropy", or "margin": the largest other logit minus the label's.
        batch_norm: "running" or "batch" statistics while attacking. With "batch" no sample leaves the batch.

    Raises:
        InputError: for a value outside its range, or restarts that would all be the same.
    """

    step_size: Pixels | None = None
    steps: int = 20
    restarts: int = 1
    random_start: bool = True
    loss: PGDLoss = "cross_entropy"
    batch_norm: BatchNorm = "running"

    def __post_init__(self) -> None:
        if self.step_size is not None:
            object.__setattr__(self, "step_size", check_pixels("PGD.step_size", self.step_size))
        check_at_least("PGD.steps", self.steps, 0)
        check_at_least("PGD.restarts", self.restarts, 1)
        check_choice("PGD.loss", self.loss, PGDLoss)
        check_choice("PGD.batch_norm", self.batch_norm, BatchNorm)
        if self.restarts > 1 and not self.random_start:
            raise InputError(
                f"PGD.restarts must be 1 without a random start (every start is the image itself), "
                f"but got {self.restarts}; set random_start=true."
            )

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return adversarial images [B, C, H, W], detached, inside `threat` around `images`."""
        images = images.detach()
        if len(images) == 0:
            return images.clone()
        ball = threat.around(images)
        with frozen(model, self.batch_norm):
            if self.restarts == 1:
                start = ball.random(generator_at(images.device, seed, 0)) if self.random_start else images.clone()
                return self._climb(model, start, images, labels, threat)
            best, fooled = images.clone(), torch.zeros_like(labels, dtype=torch.bool)
            highest = torch.full_like(labels, -torch.inf, dtype=torch.float64)
            for restart in range(self.restarts):
                # Drawn for the whole batch: a sample's start does not depend on which others have left.
                start = ball.random(generator_at(images.device, seed, restart))
                left = (~fooled if self.batch_norm == "running" else torch.ones_like(fooled)).nonzero().squeeze(1)
                if len(left) == 0:
                    break
                points = self._climb(model, start[left], images[left], labels[left], threat)
                logits = scores(model, points)
                check_finite(self, logits)
                losses, wrong = LOSSES[self.loss](logits, labels[left]).double(), misclassified(logits, labels[left])
                stronger = (wrong & ~fooled[left]) | ((wrong == fooled[left]) & (losses > highest[left]))
                chosen = left[stronger]
                best[chosen], fooled[chosen], highest[chosen] = points[stronger], wrong[stronger], losses[stronger]
            return best

    def _climb(self, model: nn.Module, points: Tensor, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        """Return the last point of one ascent from `points`."""
        if self.steps == 0:
            return points
        ball, step_size = threat.around(images), self.step_size or 2.5 * threat.epsilon / self.steps
        for _ in range(self.steps):
            logits, _, gradient = input_gradient(model, points, labels, LOSSES[self.loss])
            points = ball.ascend(points, gradient, step_size)
        # A NaN at any step has made the point NaN, and every later one.
        check_finite(self, logits, points)
        return points
