"""No relaxation: on every edge one operation, drawn uniformly; what random search with weight sharing trains on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robust_nas.seeds import seeded
from robust_nas.supernet._relaxation import Relaxation


class UniformRelaxation(Relaxation):
    """Every active operation of an edge with equal probability; alpha has no part in it."""

    def sample(self, seed: int) -> Tensor:
        """Return a one-hot mixture [E, O]."""
        with seeded(seed, "uniform"):
            drawn = torch.multinomial(self.active.float(), 1).squeeze(-1)
        return F.one_hot(drawn, self.active.shape[1]).float()

    def expected(self) -> Tensor:
        """Return the mean mixture [E, O]."""
        return self.active / self.active.sum(-1, keepdim=True)
