"""The pace of a model on this machine: the number of threads with which a step of it is fastest."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from robust_nas.models.complexity import count_parameters
from robust_nas.models.frozen import copied
from robust_nas.models.scores import logits_of
from robust_nas.runtime import threads


def settle_threads(model: nn.Module, images: Tensor) -> Mapping[int, float]:
    """Give torch the number of threads with which a gradient step is fastest, and return what was tried.

    On an accelerator nothing is done, nor for a model without such a step: what is wrong with it is said where it
    matters.

    Args:
        images: a batch [B, C, H, W] in [0, 1].
    """
    if images.device.type != "cpu":
        return {}
    before = torch.get_num_threads()
    try:
        return threads.settle(gradient_step(model, images), (type(model), count_parameters(model), images.shape))
    except Exception:  # whatever a model's own code raises, such as for what it returns in training mode
        torch.set_num_threads(before)
        return {}


def gradient_step(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """Return a step on a copy of a model: its logits of a batch, and the gradients of a loss by weights and images."""
    network = copied(model)

    def step() -> None:
        with torch.enable_grad():
            points = images.clone().requires_grad_()
            logits_of(network, points).float().log_softmax(1)[:, 0].sum().backward()
        network.zero_grad()

    return step
