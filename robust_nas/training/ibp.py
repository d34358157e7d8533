"""Interval bound propagation (Gowal et al. 2018, arXiv:1810.12715): minimise a bound of the loss over the ball."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robust_nas.training import Batch
from robust_nas.training._certified import CertifiedTraining, interval, worst_cross_entropy


@dataclass(frozen=True, kw_only=True)
class IBP(CertifiedTraining):
    """kappa CE(f(x), y) + (1 - kappa) CE(worst logits in the interval bounds, y).

    Kappa goes from `kappa_start` to `kappa` as epsilon goes from 0 to its full size (`train.epsilon_warm_up` and
    `train.epsilon_ramp`).

    Args:
        kappa: weight of the clean images' loss when epsilon has its full size; 0.5 as published.
        kappa_start: the same while epsilon is 0; 0 where the bounds would grow out of hand before they count.
        l1: weight of the sum of the absolute weights of convolutions and linear layers, which is added to the loss.
        initialisation: "given" keeps the weights that the network comes with; "tight", which deep networks need, draws
            those of all layers but the last anew, so that intervals keep their width from layer to layer (Shi et al.
            2021, arXiv:2103.17268).

    Raises:
        InputError: for a value outside its range.
    """

    kappa: float = 0.5

    def robust_loss(self, network: nn.Module, crafted: Tensor, batch: Batch) -> Tensor:
        """Return the bound of the loss over the ball."""
        return worst_cross_entropy(interval(network, batch.images, batch.threat), batch.targets)
