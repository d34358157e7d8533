"""Batch-norm statistics of a network that has inherited its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from robust_nas.datasets import epoch_batches

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset
    from robust_nas.runtime.distributed import World


Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def calibrated(
    network: Network, data: Dataset, world: World, seed: int, *, batches: int = 8, batch_size: int = 64
) -> Network:
    """Return the network with the plain means over a few clean training batches as batch-norm statistics."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return network.eval()
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # cumulative average
    network.train()
    for indices in epoch_batches(len(data.train), batch_size, world, seed, "derive")[:batches]:
        network(data.train[indices].images)
    world.mean_buffers(network)
    return network.eval()
