"""Concurrent adversarial learning (Liu et al., ICLR 2022, arXiv:2106.00221): examples crafted with stale weights.

They can be crafted while the steps before theirs are still under way: the gain of large batches on many devices. With
`crafters = "others"`, half of the processes do so. By default every process crafts its own, in their own step, with the
weights that they would have seen: the same numbers, and no faster.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks import Attack
from robust_nas.attacks.fgsm import FGSM
from robust_nas.core.checks import check_at_least, check_choice
from robust_nas.core.errors import InputError
from robust_nas.training import Batch, Norm, TrainingMethod
from robust_nas.training._concurrent import past_states, remember, state_of

Crafters = Literal["own", "others"]


@dataclass(frozen=True, kw_only=True)
class ConAdv(TrainingMethod):
    """Cross-entropy on clean images and on adversarial ones made with the weights of some steps before.

    Clean and adversarial images have batch norms of their own (`norm`).

    Args:
        attack: crafts the examples. The default goes up one gradient, the one that is computed concurrently.
        staleness: how many steps before its own an example's weights are from (tau); 0 for the present ones. Until
            there are that many, the first ones are taken. As many copies of the weights, and one more, are kept.
        weight: the weight of the adversarial images' loss; the clean images' has the rest.
        crafters: the processes that craft: each its "own" examples, or, concurrently, every second process those of
            the one before it ("others"). The first ones of such pairs share the batches and train; both groups
            evaluate.

    Raises:
        InputError: for a value outside its range.
    """

    norm: ClassVar[Norm] = "mixture"

    attack: Attack = field(default_factory=FGSM)
    staleness: int = 1
    weight: float = 0.5
    crafters: Crafters = "own"

    def __post_init__(self) -> None:
        check_at_least("ConAdv.staleness", self.staleness, 0)
        if not 0 <= self.weight <= 1:
            raise InputError(f"ConAdv.weight must be in [0, 1], but got {self.weight}.")
        check_choice("ConAdv.crafters", self.crafters, Crafters)
        if self.crafters == "others" and not self.staleness:
            raise InputError(
                "ConAdv.crafters 'others' craft while a step is taken, with weights from before it, but "
                "ConAdv.staleness is 0; set it to 1, or the crafters to 'own'."
            )

    @property
    def ahead(self) -> int:
        """The staleness, where others craft."""
        return self.staleness if self.crafters == "others" else 0

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return adversarial examples of the whole batch, for the model as it was `staleness` steps ago.

        Where others craft, the model is in that state.
        """
        if self.staleness and self.crafters == "own":
            model = self._stale(model, batch)
        return self.attack.perturb(model, batch.images, batch.labels, batch.threat, seed=batch.seed)

    def loss(self, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        """Return the weighted sum of the mean cross-entropies on clean and on crafted images."""
        clean = F.cross_entropy(forward(batch.images), batch.targets)
        adversarial = F.cross_entropy(forward(crafted), batch.targets)
        return (1 - self.weight) * clean + self.weight * adversarial

    def _stale(self, model: nn.Module, batch: Batch) -> nn.Module:
        """Remember the present state of `model`, and return a copy of it in the oldest state that is needed."""
        # The parts of a batch are one step's.
        if batch.first == 0:
            remember(batch.memory, state_of(model, batch.mean), self.staleness)
        stale = copy.deepcopy(model)
        stale.load_state_dict(past_states(batch.memory)[0])
        return stale
