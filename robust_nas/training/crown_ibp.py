"""CROWN-IBP training (Zhang et al. 2020, arXiv:1906.06316): minimise a linear bound of the loss over the ball."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robust_nas.bounds import margin_bounds
from robust_nas.bounds.crown_ibp import linear_logits
from robust_nas.core.errors import InputError
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch
from robust_nas.training._certified import CertifiedTraining, Margins, interval, worst_cross_entropy


@dataclass(frozen=True, kw_only=True)
class CROWNIBP(CertifiedTraining):
    """kappa CE(f(x), y) + (1 - kappa) CE(worst logits, y), with margins between linear and interval bounds.

    Their lower bounds are b times the linear ones and 1 - b times those of intervals (section 3), where b goes from 1
    to `beta` as epsilon goes from 0 to its full size (`train.epsilon_warm_up` and `train.epsilon_ramp`): linear bounds,
    which are far tighter on an untrained network, lead to where intervals can be trained.

    Args:
        beta: weight of the linear bounds when epsilon has its full size. Published are 0 for large radii and 1 for
            small ones.
        kappa: weight of the clean images' loss when epsilon has its full size.
        kappa_start: the same while epsilon is 0; 0 where the bounds would grow out of hand before they count.
        l1: weight of the sum of the absolute weights of convolutions and linear layers, which is added to the loss.
        initialisation: "given" keeps the weights that the network comes with; "tight" draws those of all layers but
            the last anew, so that intervals keep their width from layer to layer (Shi et al. 2021, arXiv:2103.17268).

    Raises:
        InputError: for a value outside its range.
    """

    beta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise InputError(f"CROWNIBP.beta must be in [0, 1], but got {self.beta}.")

    def robust_loss(self, network: nn.Module, crafted: Tensor, batch: Batch) -> Tensor:
        """Return the bound of the loss over the ball."""
        share = 1 - batch.epsilon_scale * (1 - self.beta)
        images, threat = batch.images, batch.threat
        by_lines = linear(network, images, threat)
        if share == 1:
            return worst_cross_entropy(by_lines, batch.targets)
        by_intervals = interval(network, images, threat)

        def margins(labels: Tensor) -> Tensor:
            if share == 0:
                return by_intervals(labels)
            own = labels.unsqueeze(1)
            mixed: Tensor = share * by_lines(labels).scatter(1, own, 0.0)
            return mixed + (1 - share) * by_intervals(labels).scatter(1, own, 0.0)

        return worst_cross_entropy(margins, batch.targets)


def linear(network: nn.Module, images: Tensor, threat: ThreatModel) -> Margins:
    """Return CROWN-IBP's bounds around `images` [B, C, H, W], with their gradient."""
    region, logits = linear_logits(network, images, threat)
    return lambda labels: region.margins(*margin_bounds(logits, labels, region.source)).lower(threat)
