"""Auto-PGD: projected gradient ascent that sets its own step size (Croce and Hein 2020, arXiv:2003.01690)."""

from __future__ import annotations

import math
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
)
from robust_nas.seeds import generator_at
from robust_nas.threat import ThreatModel

APGDLoss = Literal["cross_entropy", "dlr"]

_MOMENTUM = 0.75  # alpha in algorithm 1
_RHO = 0.75


@dataclass(frozen=True, kw_only=True)
class APGD:
    """Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1), from random starts.

    Ascent with momentum whose step starts at 2 epsilon; at fixed checkpoints a sample whose loss has not risen often
    enough goes back to its best point with half the step. The result is, sample by sample, a misclassified point if
    any was visited, and the visited point of the highest loss otherwise.

    Args:
        steps: gradient steps per start; one start costs one forward and backward pass more.
        restarts: independent random starts; a sample that one has fooled is left out of the next ones.
        loss: "cross_entropy", or "dlr": the difference of logits ratio, which needs at least 3 classes.
        batch_norm: "running" or "batch" statistics while attacking. With "batch" no sample leaves the batch.

    Raises:
        InputError: for a value outside its range.
    """

    steps: int = 100
    restarts: int = 1
    loss: APGDLoss = "cross_entropy"
    batch_norm: BatchNorm = "running"

    def __post_init__(self) -> None:
        check_at_least("APGD.steps", self.steps, 1)
        check_at_least("APGD.restarts", self.restarts, 1)
        check_choice("APGD.loss", self.loss, APGDLoss)
        check_choice("APGD.batch_norm", self.batch_norm, BatchNorm)

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return adversarial images [B, C, H, W], detached, inside `threat` around `images`."""
        images = images.detach()
        if len(images) == 0:
            return images.clone()
        ball = threat.around(images)
        best, fooled = images.clone(), torch.zeros_like(labels, dtype=torch.bool)
        highest = torch.full_like(labels, -torch.inf, dtype=torch.float64)
        with frozen(model, self.batch_norm):
            for restart in range(self.restarts):
                # Drawn for the whole batch: a sample's start does not depend on which others have left.
                start = ball.random(generator_at(images.device, seed, restart))
                left = (~fooled if self.batch_norm == "running" else torch.ones_like(fooled)).nonzero().squeeze(1)
                if len(left) == 0:
                    break
                points, wrong, losses = self._climb(model, start[left], images[left], labels[left], threat)
                stronger = (wrong & ~fooled[left]) | ((wrong == fooled[left]) & (losses > highest[left]))
                chosen = left[stronger]
                best[chosen], fooled[chosen], highest[chosen] = points[stronger], wrong[stronger], losses[stronger]
        return best

    def _climb(
        self, model: nn.Module, start: Tensor, images: Tensor, labels: Tensor, threat: ThreatModel
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the strongest point of one ascent [B, C, H, W], whether it is misclassified [B], and its loss [B]."""
        ball, loss = threat.around(images), LOSSES[self.loss]

        def visit(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits, losses, gradient = input_gradient(model, points, labels, loss)
            return misclassified(logits, labels), losses.double(), gradient

        previous = current = start
        wrong, losses, gradient = visit(current)
        # Lines 4-5: the best point so far by the loss alone, to which a sample goes back.
        best, best_losses, best_gradient = current, losses, gradient
        strongest, strongest_wrong, strongest_losses = current, wrong, losses
        step_size = torch.full_like(losses, 2 * threat.epsilon).to(images.dtype)
        # A NaN stays in the sum, whichever point the sample goes back to.
        rises, total = torch.zeros_like(losses), losses.clone()
        # What the second condition compares with: the last checkpoint's best loss, and whether it halved the step.
        checked_losses, halved = losses, torch.ones_like(wrong)
        checkpoints, last_check = set(checkpoint_steps(self.steps)), 0

        for step in range(1, self.steps + 1):
            # Lines 3 and 7: z = P(x + eta grad f(x)).
            ascended = ball.ascend(current, gradient, _per_sample(step_size))
            # Line 8: x' = P(x + alpha (z - x) + (1 - alpha) (x - x_previous)); the first step has no momentum.
            if step > 1:
                momentum = _MOMENTUM * (ascended - current) + (1 - _MOMENTUM) * (current - previous)
                ascended = ball.project(current + momentum)
            previous, current, earlier_losses = current, ascended, losses
            wrong, losses, gradient = visit(current)
            rises += losses > earlier_losses
            total += losses

            # Lines 9-10: keep the best point.
            better = losses > best_losses
            best, best_losses = _choose(better, current, best), torch.where(better, losses, best_losses)
            best_gradient = _choose(better, gradient, best_gradient)
            stronger = (wrong & ~strongest_wrong) | ((wrong == strongest_wrong) & (losses > strongest_losses))
            strongest = _choose(stronger, current, strongest)
            strongest_wrong, strongest_losses = strongest_wrong | wrong, torch.where(stronger, losses, strongest_losses)

            if step in checkpoints:
                # Lines 11-13, condition 1: the loss rose in fewer than rho of the steps since the last checkpoint.
                # Condition 2: neither the step size nor the best loss has changed since then.
                rare, stuck = rises < _RHO * (step - last_check), ~halved & (best_losses <= checked_losses)
                halved = rare | stuck
                step_size = torch.where(halved, step_size / 2, step_size)
                current, gradient = _choose(halved, best, current), _choose(halved, best_gradient, gradient)
                losses = torch.where(halved, best_losses, losses)
                checked_losses, last_check = best_losses, step
                rises = torch.zeros_like(rises)
        check_finite(self, total)
        return strongest, strongest_wrong, strongest_losses


def checkpoint_steps(steps: int) -> list[int]:
    """Return the steps w_j = ceil(p_j N) < N at which step sizes are reviewed (section 3.1).

    p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).
    """
    # In hundredths, so that the sums are exact.
    before, now, found = 0, 22, []
    while now < 100:
        found.append(math.ceil(now * steps / 100))
        before, now = now, now + max(now - before - 3, 6)
    return sorted(set(found) - {steps})


def _per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _choose(condition: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(_per_sample(condition), one, other)
