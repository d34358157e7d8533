"""Random search with weight sharing (Li & Talwalkar 2019, arXiv:1902.07638): the baseline of differentiable search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.searches._bilevel import Bilevel
from robust_nas.supernet.uniform import UniformRelaxation

if TYPE_CHECKING:
    from robust_nas.supernet._relaxation import Relaxation


@dataclass(frozen=True, kw_only=True)
class RandomSharing(Bilevel):
    """Train the supernet's weights on architectures that are drawn uniformly; nothing is learned of which are good.

    What is chosen is the best of `derive.pool` random architectures by accuracy with inherited weights.
    """

    alpha_frozen: float = 1.0

    def relaxation(self, num_edges: int, num_operations: int, seed: int) -> Relaxation:
        """Return what architectures are drawn by."""
        return UniformRelaxation(num_edges, num_operations, seed=seed)
