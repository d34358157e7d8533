"""The batches of a training, augmented."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from robust_nas.core.seeds import generator_at, seed_at
from robust_nas.datasets import epoch_batches, stream_batches
from robust_nas.runtime.stages import Stage
from robust_nas.training import Batch, Memory
from robust_nas.training._augment import crop_and_flip, cutout, mix_up

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset, TrainingImages
    from robust_nas.threat import ThreatModel
    from robust_nas.training._plan import Training


def steps_of(data: Dataset, training: Training, epoch: int) -> int:
    """Return the steps of an epoch."""
    size = training.phase_at(epoch).batch_size or training.batch_size
    return len(data.train) // size * training.method.replays


def batches_of(
    data: Dataset,
    threat: ThreatModel,
    training: Training,
    memory: Memory,
    stage: Stage,
    epoch: int,
    unlabelled: TrainingImages | None = None,
    done: int = 0,
) -> Iterator[tuple[float, Batch]]:
    """Give this rank's augmented batches of an epoch, each with the share of the training that is done after it.

    Args:
        unlabelled: images without labels, of which each batch has some.
        done: steps of the epoch that are done, whose batches are left out.
    """
    world, phase, num_classes = stage.world, training.phase_at(epoch), len(data.classes)
    replays = training.method.replays
    size = phase.batch_size or training.batch_size
    indices = epoch_batches(len(data.train), size, world, stage.seed, stage.name, epoch)
    begun = done // replays
    read = data.train.batches(indices[begun:], size=phase.size, seed=seed_at(stage.seed, stage.name, epoch, "read"))
    places = torch.arange(world.rank, size, world.size, device=world.device)
    steps = len(indices) * replays
    others = _unlabelled_batches(unlabelled, data, training, stage, epoch, begun)
    for iteration, (ids, part, other) in enumerate(zip(indices[begun:], read, others, strict=False), begun):
        place = (stage.name, epoch, iteration, "rank", world.rank)
        generator = generator_at(world.device, stage.seed, *place, "augment")
        images, targets = crop_and_flip(part.images, training.padding, training.flip, generator), part.labels
        if training.cutout:
            images = cutout(images, training.cutout, generator)
        if training.mix_up:
            images, targets = mix_up(images, part.labels, num_classes, training.mix_up, generator)
        if training.label_smoothing:
            targets = _smoothed(targets, num_classes, training.label_smoothing)
        for replay in range(done % replays if iteration == begun else 0, replays):
            step = iteration * replays + replay
            epsilon_scale = training.epsilon_scale_at((epoch + step / steps) / training.epochs)
            # The first replay of a batch draws as a method without replays does.
            again = (replay,) if replay else ()
            seed = seed_at(stage.seed, *place, *again, "craft")
            yield (
                (epoch + (step + 1) / steps) / training.epochs,
                Batch(
                    images=images,
                    labels=part.labels,
                    targets=targets,
                    threat=threat.grown(epsilon_scale),
                    seed=seed,
                    ids=ids.to(world.device),
                    places=places,
                    num_samples=len(data.train),
                    batch_size=size,
                    memory=memory,
                    mean=world.mean,
                    epsilon_scale=epsilon_scale,
                    unlabelled=other,
                ),
            )


def _unlabelled_batches(
    unlabelled: TrainingImages | None, data: Dataset, training: Training, stage: Stage, epoch: int, begun: int
) -> Iterator[Tensor | None]:
    """Give this rank's unlabelled images of every batch of an epoch, augmented; without any, nothing for ever.

    Args:
        begun: batches that are left out.
    """
    if unlabelled is None:
        yield from repeat(None)
        return
    world, phase = stage.world, training.phase_at(epoch)
    steps = [
        len(data.train) // (training.phase_at(each).batch_size or training.batch_size) for each in range(epoch + 1)
    ]
    size = training.unlabelled_batch or phase.batch_size or training.batch_size
    place = (stage.name, "unlabelled")
    indices = stream_batches(len(unlabelled), size, world, stage.seed, *place, first=sum(steps[:-1]), number=steps[-1])
    read = unlabelled.batches(indices[begun:], size=phase.size, seed=seed_at(stage.seed, *place, epoch, "read"))
    for iteration, part in enumerate(read, begun):
        generator = generator_at(world.device, stage.seed, *place, epoch, iteration, "rank", world.rank)
        images = crop_and_flip(part.images, training.padding, training.flip, generator)
        yield cutout(images, training.cutout, generator) if training.cutout else images


def _smoothed(targets: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return probabilities [B, K] with a part of each label spread over all classes."""
    sharp = targets if targets.is_floating_point() else F.one_hot(targets, num_classes).float()
    return (1 - smoothing) * sharp + smoothing / num_classes
