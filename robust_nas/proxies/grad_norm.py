"""The norm of the loss's gradient (Abdelfattah et al. 2021, arXiv:2101.08134, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robust_nas.proxies._networks import held_still, loss_gradients, weights
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class GradNorm:
    """The sum over layers of the Euclidean norm of the mean cross-entropy's gradient for one batch."""

    def score(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0) -> float:
        """Return the score of `model`; threat and seed are not used."""
        with held_still(model, images):
            found = loss_gradients(model, weights(model), images, labels)
        return sum(float(gradient.double().norm()) for gradient in found.values())
