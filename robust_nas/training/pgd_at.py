"""PGD adversarial training (Madry et al. 2018, arXiv:1706.06083): minimise the loss at the ball's strongest point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.training import Batch, TrainingMethod, together


@dataclass(frozen=True, kw_only=True)
class PGDAT(TrainingMethod):
    """Cross-entropy on adversarial examples, and on clean images beside them.

    Args:
        clean_share: b of the loss b clean + (1 - b) adversarial (Goodfellow et al. 2015, arXiv:1412.6572, section 6).
            Clean and adversarial images have a pass each, and so, in training, the statistics of their own pass.
        clean_images: the share of each batch's images that go in clean as well, beside the adversarial examples of all
            of them; the loss is the mean over all that went in (Xie and Yuille 2020, arXiv:1906.03787). Under plain
            batch norm they make one batch, normalised by the statistics of both together; with `train.norm` "mixture"
            or "separate", clean images have a pass of their own.
        attack: crafts the examples; its `batch_norm` says whether it sees batch or running statistics. By default, 10
            steps of a quarter of epsilon.

    Raises:
        InputError: for a share outside [0, 1], or both of them.
    """

    attack: Attack = field(default_factory=lambda: PGD(steps=10))
    clean_share: float = 0.0
    clean_images: float = 0.0

    def __post_init__(self) -> None:
        for name, share in (("clean_share", self.clean_share), ("clean_images", self.clean_images)):
            if not 0 <= share <= 1:
                raise InputError(f"PGDAT.{name} must be in [0, 1], but got {share}.")
        if self.clean_share and self.clean_images:
            raise InputError(
                f"PGDAT.clean_share weights the clean images' loss and clean_images puts some of them into the batch, "
                f"but got {self.clean_share} and {self.clean_images}; set one of them to 0."
            )

    @property
    def accumulates(self) -> bool:
        """Whether a batch may be taken in parts: a share of each part is rounded otherwise than one of the whole."""
        return self.clean_images in (0, 1)

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return adversarial examples of the whole batch."""
        return self.attack.perturb(model, batch.images, batch.labels, batch.threat, seed=batch.seed)

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy at the crafted images, joined with that at the clean ones."""
        if self.clean_images:
            # Batches are shuffled: the first ones are any. At least one, or a small batch would have none.
            count = max(round(self.clean_images * len(crafted)), 1)
            clean_images = batch.images if count == len(crafted) else batch.images[:count]
            logits = torch.cat(together(forward, crafted, clean_images))
            return F.cross_entropy(logits, torch.cat([batch.targets, batch.targets[:count]]))
        adversarial = F.cross_entropy(forward(crafted), batch.targets)
        if not self.clean_share:
            return adversarial
        clean = F.cross_entropy(forward(batch.images), batch.targets)
        return self.clean_share * clean + (1 - self.clean_share) * adversarial
