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


def stream_batches(
    count: int, batch_size: int, world: World, seed: int, *place: str | int, first: int, number: int
) -> list[Tensor]:
    """Return this rank's image indices of some global batches of an endless stream over `count` images.

    The stream goes through all images in a random order, then in another one, and so on: nothing is left out, and where
    it stands follows from the batch's number alone.

    Args:
        first: number of the first batch, from 0.
        number: of batches.

    Raises:
        InputError: if the batch does not divide among the ranks.
    """
    if batch_size % world.size:
        raise InputError(f"A batch of {batch_size} does not divide among {world.size} processes; change it.")
    start, stop = first * batch_size, (first + number) * batch_size
    passes = range(start // count, -(-stop // count))
    orders = [torch.randperm(count, generator=generator_at("cpu", seed, *place, again)) for again in passes]
    stream = torch.cat(orders)[start - passes.start * count :][: stop - start]
    return [batch[world.rank :: world.size] for batch in stream.split(batch_size)]
