"""The cost of training a network, from its shapes: on the meta device, so that no size of network or image is too large.

Work is in passes and in multiplications; memory is what torch holds, which is weights and their copies, and the
activations that wait for the backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from robust_nas.core.errors import InputError
from robust_nas.datasets import DataForm
from robust_nas.models.checkpointing import blocks_of, checkpointed
from robust_nas.models.complexity import count_parameters
from robust_nas.models.frozen import evaluating
from robust_nas.models.metering import Pass, measure_pass, size_of
from robust_nas.spaces import Space, spaces_architecture
from robust_nas.training import StepCost


@dataclass(frozen=True)
class NetworkCost:
    """The cost of a network, whatever it is trained with.

    Args:
        parameters: trainable ones.
        gradients: their bytes.
        state: bytes of parameters and buffers.
        training: the pass of a training step, at the size of its batch.
        recomputed: the same where checkpointing computes activations again; None for a network without blocks.
        attack: the pass of an attack on the images of an evaluation's chunk, the weights held still.
        activations: bytes that a training step keeps for one image.
        activations_checkpointed: the same with checkpointing: inputs of blocks, and the largest block's own.
    """

    parameters: int
    gradients: int
    state: int
    training: Pass
    recomputed: Pass | None
    attack: Pass
    activations: float
    activations_checkpointed: float | None

    @property
    def multiply_adds(self) -> int:
        """Those of a forward pass of one image, of convolutions and matrix products."""
        return self.training.forward_flops // self.training.images // 2

    def pass_of(self, checkpointing: bool) -> Pass:
        """Return the pass of a training step with checkpointing or without.

        Raises:
            InputError: for a network without blocks.
        """
        if not checkpointing:
            return self.training
        if self.recomputed is None:
            raise InputError("The network has no blocks that checkpointing could compute again.")
        return self.recomputed


def network_cost(
    network: nn.Module, image_shape: tuple[int, int, int], batch_size: int, chunk: int, memory: dict[Any, Any]
) -> NetworkCost:
    """Return the cost of a network on the meta device.

    Args:
        network: on the meta device; its passes leave it without gradients.
        image_shape: channels, height and width.
        batch_size: images that a training step differentiates at once.
        chunk: images that an evaluation attacks at once.
        memory: as `metering.Meter` has it; shared by networks, which have most shapes in common.
    """
    with torch.device("meta"):
        images, attacked = (torch.empty(count, *image_shape) for count in (batch_size, chunk))
    gradients = size_of(weight for weight in network.parameters() if weight.requires_grad)
    parameters, state = count_parameters(network), size_of(chain(network.parameters(), network.buffers()))
    network.train()
    recomputed = kept = None
    try:
        blocks = blocks_of(network)
    except InputError:
        blocks = []
    training = measure_pass(network, images, blocks=blocks, memory=memory)
    if blocks:
        network.zero_grad()
        with checkpointed(network):
            recomputed = measure_pass(network, images, memory=memory)
        kept = (recomputed.kept + max(training.blocks)) / batch_size
    network.zero_grad()
    for weight in evaluating(network).parameters():
        weight.requires_grad_(False)
    attack = measure_pass(network, attacked.requires_grad_(), memory=memory)
    return NetworkCost(
        parameters, gradients, state, training, recomputed, attack, training.kept / batch_size, kept
    )


@dataclass(frozen=True)
class Memory:
    """The most memory that a training takes, in bytes.

    Args:
        weights: parameters and buffers, of the network and its copies (the best epoch's, the running mean's).
        gradients: of the weights, with what a method holds beside them.
        optimiser: its state.
        activations: of a training step.
        validation: activations of the attack on validation images; these and those of a step are not there together.
        recomputed: activations of a training step with checkpointing; None for a network without blocks.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int
    validation: int
    recomputed: int | None

    @property
    def fixed(self) -> int:
        """What does not grow with the batch."""
        return self.weights + self.gradients + self.optimiser

    def peak(self, checkpointing: bool = False) -> int:
        """Return the most that is held at once."""
        of_step = self.activations if not checkpointing or self.recomputed is None else self.recomputed
        return self.fixed + max(of_step, self.validation)


def memory_of(cost: NetworkCost, plain: StepCost, checkpointed: StepCost, averages: bool) -> Memory:
    """Return the memory of a training.

    Args:
        plain: the step's cost without checkpointing.
        checkpointed: with it.
        averages: whether there is a running mean of the weights.
    """

    def activations(one: Pass, step: StepCost) -> int:
        # The gradients of the step before are there until the forward pass is done.
        most = max(one.forward_peak, one.peak - cost.gradients)
        return round(step.graphs * most)

    return Memory(
        weights=cost.state * (3 if averages else 2),
        gradients=round(cost.gradients * (1 + plain.copies)),
        optimiser=round(cost.gradients * plain.optimiser),
        activations=activations(cost.training, plain),
        validation=cost.attack.peak,
        recomputed=None if cost.recomputed is None else activations(cost.recomputed, checkpointed),
    )


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Make networks on the meta device: their weights have shapes and no values."""
    with torch.device("meta"):
        yield


def network_on_meta(space: Space, architecture: Any, form: DataForm) -> nn.Module:
    """Return an architecture's network on the meta device."""
    with on_meta():
        return space.network(architecture, form)
