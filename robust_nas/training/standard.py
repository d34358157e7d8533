"""Standard training: cross-entropy on the clean images. The baseline that no attack spares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.training import Batch, TrainingMethod


@dataclass(frozen=True, kw_only=True)
class Standard(TrainingMethod):
    """Cross-entropy on clean images."""

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the images as they are."""
        return batch.images

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(forward(crafted), batch.targets)
