"""The common parts of scores: a network held still, its layers, the gradients of its loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from robust_nas.core.errors import InputError
from robust_nas.models.frozen import BatchNorm, frozen
from robust_nas.models.scores import logits_of

Weights = dict[str, Tensor]
"""The weights of a network's layers by their parameter's name."""


@contextlib.contextmanager
def held_still(model: nn.Module, images: Tensor, batch_norm: BatchNorm = "batch") -> Iterator[None]:
    """Hold an untrained `model` still (`models.frozen.frozen`) for images [B, C, H, W].

    An untrained network's running statistics say nothing: batch norm takes those of a batch.

    Args:
        batch_norm: "batch", the statistics of every batch that goes through; or "running", those of `images` (the
            variance over n - 1), which then stay as they are: an image's logits depend on that image alone, so that
            images can be differentiated one by one, and attacked.

    Raises:
        InputError: for fewer than two images, or a network whose logits are not finite.
    """
    if len(images) < 2:
        raise InputError(f"A score of a network needs at least 2 images, but got {len(images)}.")
    with frozen(model, batch_norm, fold=False), torch.no_grad():
        logits = logits_of(model, images) if batch_norm == "batch" else _calibrate(model, images)
        if not bool(logits.isfinite().all()):
            raise InputError("The network's logits are not finite; a score says nothing of it. Check its weights.")
        with torch.enable_grad():
            yield


def _calibrate(model: nn.Module, images: Tensor) -> Tensor:
    """Put the statistics of `images` into every batch norm, in one pass, and return the logits of that pass."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            # Copies: torch writes statistics unseen by the tensors' versions, by which `frozen` knows what to restore.
            norm.running_mean, norm.running_var = norm.running_mean.clone(), norm.running_var.clone()  # type: ignore[union-attr]
            norm.train()
            norm.momentum = 1.0
        logits = logits_of(model, images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
    return logits


def depends_on(model: nn.Module, images: Tensor) -> bool:
    """Return whether the logits depend on the images at all; those of a cell without a path from input to output don't.

    Nothing can attack such a network: an adversarial image is the image itself.
    """
    return logits_of(
        model, images.detach().clone().requires_grad_()
    ).requires_grad  # no parameter does: the model is held still


def layers(model: nn.Module) -> dict[str, _ConvNd | nn.Linear]:
    """Return the convolutions and linear layers by their weight's name: the layers of the published scores."""
    return {
        f"{name}.weight".lstrip("."): module
        for name, module in model.named_modules()
        if isinstance(module, _ConvNd | nn.Linear)
    }


def weights(model: nn.Module) -> Weights:
    """Return a copy of the layers' weights."""
    return {name: module.weight.detach().clone() for name, module in layers(model).items()}


def loss_gradients(model: nn.Module, at: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> Weights:
    """Return the gradient of the mean cross-entropy with respect to the layers' weights, where these are `at`."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in at.items()}
    loss = F.cross_entropy(functional_call(model, leaves, (images.clone(),)), labels)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(leaves.items(), found, strict=True)
    }
