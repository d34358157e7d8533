"""Synaptic flow (Tanaka et al. 2020, arXiv:2006.05467), summed (Abdelfattah et al. 2021, arXiv:2101.08134)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robust_nas.proxies._networks import held_still, layers
from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Synflow:
    """The sum of w dR/dw over all weights of all layers, R the sum of the logits of an all-one image.

    In R every parameter has its absolute value and batch norm is left out, as in Abdelfattah et al.'s code. Of the
    images only the size matters. In float64: R is a product over layers.
    """

    def score(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0) -> float:
        """Return the score of `model`; of the images only the size is used."""
        with held_still(model, images):
            linear = _without_batch_norm(copy.deepcopy(model)).double()
            with torch.no_grad():
                for parameter in linear.parameters():
                    parameter.abs_()
            found = [module.weight.requires_grad_() for module in layers(linear).values()]
            r = linear(torch.ones_like(images[:1], dtype=torch.float64)).sum()
            gradients = torch.autograd.grad(r, found, allow_unused=True)
        pairs = zip(found, gradients, strict=True)
        return sum(float((weight.detach() * gradient).sum()) for weight, gradient in pairs if gradient is not None)


def _without_batch_norm(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, nn.Identity())
    return model
