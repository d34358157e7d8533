"""The neural tangent kernel of a network at its initialisation (Jacot et al. 2018, arXiv:1806.07572)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

Measure = Literal["min_eigenvalue", "condition_number"]
"""The score of a kernel's spectrum: the least eigenvalue, or the condition number's reciprocal."""

Gradients = Mapping[str, Tensor]
"""A function's gradients for B images, [B, *shape] for each parameter by name."""


def gradients(model: nn.Module, images: Tensor, chunk_size: int) -> Gradients:
    """Return the gradient with respect to all parameters of f(x) = sum of x's logits / sqrt(K), for each of `images`.

    With random last weights, one such function stands for the K logits: its kernel approaches their mean one as
    networks grow wide (the pseudo-NTK, Mohamadi et al. 2023, arXiv:2206.12543).

    Args:
        model: in evaluation mode; an image's logits depend on that image alone.
        images: [B, C, H, W].
        chunk_size: images that are differentiated together; it does not change what is found.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def f(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, parameters, (image.unsqueeze(0).clone(),))
        return logits.sum() / logits.shape[1] ** 0.5

    found: Gradients = vmap(grad(f), (None, 0), chunk_size=chunk_size)(parameters, images)
    return found


def kernel(left: Gradients, right: Gradients) -> Tensor:
    """Return the inner products of two batches' gradients over all parameters, [B, B], in float64."""
    return torch.stack([left[name].flatten(1).double() @ right[name].flatten(1).double().T for name in left]).sum(0)


def spectrum_score(matrix: Tensor, measure: Measure) -> float:
    """Return a positive semi-definite kernel's least eigenvalue, or its ratio to the largest one.

    The ratio is the reciprocal of the condition number: it ranks as the negative condition number does, and is finite
    for a singular kernel, 0.
    """
    eigenvalues = torch.linalg.eigvalsh(matrix).clamp_min(0)
    least, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if measure == "min_eigenvalue":
        return least
    return least / largest if largest else 0.0
