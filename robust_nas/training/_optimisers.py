"""The optimiser of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from robust_nas.training._plan import Training


def make_optimiser(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Return the optimiser of all of a model's parameters."""
    rate, decay = training.peak_rate, training.weight_decay
    parameters = _groups(model) if training.plain_vectors else model.parameters()
    nesterov = training.nesterov and training.momentum > 0
    if training.optimiser == "sgd":
        return torch.optim.SGD(
            parameters,
            rate,
            training.momentum,
            weight_decay=decay,
            nesterov=nesterov,
        )
    if training.optimiser == "adamw":
        return torch.optim.AdamW(parameters, rate, weight_decay=decay)
    # Imported only where it is asked for: it takes two seconds.
    from pytorch_optimizer import LARS, Lamb

    if training.optimiser == "lars":
        return LARS(
            parameters,
            rate,
            weight_decay=decay,
            momentum=training.momentum,
            nesterov=nesterov,
        )
    # Decay inside the update, so that the trust ratio sees it (arXiv:1904.00962, algorithm 2). Without adam_debias the
    # library divides the learning rate by 1 - beta_1^t, which makes the first step ten times too long.
    return Lamb(parameters, rate, weight_decay=decay, weight_decouple=False, adam_debias=True)


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters of more than one dimension, and the others with what leaves them plain."""
    learning = list(model.parameters())
    vectors = [parameter for parameter in learning if parameter.dim() < 2]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in learning if parameter.dim() > 1]},
        # A trust ratio of 1, in the library's words.
        {"params": vectors, "weight_decay": 0.0, "adam": True},
    ]
    return [group for group in groups if group["params"]]
