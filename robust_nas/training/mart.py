"""MART (Wang et al. 2020, "Improving adversarial robustness requires revisiting misclassified examples", ICLR)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.models.losses import kl
from robust_nas.training import Batch, TrainingMethod


@dataclass(frozen=True, kw_only=True)
class MART(TrainingMethod):
    """Adversarial training that makes most of the images which the model misclassifies before any attack.

    BCE(f(x'), y) + weight KL(p(x) || p(x')) (1 - p_y(x)), means over the batch, with the boosted cross-entropy
    BCE(f(x'), y) = -log p_y(x') - log(1 - max_{k != y} p_k(x')). The gradient flows through all of it, the
    factor 1 - p_y(x) included, as in the authors' code.

    Where targets are smoothed or mixed, -log p_y(x') is the cross-entropy with them; y elsewhere is the label.

    Args:
        attack: crafts x'; its `batch_norm` says whether it sees batch or running statistics. Published are 10 steps of
            0.007 at epsilon 0.031; here a step is a quarter of any epsilon, if not given. It starts anywhere in the
            ball; the authors' code starts at 0.001 N(0, 1) around the image.
        weight: the paper's lambda; the authors' code has 6 for a WideResNet, and 5 for a ResNet-18.

    Raises:
        InputError: if `weight` is negative.
    """

    attack: Attack = field(default_factory=lambda: PGD(steps=10))
    weight: float = 6.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InputError(f"MART.weight must be at least 0, but got {self.weight}.")

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return adversarial examples of the whole batch."""
        return self.attack.perturb(model, batch.images, batch.labels, batch.threat, seed=batch.seed)

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the mean boosted cross-entropy plus the weighted mean divergence."""
        # Two passes: batch norm keeps the statistics of clean and of adversarial images apart.
        clean, adversarial = forward(batch.images), forward(crafted)
        strongest_other = adversarial.scatter(1, batch.labels.unsqueeze(1), -torch.inf).argmax(1)
        boosted = F.cross_entropy(adversarial, batch.targets) - _log_of_rest(adversarial, strongest_other).mean()
        unsure = _log_of_rest(clean, batch.labels).exp()
        return boosted + self.weight * (kl(adversarial, clean) * unsure).mean()


def _log_of_rest(logits: Tensor, classes: Tensor) -> Tensor:
    """Return log(1 - softmax(logits)_k), [B], for a class k per sample [B].

    As -softplus(z_k - log sum_{j != k} exp z_j), which is exact also where the softmax rounds to 1. The authors' code
    adds 1e-4 to 1 - p instead.
    """
    chosen = classes.unsqueeze(1)
    rest = logits.scatter(1, chosen, -torch.inf).logsumexp(1)
    return -F.softplus(logits.gather(1, chosen).squeeze(1) - rest)
