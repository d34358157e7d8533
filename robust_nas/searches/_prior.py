"""The start of alpha: the score that untrained networks give each operation on each edge."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at, seeded
from robust_nas.datasets import epoch_batches
from robust_nas.proxies import Proxy
from robust_nas.proxies.synflow import Synflow
from robust_nas.runtime.distributed import World
from robust_nas.samplers import draw

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset
    from robust_nas.runtime.stages import Stage
    from robust_nas.spaces import MixedSpace
    from robust_nas.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Prior:
    """The score of random architectures, as a start for alpha.

    An operation's effect on an edge is the mean normal score (of ranks, which have no unit) of the architectures that
    have it there, less the mean of the edge's operations.

    Args:
        proxy: the score.
        architectures: number of random architectures to score.
        batch_size: training images to score them on.
        strength: factor of effects before they are added to alpha.

    Raises:
        InputError: for a value outside its range.
    """

    proxy: Proxy = field(default_factory=Synflow)
    architectures: int = 100
    batch_size: int = 32
    strength: float = 1.0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("architectures", self.architectures, 2),
            ("batch_size", self.batch_size, 2),
            ("strength", self.strength, 0),
        ):
            if value < least:
                raise InputError(f"search.prior.{name} must be at least {least}, but got {value}.")

    def alpha(self, space: MixedSpace, data: Dataset, threat: ThreatModel, stage: Stage) -> Tensor:
        """Return the term to add to alpha [E, O]; equal on all ranks."""
        (indices, *_) = epoch_batches(len(data.train), self.batch_size, World(), stage.seed, "prior")
        batch, generator = data.train[indices], Random(seed_at(stage.seed, "prior"))
        cells: list[list[int]] = []
        scores: list[float] = []
        while len(cells) < self.architectures:
            cell = draw(space, generator)
            if not cell.is_connected:
                continue
            with seeded(stage.seed, "prior", len(cells)):
                network = space.network(cell, data).to(stage.world.device)
            cells.append([-1 if place is None else place for place in space.indices_of(cell)])
            scores.append(self.proxy.score(network, batch.images, batch.labels, threat, seed=stage.seed))
        return self.strength * stage.world.broadcast(
            effects(torch.tensor(cells), torch.tensor(scores), len(space.operations))
        )


def effects(cells: Tensor, scores: Tensor, num_operations: int) -> Tensor:
    """Return the effect [E, O] of every operation on every edge on the normal scores of architectures.

    Args:
        cells: [N, E], the operations' places; -1 for no edge.
        scores: [N].
        num_operations: O.
    """
    ranks = scores.double().argsort().argsort().double()
    # The quantiles of the ranks (Blom), with mean 0 and variance about 1.
    normal = torch.special.ndtri((ranks + 0.625) / (len(ranks) + 0.25))
    num_edges = cells.shape[1]
    found = torch.zeros(num_edges, num_operations, dtype=torch.float64)
    for edge in range(num_edges):
        for place in range(num_operations):
            having = cells[:, edge] == place
            if bool(having.any()):
                found[edge, place] = normal[having].mean()
    return (found - found.mean(1, keepdim=True)).float()
