"""The roughness of a mixed network's loss or logits around the images, for alpha to lower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from robust_nas.core.errors import InputError
from robust_nas.core.seeds import generator_at

if TYPE_CHECKING:
    from robust_nas.training import Batch


@dataclass(frozen=True, kw_only=True)
class Smoothness:
    """A regulariser of alpha's loss, on the clean validation images.

    Args:
        kind: "curvature" is the squared change of the loss's input gradient over a step of epsilon along its sign
            (CURE, arXiv:1811.09716; in a search, AdvRush, Mok et al. 2021); "jacobian" is the squared Frobenius norm of
            the logits' input Jacobian, by one random projection (DSRNA, Hosseini et al. 2021; the estimator is that of
            arXiv:1908.02729).
        weight: its factor.

    Raises:
        InputError: if the weight is not above 0.
    """

    kind: Literal["curvature", "jacobian"] = "curvature"
    weight: float

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise InputError(f"search.smoothness.weight must be above 0, but got {self.weight}.")

    def penalty(self, forward: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """Return the weighted penalty, a mean over the batch's images, differentiable in what `forward` depends on."""
        images = batch.images.detach().requires_grad_()
        if self.kind == "jacobian":
            return self.weight * _squared_jacobian(forward, images, batch.seed)
        gradient = _input_gradient(forward, images, batch.labels)
        there = (images + batch.threat.epsilon * gradient.detach().sign()).detach().requires_grad_()
        change = _input_gradient(forward, there, batch.labels) - gradient
        return self.weight * change.flatten(1).square().sum(1).mean()


def _input_gradient(forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient [B, C, H, W] of each image's own loss."""
    loss = F.cross_entropy(forward(images), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, [images], create_graph=True)
    return gradient


def _squared_jacobian(forward: Callable[[Tensor], Tensor], images: Tensor, seed: int) -> Tensor:
    """Return an unbiased estimate of the mean squared Frobenius norm: K |v J|^2 for v uniform on the unit sphere."""
    logits = forward(images)
    generator = generator_at(logits.device, seed, "projection")
    direction = F.normalize(torch.randn(logits.shape, generator=generator, device=logits.device), dim=1)
    (product,) = torch.autograd.grad((logits * direction).sum(), [images], create_graph=True)
    return logits.shape[1] * product.flatten(1).square().sum(1).mean()
