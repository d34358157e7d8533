"""Distributed adversarial training (Zhang et al. 2022, arXiv:2206.06257): large batches, labelled and unlabelled.

The distribution is the loop's: every process attacks its own images, and gradients are averaged, as they are or
compressed (`train.compression`). The recipes `dat-cifar10` and `dat-imagenet` have its large batches, optimiser and
warm-up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.core.checks import check_choice
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at
from robust_nas.models.frozen import frozen
from robust_nas.models.losses import kl
from robust_nas.models.scores import scores
from robust_nas.training import Batch, TrainingMethod

OfUnlabelled = Literal["consistency", "pseudo_labels"]


@dataclass(frozen=True, kw_only=True)
class DAT(TrainingMethod):
    """Cross-entropy on clean and on adversarial images, and a robust loss on unlabelled ones.

    lambda l(f(x), y) + l(f(x'), y) + beta phi(u, u'), means over this process's labelled images x and unlabelled ones u
    (the paper's problem, whose sum over workers the loop makes). phi is KL(f(u) || f(u')), TRADES' consistency, or
    the cross-entropy l(f(u'), c) with the class c that f(u) predicts. Unlabelled images come from `train.unlabelled`;
    without, the method is adversarial training with clean images.

    Args:
        attack: crafts x' and u'. As in the authors' code, it sees running statistics. For the consistency of unlabelled
            images, PGD climbs the divergence, from a random start.
        clean_weight: lambda, the weight of the clean images' loss; the authors' code has 1.
        beta: the weight of unlabelled images.
        unlabelled_loss: phi: "consistency" or "pseudo_labels".

    Raises:
        InputError: for a value outside its range.
    """

    takes_unlabelled: ClassVar[bool] = True

    attack: Attack = field(default_factory=lambda: PGD(steps=10, batch_norm="running"))
    clean_weight: float = 1.0
    beta: float = 1.0
    unlabelled_loss: OfUnlabelled = "consistency"

    def __post_init__(self) -> None:
        check_choice("DAT.unlabelled_loss", self.unlabelled_loss, OfUnlabelled)
        for name, value in (("clean_weight", self.clean_weight), ("beta", self.beta)):
            if not value >= 0:
                raise InputError(f"DAT.{name} must be at least 0, but got {value}.")

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return adversarial examples of the batch's images, and after them of its unlabelled ones."""
        crafted = self.attack.perturb(model, batch.images, batch.labels, batch.threat, seed=batch.seed)
        if batch.unlabelled is None:
            return crafted
        attack, images = self.attack, batch.unlabelled
        if self.unlabelled_loss == "consistency" and isinstance(attack, PGD):
            attack = replace(attack, loss="kl", random_start=True)
        with frozen(model, "running", fold=False), torch.no_grad():
            predicted = scores(model, images).argmax(1)
        seed = seed_at(batch.seed, "unlabelled")
        return torch.cat([crafted, attack.perturb(model, images, predicted, batch.threat, seed=seed)])

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum of the labelled images' losses and the unlabelled images' one.

        Labelled and unlabelled images are in one pass, clean and adversarial ones in two.
        """
        count = len(batch.images)
        clean_images = batch.images if batch.unlabelled is None else torch.cat([batch.images, batch.unlabelled])
        adversarial = forward(crafted)
        loss = F.cross_entropy(adversarial[:count], batch.targets)
        if self.clean_weight == 0 and batch.unlabelled is None:
            return loss
        clean = forward(clean_images)
        loss = loss + self.clean_weight * F.cross_entropy(clean[:count], batch.targets)
        if batch.unlabelled is None:
            return loss
        if self.unlabelled_loss == "consistency":
            return loss + self.beta * kl(adversarial[count:], clean[count:]).mean()
        return loss + self.beta * F.cross_entropy(adversarial[count:], clean[count:].detach().argmax(1))
