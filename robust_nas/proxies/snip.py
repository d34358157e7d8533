"""Connection sensitivity (Lee et al. 2019, arXiv:1810.02340), summed (Abdelfattah et al. 2021, arXiv:2101.08134)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robust_nas.proxies._networks import held_still, loss_gradients, weights
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class SNIP:
    """The sum of |w dL/dw| over all weights of all layers: how much the loss of one batch changes as each is removed.

    The original divides by the sum to compare weights of one network; here networks are compared.
    """

    def score(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0) -> float:
        """Return the score of `model`; threat and seed are not used."""
        with held_still(model, images):
            at = weights(model)
            found = loss_gradients(model, at, images, labels)
        return sum(float((at[name] * gradient).double().abs().sum()) for name, gradient in found.items())
