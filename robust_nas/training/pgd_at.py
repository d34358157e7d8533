"""PGD adversarial training (Madry et al. 2018, arXiv:1706.06083): minimise the loss at the ball's strongest point."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD

if TYPE_CHECKING:
    from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class PGDAT:
    """Cross-entropy on adversarial examples only.

    Args:
        attack: crafts the examples; its `batch_norm` says whether it sees batch or running statistics.
    """

    attack: Attack = field(default_factory=lambda: PGD(steps=10, step_size=2 / 255))

    def craft(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int) -> Tensor:
        """Return adversarial examples of the whole batch."""
        return self.attack.perturb(model, images, labels, threat, seed=seed)

    def loss(self, forward: nn.Module, crafted: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy at the crafted images."""
        return F.cross_entropy(forward(crafted), labels)
