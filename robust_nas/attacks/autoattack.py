"""AutoAttack: four attacks without parameters, each on what the one before left (arXiv:2003.01690, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_nas.attacks import Attack, Composed
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.fab import FAB
from robust_nas.attacks.square import Square
from robust_nas.core.checks import check_at_least
from robust_nas.core.pixels import unit_images_and_labels
from robust_nas.core.seeds import seed_at
from robust_nas.models.frozen import frozen
from robust_nas.models.scores import check_finite, misclassified, scores
from robust_nas.threat import Norm, ThreatModel

_TARGETED = 2
"""The place of APGD-T among the attacks, after the clean images' pass."""


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Composed):
    """The "standard" AutoAttack (Croce and Hein 2020, arXiv:2003.01690).

    APGD on the cross-entropy, APGD on the targeted difference of logits ratio, FAB-T and Square; a sample that one
    of them fools is not attacked again. Results are AutoAttack's only with the default settings. With fewer than 10
    classes every other class is a target; with 2 or 3, APGD-T, whose loss compares 4 logits, is left out, which results
    say. An image that nothing fools is returned as it is.

    Args:
        steps: of APGD and FAB.
        targets: of APGD-T and FAB-T.
        queries: of Square.

    Raises:
        InputError: for a value outside its range.
    """

    steps: int = 100
    targets: int = 9
    queries: int = 5000

    def __post_init__(self) -> None:
        check_at_least("AutoAttack.steps", self.steps, 1)
        check_at_least("AutoAttack.targets", self.targets, 1)
        check_at_least("AutoAttack.queries", self.queries, 1)

    def attacks(self, norm: Norm) -> tuple[Attack, ...]:
        """Return the attacks on a ball of the norm, in their order.

        In l1, where single starts reach less, APGD has five of them and its targeted form five targets (Croce and Hein
        2021, arXiv:2103.01208).
        """
        restarts, targets = (5, min(5, self.targets)) if norm == "l1" else (1, self.targets)
        return (
            APGD(steps=self.steps, restarts=restarts, early_stop=True),
            APGD(steps=self.steps, loss="dlr", targets=targets, early_stop=True),
            FAB(steps=self.steps, targets=self.targets),
            # The authors' AutoAttack shrinks the squares as in 10,000 queries, however many it makes.
            Square(queries=self.queries, schedule=10_000),
        )

    def left_out(self, num_classes: int) -> tuple[str, ...]:
        """The attacks that a model with so few classes cannot be attacked with."""
        return ("apgd-t",) if num_classes < 4 else ()

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        """Return adversarial images [B, C, H, W], detached, inside `threat` around `images`."""
        images, labels = unit_images_and_labels(images, labels)
        found = images.clone()
        if len(found) == 0:
            return found
        left, num_classes = torch.arange(len(found), device=found.device), 0
        for number, attack in enumerate((None, *self.attacks(threat.norm))):
            if number == _TARGETED and self.left_out(num_classes):
                continue
            originals, own = images[left], labels[left]
            points = (
                originals
                if attack is None
                else attack.perturb(model, originals, own, threat, seed=seed_at(seed, "autoattack", number))
            )
            # Judged by the model as it is: with batch norm folded, as attacks run it, logits differ by rounding.
            with frozen(model, fold=False):
                logits = scores(model, points)
            check_finite(self, logits)
            num_classes = logits.shape[1]
            wrong = misclassified(logits, own)
            found[left[wrong]] = points[wrong]
            left = left[~wrong]
            if len(left) == 0:
                break
        return found
