"""The cost of a training step, in forward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robust_nas.models.mixture_norm import mix
from robust_nas.models.scores import logits_of
from robust_nas.runtime.distributed import World
from robust_nas.training import Batch
from robust_nas.training._loop import Trainer

if TYPE_CHECKING:
    from robust_nas.training._plan import Training


class _Operations(TorchDispatchMode):
    """Counts the multiplications of convolutions and matrix products, by torch's own formulas.

    Not `FlopCounterMode`: what it does to assign operations to modules fails in `autograd.grad` to the images.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.count += formula(*args, **(kwargs or {}), out_val=result)
        return result


def operations(work: Callable[[], object]) -> int:
    """Count the multiplications and additions of convolutions and matrix products in a call."""
    with _Operations() as counter:
        work()
    return counter.count


def forward_equivalents(training: Training, model: nn.Module, batch: Batch) -> float:
    """Return the operations of one optimiser step, as a multiple of those of one forward pass of the batch.

    A forward pass is 1, a backward pass to the images 1 more, a backward pass to images and weights 2 more: counted
    are the products that are really computed, so that PGD-k training costs 2k + 3 and
    not 3k + 3 if nothing needless is differentiated.

    Args:
        model: in training mode; it is changed by a step.
        batch: with a memory of its own.
    """
    if training.mixes:
        mix(model, shared=training.shares_affine)
    trainer = Trainer(model, training, World())

    def forward() -> None:
        with torch.no_grad():
            logits_of(model, batch.images)

    once = operations(forward)
    return operations(lambda: trainer.step(batch, 0.0)) / once
