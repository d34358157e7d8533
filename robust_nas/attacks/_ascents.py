"""Several ascents, from several starts and to several targets, of which each sample keeps the strongest point."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from robust_nas.attacks import Continuing
from robust_nas.attacks._draws import Draws
from robust_nas.attacks._leaving import next_best, next_targets
from robust_nas.models.frozen import BatchNorm
from robust_nas.models.losses import LOSSES, TARGET_BITS, TARGETED_LOSSES, Loss, at_random_target, choose
from robust_nas.models.scores import check_finite, scores
from robust_nas.threat import Ball, ThreatModel


class Climbing(Continuing):
    """The base class of attacks by ascents, from several starts and at several targets.

    Args:
        loss: a key of `LOSSES`.
        targets: number of next best classes to aim at; 0 for none.
        early_stop: whether samples leave once they are misclassified.
        batch_norm: the statistics that the attacked model normalises by.
    """

    loss: str
    targets: int
    early_stop: bool
    batch_norm: BatchNorm

    @property
    def classes(self) -> int:
        """The number of classes that its loss compares."""
        return (4 if self.targets else 3) if self.loss == "dlr" else 2

    def stopping_early(self) -> Self:
        """Return the attack with `early_stop`; with batch statistics no sample can leave."""
        attack: Any = self
        return replace(attack, early_stop=True) if self.batch_norm == "running" else self

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return adversarial images [B, C, H, W], detached, inside `threat` around `images`."""
        return self.continue_from(model, None, images, labels, threat, seed=seed)

    @abstractmethod
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


@dataclass(frozen=True)
class Ascent:
    """One ascent: its start and its objective.

    Args:
        start: points of the ball [B, C, H, W].
        images: the originals [B, C, H, W].
        labels: [B].
        against: [B, ...], what the loss compares the logits with.
        ball: the allowed points around `images`.
        loss: of logits and `against`.
        copies: number of copies of the same images in the batch, one after the other, for a target each. An image that
            an earlier copy has fooled need not be fooled by a later one.
    """

    start: Tensor
    images: Tensor
    labels: Tensor
    against: Tensor
    ball: Ball
    loss: Loss
    copies: int = 1


_START, _TARGET = 2**40, 2**41
"""Places of draws beside those of the starts, which have the ascents' numbers."""

Climb = Callable[[Ascent], tuple[Tensor, Tensor, Tensor]]
"""An ascent to its strongest point [B, C, H, W], whether that is misclassified [B], and its loss [B]."""


class Ascents:
    """The ascents of one attack on one batch: every restart, and in it every target.

    Args:
        attack: for error messages.
        restarts: random starts per target.
        loss: a key of `LOSSES`.
        targets: number of next best classes to aim at, one after the other; 0 for none.
        random_target: whether every ascent aims at one random class other than the label instead.
        random_start: whether ascents begin at random points of the ball, or at the images.
        clean_start: the probability with which one of them begins at the image all the same.
        first: points of the ball [B, C, H, W] at which the first restart begins instead.

    Raises:
        InputError: for a NaN in the logits of the clean images, where they are needed.
    """

    def __init__(
        self,
        attack: object,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        seed: int,
        *,
        restarts: int,
        loss: str,
        targets: int,
        random_target: bool = False,
        random_start: bool = True,
        clean_start: float = 0.0,
        first: Tensor | None = None,
    ) -> None:
        self._images, self._labels, self._random_start, self._first = images, labels, random_start, first
        self._ball, self._draws = threat.around(images), Draws(images, seed)
        self._random_target, self._clean_start = random_target, clean_start
        # [targets, B, ...], one row where there is no target.
        self._against, self._loss = labels.unsqueeze(0), LOSSES[loss]
        if random_target:
            self._loss = at_random_target(TARGETED_LOSSES[loss])
        elif targets or loss == "kl":
            logits = scores(model, images)
            check_finite(attack, logits)
            if loss == "kl":
                self._against = logits.unsqueeze(0)
            else:
                others = next_best(logits, labels, targets).T
                self._against = torch.stack([labels.expand_as(others), others], dim=2)
                self._loss = TARGETED_LOSSES[loss]
        self.count = restarts * len(self._against)

    def begin(self, number: int, left: Tensor | slice) -> Ascent:
        """Return one ascent of the images `left`, by index."""
        images, ball = self._images[left], self._ball[left]
        # A sample's start does not depend on which others have left.
        if self._first is not None and number < len(self._against):
            start = self._first[left]
        elif not self._random_start:
            start = images
        else:
            start = ball.at(self._draws[left].uniform(images[0].numel() + 1, number))
            if self._clean_start:
                chance = self._draws[left].uniform(1, _START + number).squeeze(1)
                start = choose(chance < self._clean_start, images, start)
        against = self._against[number % len(self._against), left]
        if self._random_target:
            drawn = self._draws[left].uniform(1, _TARGET + number).squeeze(1) * 2**TARGET_BITS
            against = torch.stack([against, drawn.long()], dim=1)
        return Ascent(start, images, self._labels[left], against, ball, self._loss)

    def strongest(self, climb: Climb, *, leave: bool) -> Tensor:
        """Return each sample's strongest point: a misclassified one if any, then the one of the highest loss.

        Args:
            leave: whether a sample that one ascent has fooled is left out of the next ones.
        """
        best, fooled = self._images.clone(), torch.zeros_like(self._labels, dtype=torch.bool)
        highest = torch.full_like(self._labels, -torch.inf, dtype=torch.float64)
        number, targets = 0, len(self._against)
        while number < self.count:
            left = (~fooled if leave else torch.ones_like(fooled)).nonzero().squeeze(1)
            if len(left) == 0:
                break
            restart, target = divmod(number, targets)
            together = next_targets(target, targets, self._images[left]) if leave else range(target, target + 1)
            ascent = self._together([restart * targets + each for each in together], left)
            for points, wrong, losses in zip(*(part.split(len(left)) for part in climb(ascent)), strict=True):
                stronger = (wrong & ~fooled[left]) | ((wrong == fooled[left]) & (losses > highest[left]))
                if leave:
                    stronger = stronger & ~fooled[left]
                chosen = left[stronger]
                best[chosen], fooled[chosen] = points[stronger], wrong[stronger]
                highest[chosen] = losses[stronger].double()
            number += len(together)
        return best

    def _together(self, numbers: list[int], left: Tensor) -> Ascent:
        """Return several ascents of the images `left` as one of copies of them."""
        ascents = [self.begin(number, left) for number in numbers]
        if len(ascents) == 1:
            return ascents[0]
        start = torch.cat([ascent.start for ascent in ascents])
        against = torch.cat([ascent.against for ascent in ascents])
        each = left.repeat(len(ascents))
        return Ascent(
            start, self._images[each], self._labels[each], against, self._ball[each], self._loss, copies=len(ascents)
        )
