"""The base class of relaxations of the choice of operations: alpha, and the operations that are still there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from robust_nas.core.seeds import seeded

Schedule = tuple[float, float]
"""A positive setting's value at the start and at the end of a search."""


def drawn_by(mixture: Tensor, seed: int) -> Tensor:
    """Return one operation per edge [E, O], one-hot, drawn by the weights of a mixture [E, O]."""
    with seeded(seed, "operations"):
        drawn = torch.multinomial(mixture, 1).squeeze(-1)
    return F.one_hot(drawn, mixture.shape[1]).to(mixture)


class Relaxation(ABC):
    """Mixtures of operations on every edge, made from learned numbers `alpha` [E, O].

    `alpha` lives on the CPU, small as it is, so that a sample is the same on every device and rank.

    Args:
        num_edges: E.
        num_operations: O.
        seed: draws the start, 1e-3 N(0, 1).
    """

    def __init__(self, num_edges: int, num_operations: int, *, seed: int) -> None:
        with seeded(seed, "alpha"):
            self.alpha = (1e-3 * torch.randn(num_edges, num_operations)).requires_grad_()
        self.active = torch.ones(num_edges, num_operations, dtype=torch.bool)
        self.progress = 0.0
        """The share of the search that is over, for schedules."""

    @abstractmethod
    def sample(self, seed: int) -> Tensor:
        """Return a mixture [E, O], rows on the simplex of the active operations, differentiable in alpha."""

    @abstractmethod
    def expected(self) -> Tensor:
        """Return the mean mixture [E, O], differentiable in alpha."""

    def mean(self) -> Tensor:
        """Return the mean mixture [E, O]: what validation and derivation use."""
        return self.expected().detach()

    def entropy(self) -> float:
        """Return the entropy of the mean mixture in nats, averaged over edges; log O at the start, 0 when decided."""
        return float(torch.special.entr(self.mean()).sum(dim=-1).mean())

    def anchor(self, kind: Literal["l2", "kl"]) -> Tensor:
        """Return the anchor to the mixtures' start: |alpha|^2 / 2 of the active operations ("l2")."""
        return self.alpha[self.active].square().sum() / 2

    def keep(self, count: int) -> None:
        """Keep each edge's `count` active operations of the largest mean weight; samples have no other from now on.

        DrNAS, arXiv:2006.10355, section 3.4.
        """
        largest = self.mean().masked_fill(~self.active, -1).topk(count, dim=-1).indices
        self.active &= torch.zeros_like(self.active).scatter(-1, largest, True)

    def describe(self) -> dict[str, Any]:
        """Return the record of a search's state, beside the mean mixture."""
        return {}

    def scheduled(self, schedule: Schedule) -> float:
        """Return a schedule's value, going from its start to its end in equal ratios."""
        start, end = schedule
        return float(start * (end / start) ** self.progress)
