"""Standard training: cross-entropy on the clean images. The baseline that no attack spares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Standard:
    """Cross-entropy on clean images."""

    def craft(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int) -> Tensor:
        """Return the images as they are."""
        return images

    def loss(self, forward: nn.Module, crafted: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(forward(crafted), labels)
