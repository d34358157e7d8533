"""SABR (Mueller et al. 2023, arXiv:2210.04871): interval bounds of a small box around an adversarial example."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.training import Batch
from robust_nas.training._certified import CertifiedTraining, interval, worst_cross_entropy


@dataclass(frozen=True, kw_only=True)
class SABR(CertifiedTraining):
    """Cross-entropy of the worst logits in the interval bounds of a box of radius `ratio` * epsilon.

    Its centre is an adversarial example in the ball of radius (1 - `ratio`) * epsilon, so that the box is inside the
    threat model. It is cut with [0, 1] where it sticks out. (De Palma et al.'s code attacks in the whole
    ball and moves the centre until the box fits in.) For l2 and l1 the small box is the one around the small ball.
    Such networks are meant for certification by better bounds than intervals.

    Args:
        ratio: the small box's share of epsilon (lambda); 1 is IBP with kappa = 0. The authors' scripts have 0.6 for
            MNIST at 0.3, 0.1 for CIFAR-10 at 2/255 and 0.4 for TinyImageNet at 1/255: smaller for more accuracy and
            harder certification.
        attack: finds the centre; 8 steps by default.
        kappa: weight of the clean images' loss when epsilon has its full size.
        kappa_start: the same while epsilon is 0; 0 where the bounds would grow out of hand before they count.
        l1: weight of the sum of the absolute weights of convolutions and linear layers, which is added to the loss.
        initialisation: "given" keeps the weights that the network comes with; "tight", which deep networks need, draws
            those of all layers but the last anew, so that intervals keep their width from layer to layer (Shi et al.
            2021, arXiv:2103.17268).

    Raises:
        InputError: for a value outside its range.
    """

    ratio: float = 0.4
    attack: Attack = field(default_factory=lambda: PGD(steps=8))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise InputError(f"SABR.ratio must be in (0, 1], but got {self.ratio}; for 0, take pgd_at.")

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the centres of the small boxes."""
        if self.ratio == 1 or batch.epsilon_scale == 0:
            return batch.images
        inner = batch.threat.with_epsilon((1 - self.ratio) * batch.threat.epsilon)
        return self.attack.perturb(model, batch.images, batch.labels, inner, seed=batch.seed)

    def robust_loss(self, network: nn.Module, crafted: Tensor, batch: Batch) -> Tensor:
        """Return the bound of the loss over the small boxes."""
        small = batch.threat.with_epsilon(self.ratio * batch.threat.epsilon)
        return worst_cross_entropy(interval(network, crafted, small), batch.targets)
