"""Batches of a training split: the order is shared by all ranks, each rank takes its part of every global batch."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_nas.core.errors import InputError
from robust_nas.core.seeds import generator_at
from robust_nas.runtime.distributed import World


def check_batch(name: str, batch_size: int, count: int, world: World) -> None:
    """Raise InputError unless a global batch fits into `count` images and divides among the processes."""
    if batch_size % world.size:
        raise InputError(f"{name} of {batch_size} does not divide among {world.size} processes; change it.")
    if batch_size > count:
        raise InputError(f"{name} of {batch_size} is larger than the {count} images there are; set it lower.")


def epoch_batches(count: int, batch_size: int, world: World, seed: int, *place: str | int) -> list[Tensor]:
    """Return this rank's image indices of every global batch of an epoch, in the random order of `place`.

    Images that fill no whole batch are left out of this epoch; every rank gets equally many of each batch, so that
    the mean of the ranks' gradients is the gradient of the global batch.

    Raises:
        InputError: if the batch does not divide among the ranks, or is larger than the split.
    """
    check_batch("A batch", batch_size, count, world)
    order = torch.randperm(count, generator=generator_at("cpu", seed, *place))
    batches = order[: count - count % batch_size].split(batch_size)
    return [batch[world.rank :: world.size] for batch in batches]
