"""SPROUT, self-progressing robust training (Cheng et al., AAAI 2021, arXiv:2012.11769): labels that learn to be hard.

No attack is made, and soft labels inflate the accuracy that PGD measures: judge what it trains with AutoAttack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Beta, Dirichlet
from torch.nn import functional as F

from robust_nas.core.checks import check_at_least, check_choice
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import generator_at, seeded
from robust_nas.models.frozen import BatchNorm, frozen
from robust_nas.models.scores import scores
from robust_nas.training import Batch, TrainingMethod

LEAST = 1e-6
"""The smallest label parameter: those of a Dirichlet distribution are positive."""


@dataclass(frozen=True, kw_only=True)
class SPROUT(TrainingMethod):
    """Cross-entropy at noisy, mixed images with labels from a Dirichlet distribution that is learned along.

    The label of class y is drawn from Dir(concentration ((1 - alpha) y + alpha beta)). The network goes down the loss;
    after every `interval` of its steps beta, which starts at 1 for all classes, goes one step up. The defaults are
    those of the authors' code, where the distribution is Dir(10 y + beta); there, the network's steps in between are
    all on one batch, on which beta then moves. The threat model is not looked at, and mixed images are outside of it.

    Args:
        noise: standard deviation of the Gaussian noise, in pixel units of [0, 1].
        mixup: a of the Beta(a, a) distribution from which each batch's share of its other images is drawn; 0 for none.
        alpha: the weight of beta in a label's distribution; 0 leaves the labels as they are.
        concentration: closeness of the drawn labels to the mean one.
        interval: network steps before each step of beta.
        learning_rate: of beta.
        batch_norm: "running" or "batch" statistics in the pass that moves beta.

    Raises:
        InputError: for a value outside its range.
    """

    stays_in_ball: ClassVar[bool] = False
    # An image is mixed with any other one of the batch.
    accumulates: ClassVar[bool] = False

    noise: float = 0.1
    mixup: float = 0.2
    alpha: float = 1 / 11
    concentration: float = 11.0
    interval: int = 3
    learning_rate: float = 0.01
    batch_norm: BatchNorm = "batch"

    def __post_init__(self) -> None:
        for name in ("noise", "mixup", "learning_rate"):
            if not getattr(self, name) >= 0:
                raise InputError(f"SPROUT.{name} must be at least 0, but got {getattr(self, name)}.")
        if not 0 <= self.alpha <= 1:
            raise InputError(f"SPROUT.alpha must be in [0, 1], but got {self.alpha}.")
        if not self.concentration > 0:
            raise InputError(f"SPROUT.concentration must be above 0, but got {self.concentration}.")
        check_at_least("SPROUT.interval", self.interval, 1)
        check_choice("SPROUT.batch_norm", self.batch_norm, BatchNorm)

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return noisy, mixed images; before, if `interval` network steps are done since the last time, move beta."""
        steps = batch.memory.shared.get("network_steps", 0)
        if self.alpha and steps and steps % self.interval == 0:
            self._ascend(model, batch)
        batch.memory.shared["network_steps"] = steps + 1
        images, generator = batch.images.detach(), generator_at(batch.images.device, batch.seed, "noise")
        noisy = images + self.noise * torch.randn(images.shape, device=images.device, generator=generator)
        share, partners = self._mixing(batch)
        # The authors do not clip; here images are in [0, 1] wherever they are passed around.
        return (share * noisy + (1 - share) * noisy[partners]).clamp(0, 1)

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy with the drawn and mixed labels."""
        logits = forward(crafted)
        labels = self._labels(batch, logits.shape[1])
        share, partners = self._mixing(batch)
        return F.cross_entropy(logits, share * labels + (1 - share) * labels[partners])

    def _mixing(self, batch: Batch) -> tuple[float, Tensor]:
        """Return the share that each image keeps (mix-up, arXiv:1710.09412), and the image [B] that gives the rest."""
        device, count = batch.images.device, len(batch.images)
        if not self.mixup:
            return 1.0, torch.arange(count, device=device)
        with seeded(batch.seed, "share"):
            share = float(Beta(self.mixup, self.mixup).sample())
        return share, torch.randperm(count, device=device, generator=generator_at(device, batch.seed, "partners"))

    def _labels(self, batch: Batch, num_classes: int) -> Tensor:
        """Return one label drawn for each image, [B, K]."""
        concentrations = self._concentrations(batch, num_classes)
        if not self.alpha:
            return concentrations / self.concentration
        with seeded(batch.seed, "labels"):
            draws: Tensor = Dirichlet(concentrations.double().cpu().clamp_min(LEAST)).sample()
        return draws.to(concentrations)

    def _concentrations(self, batch: Batch, num_classes: int, beta: Tensor | None = None) -> Tensor:
        """Return the parameters [B, K] of the labels' distributions."""
        one_hot = batch.targets.ndim == 1
        labels = F.one_hot(batch.targets, num_classes).to(batch.images) if one_hot else batch.targets
        beta = self._beta(batch, num_classes) if beta is None else beta
        return self.concentration * ((1 - self.alpha) * labels + self.alpha * beta)

    def _beta(self, batch: Batch, num_classes: int) -> Tensor:
        """Return the label parameters [K]."""
        beta: Tensor = batch.memory.shared.setdefault("label_parameters", torch.ones(num_classes))
        return beta.to(batch.images)

    def _ascend(self, model: nn.Module, batch: Batch) -> None:
        """Move beta one step up the loss at the clean images."""
        with frozen(model, self.batch_norm):
            logits = scores(model, batch.images)
        beta = self._beta(batch, logits.shape[1])
        # The authors' optimiser of beta has momentum and weight decay too; this is plain gradient ascent.
        moved = beta + self.learning_rate * batch.mean(self._slope(logits, beta, batch))
        batch.memory.shared["label_parameters"] = moved.clamp_min(LEAST)

    def _slope(self, logits: Tensor, beta: Tensor, batch: Batch) -> Tensor:
        """Return the gradient [K] of the expected loss in beta.

        The authors differentiate a draw. The loss is linear in the label, so that its expectation is the loss of the
        mean label: the same gradient on average, without the noise.
        """
        with torch.enable_grad():
            beta = beta.detach().requires_grad_()
            concentrations = self._concentrations(batch, logits.shape[1], beta)
            mean = concentrations / concentrations.sum(1, keepdim=True)
            (slope,) = torch.autograd.grad(F.cross_entropy(logits, mean), beta)
        return slope
