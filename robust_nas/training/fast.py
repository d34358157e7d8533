"""Adversarial training with a single step: FGSM-RS (Wong et al. 2020, arXiv:2001.03994) and what keeps it sound.

A network can learn to withstand one step and nothing else, within an epoch: catastrophic overfitting. Against it there
are more noise (N-FGSM), a regulariser (GradAlign), and a watch that stops the training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks.fgsm import FGSM
from robust_nas.core.checks import check_choice
from robust_nas.core.errors import InputError
from robust_nas.core.pixels import unit_images
from robust_nas.core.seeds import generator_at
from robust_nas.models.frozen import BatchNorm, frozen
from robust_nas.models.losses import cross_entropy
from robust_nas.models.scores import check_finite, input_gradient
from robust_nas.threat import Pixels, check_pixels
from robust_nas.training import Batch, TrainingMethod

Start = Literal["uniform", "none", "n_fgsm"]


@dataclass(frozen=True, kw_only=True)
class Fast(TrainingMethod):
    """Cross-entropy on adversarial examples that one step makes.

    Args:
        start: the start of the step. "uniform": at a random point of the ball, 1.25 epsilon long and projected onto the
            ball (FGSM-RS, arXiv:2001.03994, algorithm 3). "none": at the image itself, epsilon long; catastrophic
            overfitting is to be expected. "n_fgsm": at noise from U(-2 epsilon, 2 epsilon), epsilon long, and projected
            onto [0, 1] only, so that it ends up to 3 epsilon from the image (N-FGSM, de Jorge et al. 2022,
            arXiv:2202.01181); for linf.
        step_size: step length in pixel units of [0, 1], instead of the published multiple of epsilon.
        grad_align: lambda of GradAlign, the mean of 1 - cos(grad_x l(x), grad_x l(x + eta)) with eta from
            U(-epsilon, epsilon) (Andriushchenko and Flammarion 2020, arXiv:2007.02617); 0 for none, 0.2 is published
            for epsilon 8/255. It costs two more forward passes, their backward passes, and one through those; for linf.
        batch_norm: "batch" or "running" statistics while crafting; the authors of FGSM-RS and of N-FGSM craft in
            training mode, with those of the batch.
        watch: the training stops, and the best epoch is kept, when the robust accuracy on validation images falls this
            far below that epoch's; 0 never stops.

    Raises:
        InputError: for a value outside its range, and, when crafting, for a norm that a setting is not for.
    """

    start: Start = "uniform"
    step_size: Pixels | None = None
    grad_align: float = 0.0
    batch_norm: BatchNorm = "batch"
    watch: float = 0.2

    def __post_init__(self) -> None:
        check_choice("Fast.start", self.start, Start)
        check_choice("Fast.batch_norm", self.batch_norm, BatchNorm)
        if self.step_size is not None:
            object.__setattr__(self, "step_size", check_pixels("Fast.step_size", self.step_size))
        if not self.grad_align >= 0:
            raise InputError(f"Fast.grad_align must be at least 0, but got {self.grad_align}.")
        if not 0 <= self.watch <= 1:
            raise InputError(f"Fast.watch is a fall in accuracy and must be in [0, 1], but got {self.watch}.")

    @property
    def differentiates_twice(self) -> bool:
        """Whether the loss has a gradient in it."""
        return self.grad_align > 0

    @property
    def accumulates(self) -> bool:
        """Whether the loss is the mean of a batch's parts'; GradAlign's is over the images that have a gradient."""
        return self.grad_align == 0

    @property
    def stays_in_ball(self) -> bool:
        """Whether the crafted images are inside the threat model."""
        return self.start != "n_fgsm"

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the images after one step."""
        norm = batch.threat.norm
        if self.start == "n_fgsm" and norm != "linf":
            raise InputError(f"Fast.start 'n_fgsm' is for linf, but got an {norm} threat model; set start='uniform'.")
        if self.grad_align and norm != "linf":
            raise InputError(f"Fast.grad_align is for linf, but got an {norm} threat model; set grad_align=0.")
        if self.start == "n_fgsm":
            return self._from_noise(model, batch)
        attack = FGSM(random_start=self.start == "uniform", step_size=self.step_size, batch_norm=self.batch_norm)
        return attack.perturb(model, batch.images, batch.labels, batch.threat, seed=batch.seed)

    def _from_noise(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the points of N-FGSM [B, C, H, W], in [0, 1]."""
        images = unit_images(batch.images)
        # The gradient is taken at an image too: as in the authors' code, the noise is clipped to [0, 1] before it.
        start = (images + _uniform(batch, 2 * batch.threat.epsilon, "n_fgsm")).clamp(0, 1)
        with frozen(model, self.batch_norm):
            logits, _, gradient = input_gradient(model, start, batch.labels, cross_entropy)
        points = (start + (self.step_size or batch.threat.epsilon) * gradient.sign()).clamp(0, 1)
        check_finite(self, logits, points)
        return points

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy at the crafted images, plus GradAlign's weighted mean."""
        loss = F.cross_entropy(forward(crafted), batch.targets)
        return loss + self.grad_align * _misalignment(forward, batch) if self.grad_align else loss


def _misalignment(forward: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """Return the mean of 1 - cos(grad_x l(x), grad_x l(x + eta)), with a graph to the model's parameters.

    The gradient flows through both, as in the paper's formula; the authors' code holds the first one fixed. As there,
    x + eta may leave [0, 1], and samples without a gradient are left out of the mean.
    """
    eta = _uniform(batch, batch.threat.epsilon, "grad_align")
    here, there = (_direction(forward, points, batch.labels) for points in (batch.images, batch.images + eta))
    cosine = F.cosine_similarity(here, there, dim=1)
    defined = (here.detach() != 0).any(1) & (there.detach() != 0).any(1)
    return torch.where(defined, 1 - cosine, 0).sum() / defined.sum().clamp_min(1)


def _direction(forward: Callable[[Tensor], Tensor], points: Tensor, labels: Tensor) -> Tensor:
    """Return the loss's gradient [B, C * H * W] at `points`, with a graph, each divided by its largest entry."""
    points = points.detach().requires_grad_()
    losses = cross_entropy(forward(points), labels)
    (gradient,) = torch.autograd.grad(losses.sum(), points, create_graph=True)
    gradient = gradient.flatten(1)
    # The angle does not depend on the length, but the squares of a sure model's tiny gradients would round to zero.
    return gradient / gradient.detach().abs().amax(1, keepdim=True).clamp_min(1e-37)


def _uniform(batch: Batch, radius: float, what: str) -> Tensor:
    """Return numbers from U(-radius, radius), shaped as the batch's images; `what` is their address."""
    images = batch.images
    generator = generator_at(images.device, batch.seed, what)
    uniform = batch.drawn(
        lambda count: torch.rand(
            (count, *images.shape[1:]), dtype=images.dtype, device=images.device, generator=generator
        )
    )
    return radius * (2 * uniform - 1)
