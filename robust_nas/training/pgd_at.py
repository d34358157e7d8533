"""PGD adversarial training (Madry et al. 2018, arXiv:1706.06083): minimise the loss at the ball's strongest point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.training import Batch, TrainingMethod


@dataclass(frozen=True, kw_only=True)
class PGDAT(TrainingMethod):
    """Cross-entropy on adversarial examples, or a mean of it and that on the clean images.

    Args:
        clean_share: b of the loss b clean + (1 - b) adversarial (Goodfellow et al. 2015, arXiv:1412.6572, section 6).
        attack: crafts the examples; its `batch_norm` says whether it sees batch or running statistics. By default, 10
            steps of a quarter of epsilon.
    """

    attack: Attack = field(default_factory=lambda: PGD(steps=10))
    clean_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.clean_share <= 1:
            raise InputError(f"PGDAT.clean_share must be in [0, 1], but got {self.clean_share}.")

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return adversarial examples of the whole batch."""
        return self.attack.perturb(model, batch.images, batch.labels, batch.threat, seed=batch.seed)

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy at the crafted images, weighted with that at the clean ones."""
        adversarial = F.cross_entropy(forward(crafted), batch.targets)
        if not self.clean_share:
            return adversarial
        clean = F.cross_entropy(forward(batch.images), batch.targets)
        return self.clean_share * clean + (1 - self.clean_share) * adversarial
