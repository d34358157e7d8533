"""No relaxation: on every edge one operation, drawn uniformly, as random search with weight sharing trains on."""

from __future__ import annotations

from torch import Tensor

from robust_nas.relaxations.relaxation import Relaxation, drawn_by


class UniformRelaxation(Relaxation):
    """Every active operation of an edge with equal probability; alpha has no part in it."""

    def sample(self, seed: int) -> Tensor:
        """Return a one-hot mixture [E, O]."""
        return drawn_by(self.expected(), seed)

    def expected(self) -> Tensor:
        """Return the mean mixture [E, O]."""
        return self.active / self.active.sum(-1, keepdim=True)
