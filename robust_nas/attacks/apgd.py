"""Auto-PGD: projected gradient ascent that sets its own step size (Croce and Hein 2020, arXiv:2003.01690)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robust_nas.attacks._ascents import Ascent, Ascents, Climbing
from robust_nas.attacks._leaving import check_leaving, due, superseded
from robust_nas.core.checks import check_at_least, check_choice
from robust_nas.core.pixels import unit_images_and_labels
from robust_nas.models.frozen import BatchNorm, frozen
from robust_nas.models.losses import choose, per_sample
from robust_nas.models.scores import check_finite, input_gradient, misclassified
from robust_nas.threat import ThreatModel

APGDLoss = Literal["cross_entropy", "dlr"]

_MOMENTUM = 0.75  # alpha in algorithm 1
_RHO = 0.75

# l1: the shares of the steps that are spent at multiples of epsilon (arXiv:2103.01208, section 4.3).
_L1_RADII = ((3, 0.3), (2, 0.3), (1, 0.4))


@dataclass(frozen=True, kw_only=True)
class APGD(Climbing):
    """Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1), from random starts.

    Ascent with momentum whose step starts at 2 epsilon; at fixed checkpoints a sample whose loss has not risen often
    enough goes back to its best point with half the step. The result is, sample by sample, a misclassified point if
    any was visited, and the visited point of the highest loss otherwise.

    In l1 it is APGD-l1 (Croce and Hein 2021, arXiv:2103.01208, algorithm 1): steps in the steepest pixels only, as many
    as the best change so far suggests, without momentum, and first 3, then 2, then 1 epsilon far.

    APGD-CE is the default, APGD-T is `APGD(loss="dlr", targets=9)`.

    Args:
        steps: gradient steps per start; one start costs one forward and backward pass more (three more in l1).
        restarts: independent random starts; a sample that one has fooled is left out of the next ones.
        loss: "cross_entropy", or "dlr": the difference of logits ratio, which needs at least 3 classes.
        targets: 0, or how many of the classes with the next largest logits to aim at, each from a start of its own; any
            wrong prediction counts. "dlr" then is the targeted ratio, which needs at least 4 classes.
        early_stop: whether a sample leaves the batch at its first misclassified point. It saves work and fools no
            fewer samples, but the points are not the strongest ones.
        batch_norm: "running" or "batch" statistics while attacking. With "batch" no sample leaves the batch.

    Raises:
        InputError: for a value outside its range, or settings that contradict each other.
    """

    steps: int = 100
    restarts: int = 1
    loss: APGDLoss = "cross_entropy"
    targets: int = 0
    early_stop: bool = False
    batch_norm: BatchNorm = "running"

    def __post_init__(self) -> None:
        check_at_least("APGD.steps", self.steps, 1)
        check_at_least("APGD.restarts", self.restarts, 1)
        check_at_least("APGD.targets", self.targets, 0)
        check_choice("APGD.loss", self.loss, APGDLoss)
        check_choice("APGD.batch_norm", self.batch_norm, BatchNorm)
        check_leaving("APGD", self.early_stop, self.batch_norm)

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
        # The random starts of l1 lie in the largest of its balls.
        first = threat.with_epsilon(_L1_RADII[0][0] * threat.epsilon) if threat.norm == "l1" else threat
        climb = self._climb_l1 if threat.norm == "l1" else self._climb
        with frozen(model, self.batch_norm):
            ascents = Ascents(
                self,
                model,
                images,
                labels,
                first,
                seed,
                restarts=self.restarts,
                loss=self.loss,
                targets=self.targets,
                first=points,
            )
            return ascents.strongest(lambda ascent: climb(model, ascent, threat), leave=self.batch_norm == "running")

    def _climb(self, model: nn.Module, ascent: Ascent, threat: ThreatModel) -> tuple[Tensor, Tensor, Tensor]:
        """Return the strongest point of one ascent [B, C, H, W], whether it is misclassified [B], and its loss [B]."""
        at = _Samples(model, ascent, 2 * threat.epsilon)
        checkpoints, last_check = set(checkpoint_steps(self.steps)), 0
        for step in range(1, self.steps + 1):
            if self.early_stop and due(at.current, step) and at.leave():
                break
            # Lines 3 and 7: z = P(x + eta grad f(x)).
            ascended = at.ball.ascend(at.current, at.gradient, per_sample(at.step_size))
            # Line 8: x' = P(x + alpha (z - x) + (1 - alpha) (x - x_previous)); the first step has no momentum.
            if step > 1:
                momentum = _MOMENTUM * (ascended - at.current) + (1 - _MOMENTUM) * (at.current - at.previous)
                ascended = at.ball.project(at.current + momentum)
            # Lines 9-10: keep the best point.
            at.visit(ascended)

            if step in checkpoints:
                # Lines 11-13, condition 1: the loss rose in fewer than rho of the steps since the last checkpoint.
                # Condition 2: neither the step size nor the best loss has changed since then.
                rare, stuck = at.rises < _RHO * (step - last_check), ~at.reduced & (at.best_losses <= at.checked_losses)
                at.reduced = rare | stuck
                at.step_size = torch.where(at.reduced, at.step_size / 2, at.step_size)
                at.go_back(at.reduced)
                at.checked_losses, last_check = at.best_losses, step
                at.rises = torch.zeros_like(at.rises)
        return at.end(self)

    def _climb_l1(self, model: nn.Module, ascent: Ascent, threat: ThreatModel) -> tuple[Tensor, Tensor, Tensor]:
        """Climb as `_climb` does, for l1."""
        interval = max(int(0.04 * self.steps), 1)
        for multiple, share in _L1_RADII:
            around = threat.with_epsilon(multiple * threat.epsilon)
            ball = around.around(ascent.images)
            at = _Samples(model, replace(ascent, start=ball.project(ascent.start), ball=ball), around.epsilon)
            if multiple == _L1_RADII[0][0]:
                # A random start says nothing about sparsity: a fifth of the pixels, to begin with.
                at.support = torch.full_like(at.support, 0.2 * 1.5 * ascent.images[0].numel())
            for step in range(1, max(round(share * self.steps), 1) + 1):
                # A point of a larger ball is no result.
                if self.early_stop and multiple == 1 and due(at.current, step) and at.leave():
                    break
                move = _sparse_sign(at.gradient, at.support / 1.5)
                at.visit(at.ball.project(at.current + per_sample(at.step_size) * move))
                if step % interval == 0:
                    # A change that has become sparser by 5 % goes on from the best point with the longest step.
                    support = at.changed()
                    sparser = support < 0.95 * at.support
                    shorter = (at.step_size / 1.5).clamp_min(around.epsilon / 10)
                    at.step_size = torch.where(sparser, around.epsilon, shorter)
                    at.go_back(sparser)
                    at.support = support
            points, wrong, losses = at.end(self)
            ascent = replace(ascent, start=points)
        return points, wrong, losses


class _Samples:
    """The samples that are still in an ascent: where each is, its best point, its step. Tensors are [B, ...]."""

    def __init__(self, model: nn.Module, ascent: Ascent, step_size: float) -> None:
        count, device = len(ascent.start), ascent.start.device
        self._model, self._loss, self._copies = model, ascent.loss, ascent.copies
        self._found = ascent.start.clone(), torch.zeros(count, dtype=torch.bool, device=device)
        self._found_losses = torch.full((count,), -torch.inf, dtype=torch.float64, device=device)
        self._total = torch.zeros((), device=device)
        self.number = torch.arange(count, device=device)
        self.images, self.labels, self.against, self.ball = ascent.images, ascent.labels, ascent.against, ascent.ball
        self.previous = self.current = ascent.start
        wrong, self.losses, self.gradient = self._evaluate(ascent.start)
        # Lines 4-5: the best point so far by the loss alone, to which a sample goes back.
        self.best, self.best_losses, self.best_gradient = self.current, self.losses, self.gradient
        self.strongest, self.strongest_wrong, self.strongest_losses = self.current, wrong, self.losses
        self.step_size = torch.full((count,), step_size, dtype=self.current.dtype, device=device)
        self.rises = torch.zeros_like(self.losses)
        # The last checkpoint's best loss, and whether it halved the step.
        self.checked_losses, self.reduced = self.losses, torch.ones_like(wrong)
        self.support = self.changed()

    def _evaluate(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, losses, gradient = input_gradient(self._model, points, self.against, self._loss)
        self._total = self._total + losses.sum()  # a NaN stays in it
        return misclassified(logits, self.labels), losses, gradient

    def changed(self) -> Tensor:
        """Return the number of pixels that the best point changes, [B]."""
        return (self.best != self.images).flatten(1).sum(1).to(self.current.dtype)

    def visit(self, points: Tensor) -> None:
        """Go to `points`, and remember them where they are better."""
        wrong, losses, gradient = self._evaluate(points)
        self.previous, self.current, self.gradient = self.current, points, gradient
        self.rises = self.rises + (losses > self.losses)
        self.losses = losses
        better = losses > self.best_losses
        self.best, self.best_gradient = choose(better, points, self.best), choose(better, gradient, self.best_gradient)
        self.best_losses = torch.where(better, losses, self.best_losses)
        stronger = (wrong & ~self.strongest_wrong) | (
            (wrong == self.strongest_wrong) & (losses > self.strongest_losses)
        )
        self.strongest = choose(stronger, points, self.strongest)
        self.strongest_losses = torch.where(stronger, losses, self.strongest_losses)
        self.strongest_wrong = self.strongest_wrong | wrong

    def go_back(self, where: Tensor) -> None:
        """Return to the best point."""
        self.current = choose(where, self.best, self.current)
        self.gradient = choose(where, self.best_gradient, self.gradient)
        self.losses = torch.where(where, self.best_losses, self.losses)

    def leave(self) -> bool:
        """Take the fooled samples out, and say whether none is left. Waits for the device."""
        if self.strongest_wrong.any():
            self._record(self.strongest_wrong)
            stay = ~superseded(self._found[1], self._copies)[self.number]
            for name, value in vars(self).items():
                if not name.startswith("_"):
                    setattr(self, name, value[stay])
        return len(self.number) == 0

    def _record(self, where: Tensor) -> None:
        number = self.number[where]
        points, wrong = self._found
        points[number], wrong[number] = self.strongest[where], self.strongest_wrong[where]
        self._found_losses[number] = self.strongest_losses[where].double()

    def end(self, attack: APGD) -> tuple[Tensor, Tensor, Tensor]:
        """Return the strongest points of all samples, whether they are misclassified, and their losses."""
        check_finite(attack, self._total)
        self._record(torch.ones_like(self.strongest_wrong))
        return *self._found, self._found_losses


def _sparse_sign(gradient: Tensor, count: Tensor) -> Tensor:
    """Return the signs of each gradient's `count` [B] largest entries, divided by their number."""
    size = gradient.abs().flatten(1)
    kth = count.long().clamp(1, size.shape[1]) - 1
    least = size.sort(dim=1, descending=True).values.gather(1, kth.unsqueeze(1))
    signs = gradient.flatten(1).sign() * (size >= least)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)


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
