"""TRADES (Zhang et al. 2019, arXiv:1901.08573): accuracy on clean images, traded against a smooth prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks import Attack, Continuing
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import generator_at
from robust_nas.models.losses import kl
from robust_nas.threat import Pixels, check_pixels
from robust_nas.training import Batch, TrainingMethod


@dataclass(frozen=True, kw_only=True)
class TRADES(TrainingMethod):
    """Cross-entropy on clean images plus `beta` times the divergence between clean and adversarial predictions.

    CE(f(x), y) + beta KL(f(x) || f(x')), means over the batch, where x' maximises the divergence in the ball around x
    (algorithm 1; beta is their 1/lambda). The gradient flows through both predictions.

    Args:
        attack: crafts x'; PGD always climbs the divergence (loss "kl"), and its `batch_norm` says whether it sees batch
            or running statistics. Published are 10 steps of 0.007 at epsilon 0.031; here a step is a quarter of any
            epsilon, if not given.
        beta: weight of the divergence; 0 is standard training, for which nothing is crafted.
        noise: standard deviation of the normal noise from which the ascent starts, in pixel units of [0, 1]; at the
            image itself the divergence has no gradient. An attack that cannot start at given points starts as it does.

    Raises:
        InputError: if `beta` is negative, or `noise` is outside (0, 1].
    """

    attack: Attack = field(default_factory=lambda: PGD(steps=10, loss="kl"))
    beta: float = 6.0
    noise: Pixels = 0.001

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise InputError(f"TRADES.beta must be at least 0, but got {self.beta}.")
        object.__setattr__(self, "noise", check_pixels("TRADES.noise", self.noise))
        if isinstance(self.attack, PGD) and self.attack.loss != "kl":
            object.__setattr__(self, "attack", replace(self.attack, loss="kl"))

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the images at which the prediction differs most from the clean one, as far as the attack finds."""
        if self.beta == 0:
            return batch.images
        images, labels, threat = batch.images, batch.labels, batch.threat
        if not isinstance(self.attack, Continuing):
            return self.attack.perturb(model, images, labels, threat, seed=batch.seed)
        generator = generator_at(images.device, batch.seed, "trades")
        normal = batch.drawn(
            lambda count: torch.randn(
                (count, *images.shape[1:]), dtype=images.dtype, device=images.device, generator=generator
            )
        )
        # In a mixture, the attack sees the adversarial batch norm only: its clean prediction is not quite the loss's.
        start = threat.around(images).project(images + self.noise * normal)
        return self.attack.continue_from(model, start, images, labels, threat, seed=batch.seed)

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the clean cross-entropy plus the weighted mean divergence."""
        clean = forward(batch.images)
        loss = F.cross_entropy(clean, batch.targets)
        if self.beta == 0:
            return loss
        # A pass of its own, not one of both halves together: batch norm keeps the statistics of clean and of
        # adversarial images apart.
        return loss + self.beta * kl(forward(crafted), clean).mean()
