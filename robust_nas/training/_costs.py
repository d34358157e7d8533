"""The cost of a training step: its work in forward passes, its memory in passes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    trainer = _trainer(training, model)
    once = operations(lambda: _forward(model, batch))
    return operations(lambda: trainer.step(batch, 0.0)) / once


@dataclass(frozen=True)
class StepCost:
    """The cost of an optimiser step, for any network.

    Args:
        passes: its operations, as a multiple of those of one forward pass of the batch.
        graphs: its activations, as a multiple of those that a forward pass keeps for its backward pass: 1 if never two
            passes are differentiated together.
        copies: what is held beside them and does not grow with the batch, weights and gradients left out, as a
            multiple of the gradients' size.
        optimiser: the optimiser's state, as a multiple of the gradients' size.
    """

    passes: float
    graphs: float
    copies: float
    optimiser: float


def step_cost(
    training: Training, network: Callable[[], nn.Module], batch: Callable[[int], Batch], size: int = 8
) -> StepCost:
    """Return the cost of a step, counted in real ones of a small network, whatever the method and the options.

    Args:
        network: returns a new network on the CPU.
        batch: returns a batch of so many images, with a memory of its own.
        size: images of the smaller of the two batches that tell what grows with the batch from what does not.
    """
    passes, slopes, rests = 0.0, [], []
    peaks: list[tuple[int, int]] = []
    for count in (size, 2 * size):
        model, images = network().train(), batch(count)
        trainer = _trainer(training, model)
        trainer.step(images, 0.0)  # makes the optimiser's state
        once = operations(lambda: _forward(model, images))
        with Meter(chain(model.parameters(), model.buffers())) as meter:
            trainer.step(images, 0.0)
        passes = meter.flops / once
        gradients = size_of(weight for weight in model.parameters() if weight.requires_grad)
        optimiser = trainer.optimiser_size / gradients
        model.zero_grad()
        peaks.append((meter.peak, measure_pass(model, images.images).peak))
    slopes = [large - small for small, large in zip(*peaks, strict=True)]
    rests = [small - slope for small, slope in zip(peaks[0], slopes, strict=True)]
    return StepCost(passes, slopes[0] / slopes[1], max(0.0, (rests[0] - rests[1]) / gradients), optimiser)


def _trainer(training: Training, model: nn.Module) -> Trainer:
    """Return a trainer of a model, as `fit` makes it."""
    if training.mixes:
        mix(model)
    training.method.prepare(model, 0)
    return Trainer(model, training, World())


def _forward(model: nn.Module, batch: Batch) -> None:
    with torch.no_grad():
        logits_of(model, batch.images)
