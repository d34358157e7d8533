"""The cost of training a network, from its shapes: on the meta device, so that no network or image is too large.

Work is in passes and in multiplications; memory is what torch holds: weights with their copies, and the activations
that wait for the backward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from robust_nas import spaces
from robust_nas.architectures.resnet import NETS, ResNetArchitecture
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import generator_at, seeded
from robust_nas.datasets import DataForm
from robust_nas.models.checkpointing import blocks_of
from robust_nas.models.complexity import count_parameters
from robust_nas.models.frozen import evaluating
from robust_nas.models.metering import Meter, Pass, measure_pass, size_of
from robust_nas.recipes import Recipe
from robust_nas.records.scaling import StudyData
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory, StepCost, Training, step_cost

PROBED = 16
"""The largest side in pixels of the images on which a step's cost is counted, if the network takes such."""

NARROW = 8
"""The channels of the first stage of the network on which a step's memory is counted, where groups do not want more."""


@dataclass(frozen=True)
class Size:
    """The size of a network.

    Args:
        parameters: trainable ones.
        multiply_adds: those of convolutions and matrix products in a forward pass of one image.
    """

    parameters: int
    multiply_adds: int


@lru_cache(maxsize=4096)
def size(network: ResNetArchitecture, data: StudyData, side: int | None = None) -> Size:
    """Return the size of a network on a study's images, or on such of `side` pixels."""
    shape = image_shape(data, side)
    built = on_meta(network, form_of(data, shape))
    with torch.device("meta"):
        images = torch.empty(1, *shape)
    with Meter(chain(built.parameters(), built.buffers())) as meter, torch.no_grad():
        evaluating(built)(images)
    return Size(count_parameters(built), meter.flops // 2)


def image_shape(data: StudyData, side: int | None = None) -> tuple[int, int, int]:
    """Return the shape of a study's images, or of the same with `side` pixels."""
    channels, height, width = data.image_shape
    return (channels, height, width) if side is None else (channels, side, side)


def form_of(data: StudyData, shape: tuple[int, int, int]) -> DataForm:
    """Return the form of a study's data, with images of a shape."""
    return DataForm(data.name, tuple(map(str, range(data.num_classes))), shape)


def on_meta(network: ResNetArchitecture, form: DataForm) -> nn.Module:
    """Return an architecture's network on the meta device, where weights have shapes and no values."""
    # Within a meter, which skips what is written, weights need not be initialised.
    with torch.device("meta"), Meter():
        return _space(str(network)).network(network, form)


@lru_cache(maxsize=64)
def _space(text: str) -> spaces.Space:
    space = spaces.alone(text)
    assert space is not None
    return space


@dataclass(frozen=True)
class Part:
    """The epochs of a training that have images and batches of one size.

    Args:
        epochs: number of epochs.
        steps: optimiser steps of each.
        batch_size: images of each step.
        side: pixels of the images, if it is not the data's.
    """

    epochs: int
    steps: int
    batch_size: int
    side: int | None


def parts_of(training: Training, data: StudyData) -> list[Part]:
    """Return the parts of a training.

    Raises:
        InputError: for a batch that is larger than the training split.
    """
    found = []
    for phase in training.phases or (training.phase_at(0),):
        batch = phase.batch_size or training.batch_size
        if batch > data.num_train:
            raise InputError(
                f"train.batch_size of {batch} is larger than the {data.num_train} images there are; set it lower."
            )
        steps = data.num_train // batch * training.method.replays
        found.append(Part(phase.epochs, steps, batch, phase.size))
    return found


def training_flops(recipe: Recipe, network: ResNetArchitecture, data: StudyData) -> float:
    """Return the multiplications and additions of all steps of a training, the crafting of images included."""
    passes = step_of(recipe, network, data).passes
    return math.fsum(
        part.epochs * part.steps * part.batch_size * passes * 2 * size(network, data, part.side).multiply_adds
        for part in parts_of(recipe.train, data)
    )


_STEPS: dict[tuple[str, str, int], StepCost] = {}


def step_of(recipe: Recipe, network: ResNetArchitecture, data: StudyData) -> StepCost:
    """Return the cost of a step of a recipe's training, in passes of the network.

    Counted are real steps of the shallowest network of the line, on small images: a method does the same passes
    whatever the depth.
    """
    # What grows with the batch grows with its parts.
    training = replace(recipe.train, accumulate=1)
    if training.precision == "float16":
        training = replace(training, precision="bfloat16")  # as large, and fast on a CPU too
    # With a block in each stage, there would be little to compute again.
    shallow = replace(network, stages=(1 + training.checkpointing,) * len(network.stages))
    halvings = len(network.stages) - 1 + 2 * (network.stem == "imagenet")
    side = min(*data.image_shape[1:], max(PROBED, 2**halvings))
    key = (config.digest([config.to_dict(training), config.to_dict(recipe.threat)]), str(shallow), side)
    if key not in _STEPS:
        form = form_of(data, image_shape(data, side))
        share = Fraction(max(NARROW, network.groups or 1), NETS[network.net].base[0])
        narrow = replace(shallow, widths=(float(share),) * len(network.stages))
        _STEPS[key] = step_cost(
            training,
            lambda: made(shallow, form),
            lambda: made(narrow, form),
            lambda count: random_batch(form, recipe.threat, count),
        )
    return _STEPS[key]


def made(network: ResNetArchitecture, form: DataForm) -> nn.Module:
    """Return an architecture's untrained network."""
    with seeded(0, "costs"):
        return _space(str(network)).network(network, form)


def random_images(form: DataForm, count: int) -> Tensor:
    """Return random images [count, C, H, W] in [0, 1]."""
    return torch.rand(count, *form.image_shape, generator=generator_at("cpu", 0, "costs"))


def random_batch(form: DataForm, threat: ThreatModel, count: int, device: torch.device | str = "cpu") -> Batch:
    """Return a batch of random images, with all classes in turn."""
    places = torch.arange(count, device=device)
    labels, images = places % len(form.classes), random_images(form, count).to(device)
    return Batch(images, labels, labels, threat, 0, places, places, count, count, Memory())


def part_of(batch: Batch, count: int) -> Batch:
    """Return the first images of a batch as one of their own."""
    tensors = {name: getattr(batch, name)[:count] for name in ("images", "labels", "targets", "ids", "places")}
    return replace(batch, **tensors, num_samples=count, batch_size=count, memory=Memory())


@dataclass(frozen=True)
class NetworkCost:
    """The passes of a network, at the sizes of a training.

    Args:
        size: parameters and multiply-adds.
        gradients: bytes of the gradients of its weights.
        state: bytes of parameters and buffers.
        training: the pass of a training step.
        attack: the forward pass of an attack on an evaluation's chunk of images, the weights held still.
    """

    size: Size
    gradients: int
    state: int
    training: Pass
    attack: Pass

    @property
    def activations(self) -> float:
        """The bytes that a training pass keeps of one image."""
        return self.training.kept / self.training.images

    @property
    def activations_checkpointed(self) -> float | None:
        """The same with checkpointing: inputs of blocks, and the largest block's own; None without blocks."""
        blocks = self.training.blocks
        return None if blocks is None else (_outside(self.training) + blocks.largest) / self.training.images

    @property
    def step(self) -> int:
        """The most bytes of a training pass, gradients left out."""
        return max(self.training.forward_peak, self.training.peak - self.gradients)

    @property
    def step_checkpointed(self) -> int | None:
        """The same with checkpointing; None without blocks."""
        return _checkpointed(self.training)

    @property
    def attack_checkpointed(self) -> int | None:
        """The most bytes of an attack's pass with checkpointing; None without blocks."""
        return _checkpointed(self.attack)


def _outside(one: Pass) -> int:
    """Return the bytes that are kept outside of a pass's blocks."""
    assert one.blocks is not None
    return one.kept - one.blocks.kept + one.blocks.between


def _checkpointed(one: Pass) -> int | None:
    return None if one.blocks is None else max(_outside(one), one.blocks.checkpointed)


def network_cost(
    network: nn.Module,
    shape: tuple[int, int, int],
    batch_size: int,
    chunk: int,
    memory: dict[Any, Any] | None = None,
) -> NetworkCost:
    """Return the passes of any network on the meta device, which is left without gradients, its weights held still.

    Args:
        network: on the meta device.
        shape: [C, H, W] of its images.
        batch_size: images that a training step differentiates at once.
        chunk: images that an evaluation attacks at once.
        memory: as `metering.Meter` has it; networks have most shapes in common.
    """
    with torch.device("meta"):
        images, attacked = (torch.empty(count, *shape) for count in (batch_size, chunk))
    gradients = size_of(weight for weight in network.parameters() if weight.requires_grad)
    parameters, state = count_parameters(network), size_of(chain(network.parameters(), network.buffers()))
    network.train()
    try:
        blocks = blocks_of(network)
    except InputError:
        blocks = []
    training = measure_pass(network, images, blocks=blocks, memory=memory)
    network.zero_grad()
    for weight in evaluating(network).parameters():
        weight.requires_grad_(False)
    # Its backward pass keeps less and less: the most is held where it begins.
    attack = measure_pass(network, attacked.requires_grad_(), blocks=blocks, backward=False, memory=memory)
    size = Size(parameters, training.forward_flops // batch_size // 2)
    return NetworkCost(size, gradients, state, training, attack)


@dataclass(frozen=True)
class PeakMemory:
    """The most memory that a training takes, in bytes.

    Args:
        weights: parameters and buffers, of the network and its copies (the best epoch's, the running mean's).
        gradients: of the weights, with what a method holds beside them.
        optimiser: its state.
        step: activations of a training step.
        step_checkpointed: the same with checkpointing; None for a network without blocks.
        validation: activations of the attack on validation images, which are not there together with a step's.
        validation_checkpointed: the same with checkpointing; None for a network without blocks.
    """

    weights: int
    gradients: int
    optimiser: int
    step: int
    step_checkpointed: int | None
    validation: int
    validation_checkpointed: int | None

    @property
    def fixed(self) -> int:
        """The part that does not grow with the batch."""
        return self.weights + self.gradients + self.optimiser

    def peak(self, checkpointing: bool = False) -> int:
        """Return the most that is held at once."""
        checkpointed = (self.step_checkpointed or self.step, self.validation_checkpointed or self.validation)
        return self.fixed + max(checkpointed if checkpointing else (self.step, self.validation))


def peak_memory(cost: NetworkCost, step: StepCost, averages: bool, overhead: float = 1.0) -> PeakMemory:
    """Return the memory of a training.

    Args:
        step: of its steps.
        averages: whether there is a running mean of the weights.
        overhead: the memory that activations take, as a multiple of what torch holds.
    """

    def taken(activations: int | None, graphs: float) -> int | None:
        return None if activations is None else round(overhead * graphs * activations)

    return PeakMemory(
        weights=cost.state * (3 if averages else 2),
        gradients=round(cost.gradients * (1 + step.copies)),
        optimiser=round(cost.gradients * step.optimiser),
        step=round(overhead * step.graphs * cost.step),
        step_checkpointed=taken(cost.step_checkpointed, step.graphs),
        validation=round(overhead * cost.attack.forward_peak),
        validation_checkpointed=taken(cost.attack_checkpointed, 1.0),
    )
