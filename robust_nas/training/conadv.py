"""Concurrent adversarial learning (Liu et al., ICLR 2022, arXiv:2106.00221): examples crafted with stale weights.

They can be crafted while the steps before theirs are still under way: the gain of large batches on many devices. Here
they are crafted in their own step, with the weights that they would have seen: the same numbers, and no faster.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks import Attack
from robust_nas.attacks.fgsm import FGSM
from robust_nas.core.checks import check_at_least
from robust_nas.core.errors import InputError
from robust_nas.training import Batch, Norm, TrainingMethod


@dataclass(frozen=True, kw_only=True)
class ConAdv(TrainingMethod):
    """Cross-entropy on clean images and on adversarial ones made with the weights of some steps before.

    Clean and adversarial images have batch norms of their own (`norm`).

    Args:
        attack: crafts the examples. The default goes up one gradient, the one that is computed concurrently.
        staleness: how many steps before its own an example's weights are from (tau); 0 for the present ones. Until
            there are that many, the first ones are taken. As many copies of the weights, and one more, are kept.
        weight: the weight of the adversarial images' loss; the clean images' has the rest.

    Raises:
        InputError: for a value outside its range.
    """

    norm: ClassVar[Norm] = "mixture"

    attack: Attack = field(default_factory=FGSM)
    staleness: int = 1
    weight: float = 0.5

    def __post_init__(self) -> None:
        check_at_least("ConAdv.staleness", self.staleness, 0)
        if not 0 <= self.weight <= 1:
            raise InputError(f"ConAdv.weight must be in [0, 1], but got {self.weight}.")

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return adversarial examples of the whole batch, for the model as it was `staleness` steps ago."""
        if self.staleness:
            model = self._stale(model, batch)
        return self.attack.perturb(model, batch.images, batch.labels, batch.threat, seed=batch.seed)

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum of the mean cross-entropies on clean and on crafted images."""
        clean = F.cross_entropy(forward(batch.images), batch.targets)
        adversarial = F.cross_entropy(forward(crafted), batch.targets)
        return (1 - self.weight) * clean + self.weight * adversarial

    def _stale(self, model: nn.Module, batch: Batch) -> nn.Module:
        """Remember the present state of `model`, and return a copy of it in the oldest state that is needed."""
        past = batch.memory.shared.get("past_states", [])
        # The parts of a batch are one step's.
        if batch.first == 0:
            past = [*past, _state(model, batch)][-self.staleness - 1 :]
            batch.memory.shared["past_states"] = past
        stale = copy.deepcopy(model)
        stale.load_state_dict(past[0])
        return stale


@torch.no_grad()
def _state(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return a copy of the parameters and buffers of `model`, the same on every rank."""
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    # Parameters are equal on all ranks; running statistics are not within an epoch. One message carries them all.
    statistics = [state[name] for name, buffer in model.named_buffers() if name in state and buffer.is_floating_point()]
    if statistics:
        mean = batch.mean(torch.cat([values.flatten() for values in statistics]))
        for values, averaged in zip(statistics, mean.split([values.numel() for values in statistics]), strict=True):
            values.copy_(averaged.view_as(values))
    return state
