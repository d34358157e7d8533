"""The cost of a training step: its work in forward passes, its memory in passes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import nn

from robust_nas.models.metering import Meter, measure_pass, size_of
from robust_nas.models.mixture_norm import mix
from robust_nas.models.scores import logits_of
from robust_nas.runtime.distributed import World
from robust_nas.training import Batch
from robust_nas.training._loop import Trainer

if TYPE_CHECKING:
    from robust_nas.training._plan import Training


def operations(work: Callable[[], object]) -> int:
    """Count the multiplications and additions of convolutions and matrix products in a call."""
    with Meter() as meter:
        work()
    return meter.flops


def forward_equivalents(training: Training, model: nn.Module, batch: Batch) -> float:
    """Return the operations of one optimiser step, as a multiple of those of one forward pass of the batch.

    A forward pass is 1, a backward pass to the images 1 more, a backward pass to images and weights 2 more: counted
    are the products that are really computed, so that PGD-k training costs 2k + 3 and
    not 3k + 3 if nothing needless is differentiated.

    Args:
        model: in training mode; it is changed by a step.
        batch: with a memory of its own.
    """
    trainer = trainer_of(training, model)

    def forward() -> None:
        with torch.no_grad():
            logits_of(model, batch.images)

    once = operations(forward)
    return operations(lambda: trainer.step(batch, 0.0)) / once


@dataclass(frozen=True)
class StepCost:
    """The cost of an optimiser step, for any network.

    Args:
        passes: its operations, as a multiple of those of one forward pass of the batch.
        graphs: its activations without checkpointing, as a multiple of those that a forward pass keeps for its backward
            pass: 1 if never two passes are differentiated together.
        copies: what is held beside them and does not grow with the batch, weights and gradients left out, as a
            multiple of the gradients' size.
        optimiser: the optimiser's state, as a multiple of the gradients' size.
    """

    passes: float
    graphs: float
    copies: float
    optimiser: float


def step_cost(
    training: Training,
    network: Callable[[], nn.Module],
    narrow: Callable[[], nn.Module],
    batch: Callable[[int], Batch],
) -> StepCost:
    """Return the cost of a step, counted in real ones of small networks, whatever the method and the options.

    Args:
        network: returns a new network on the CPU, whose first layer has a usual share of its work.
        narrow: the same, with weights that are small beside its activations.
        batch: returns a batch of so many images, with a memory of its own.
    """
    passes = forward_equivalents(training, network().train(), batch(2))
    # Of a plain pass too, checkpointing would leave the inputs of blocks.
    training = replace(training, checkpointing=False)
    (small, plain, gradients, _), (larger, larger_plain, _, optimiser) = (
        _peaks(training, narrow().train(), batch(2), batch(count)) for count in (_SMALL, 2 * _SMALL)
    )
    slope, plain_slope = larger - small, larger_plain - plain
    rest, plain_rest = small - slope, plain - plain_slope
    return StepCost(passes, slope / plain_slope, max(0.0, (rest - plain_rest) / gradients), optimiser / gradients)


_SMALL = 32
"""Images of the smaller of the two batches that tell what grows with the batch from what does not."""


def _peaks(training: Training, model: nn.Module, first: Batch, batch: Batch) -> tuple[int, int, int, int]:
    """Return the most bytes that a step holds, and a plain pass, and those of gradients and the optimiser's state.

    Args:
        first: a small batch, whose step makes the optimiser's state.
        batch: the one of the counted step.
    """
    trainer = trainer_of(training, model)
    trainer.step(first, 0.0)
    with Meter(chain(model.parameters(), model.buffers())) as meter:
        trainer.step(batch, 0.0)
    gradients = size_of(weight for weight in model.parameters() if weight.requires_grad)
    model.zero_grad()
    return meter.peak, measure_pass(model, batch.images).peak, gradients, trainer.optimiser_size


def trainer_of(training: Training, model: nn.Module, world: World | None = None) -> Trainer:
    """Return a trainer of a model, as `fit` makes it; without a world, in this process on the CPU."""
    if training.mixes:
        mix(model, shared=training.shares_affine)
    training.method.prepare(model, 0)
    return Trainer(model, training, world or World())
