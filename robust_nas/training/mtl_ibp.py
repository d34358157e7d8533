"""MTL-IBP (De Palma et al. 2024, arXiv:2305.13991): between the adversarial loss and its interval bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks import Attack
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.models.scores import logits_of
from robust_nas.threat import LARGEST_EPSILON
from robust_nas.training import Batch
from robust_nas.training._certified import (
    CertifiedTraining,
    absolute_weights,
    interval,
    network_of,
    worst_cross_entropy,
)


@dataclass(frozen=True, kw_only=True)
class MTLIBP(CertifiedTraining):
    """alpha CE(worst logits in the interval bounds, y) + (1 - alpha) CE(f(x'), y).

    The adversarial images x' are normalised by the clean batch's statistics, as the bounds are. (In the authors' code
    both are by the adversarial batch's.) With alpha = 0 there is nothing to share: that is adversarial training, whose
    batch norm sees the adversarial batch.

    Args:
        alpha: weight of the bound; 1 is IBP with kappa = 0. The authors have 0.5 for CIFAR-10 at 8/255 and 0.004 at
            2/255, and on MNIST, trained with radii 0.2 and 0.4, 0.01 at 0.1 and 0.08 at 0.3.
        attack: crafts x'. The authors take one step to the boundary, as the default does; 8 of a quarter of the
            attack's radius for CIFAR-10 at 2/255.
        attack_radius: the attack's radius, as a multiple of epsilon; the authors have 2.1 for CIFAR-10 at 2/255.
        kappa: weight of the clean images' loss when epsilon has its full size.
        kappa_start: the same while epsilon is 0; 0 where the bounds would grow out of hand before they count.
        l1: weight of the sum of the absolute weights of convolutions and linear layers, which is added to the loss.
        initialisation: "given" keeps the weights that the network comes with; "tight", which deep networks need, draws
            those of all layers but the last anew, so that intervals keep their width from layer to layer (Shi et al.
            2021, arXiv:2103.17268).

    Raises:
        InputError: for a value outside its range.
    """

    alpha: float = 0.5
    attack: Attack = field(default_factory=lambda: PGD(steps=1))
    attack_radius: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise InputError(f"MTLIBP.alpha must be in [0, 1], but got {self.alpha}.")
        if self.alpha == 0 and self.kappa:
            raise InputError("MTLIBP with alpha 0 is adversarial training, which has no kappa; set train.clean_weight.")
        if not self.attack_radius > 0:
            raise InputError(f"MTLIBP.attack_radius must be above 0, but got {self.attack_radius}.")

    @property
    def stays_in_ball(self) -> bool:
        """Whether the adversarial images are in the threat model."""
        return self.attack_radius <= 1

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return adversarial examples of the whole batch."""
        if self.alpha == 1 or batch.epsilon_scale == 0:
            return batch.images
        radius = min(self.attack_radius * batch.threat.epsilon, LARGEST_EPSILON[batch.threat.norm])
        wider = batch.threat.with_epsilon(radius)
        return self.attack.perturb(model, batch.images, batch.labels, wider, seed=batch.seed)

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum of the adversarial loss and of its bound."""
        if self.alpha > 0:
            return super().loss(forward, crafted, batch)
        loss = F.cross_entropy(forward(crafted), batch.targets)
        return loss + self.l1 * absolute_weights(network_of(forward)) if self.l1 else loss

    def robust_loss(self, network: nn.Module, crafted: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum; the bound's part alone where that has all the weight."""
        worst = worst_cross_entropy(interval(network, batch.images, batch.threat), batch.targets)
        if self.alpha == 1:
            return worst
        adversarial = F.cross_entropy(logits_of(network, crafted), batch.targets)
        return self.alpha * worst + (1 - self.alpha) * adversarial
