"""GDAS (arXiv:1910.04465) and SNAS (arXiv:1812.09926): each edge draws an operation by Gumbel noise on alpha."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.relaxations.gumbel import GumbelRelaxation
from robust_nas.searches._differentiable import DifferentiableSearch

if TYPE_CHECKING:
    from robust_nas.relaxations.relaxation import Relaxation


@dataclass(frozen=True, kw_only=True)
class Gumbel(DifferentiableSearch):
    """Search with a Gumbel softmax on every edge.

    Args:
        temperature: of the softmax, at the start and at the end.
        hard: whether a mixture is the drawn operation alone (GDAS) or the softmax (SNAS). Steps of the weights are then
            as quick as those of a single architecture.
    """

    temperature: tuple[float, float] = (10.0, 0.1)
    hard: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_schedule("temperature", self.temperature)

    def relaxation(self, num_edges: int, num_operations: int, seed: int) -> Relaxation:
        """Return the relaxation that mixtures are drawn from."""
        return GumbelRelaxation(num_edges, num_operations, seed=seed, temperature=self.temperature, hard=self.hard)
