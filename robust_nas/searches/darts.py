"""DARTS (arXiv:1806.09055): each edge's mixture is the softmax of alpha; `order` is that of its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.relaxations.softmax import SoftmaxRelaxation
from robust_nas.searches._differentiable import DifferentiableSearch

if TYPE_CHECKING:
    from robust_nas.relaxations.relaxation import Relaxation


@dataclass(frozen=True, kw_only=True)
class DARTS(DifferentiableSearch):
    """Search with the softmax of alpha on every edge.

    Args:
        temperature: divisor of alpha, at the start and at the end.
    """

    temperature: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_schedule("temperature", self.temperature)

    def relaxation(self, num_edges: int, num_operations: int, seed: int) -> Relaxation:
        """Return the relaxation that makes mixtures."""
        return SoftmaxRelaxation(num_edges, num_operations, seed=seed, temperature=self.temperature)
