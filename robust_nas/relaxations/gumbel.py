"""The Gumbel-softmax relaxation of SNAS (arXiv:1812.09926, section 2.2) and GDAS (arXiv:1910.04465, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_nas.core.seeds import seeded
from robust_nas.relaxations.relaxation import Relaxation, Schedule


class GumbelRelaxation(Relaxation):
    """softmax((log softmax(alpha) + g) / temperature) with g standard Gumbel: near a draw from softmax(alpha).

    Args:
        temperature: of the softmax; 0 is the draw itself.
        hard: the mixture is the drawn operation alone, and its gradient that of the softmax (GDAS); the softmax itself,
            if not (SNAS).
    """

    def __init__(
        self, num_edges: int, num_operations: int, *, seed: int, temperature: Schedule = (10.0, 0.1), hard: bool = True
    ) -> None:
        super().__init__(num_edges, num_operations, seed=seed)
        self.temperature, self.hard = temperature, hard

    def sample(self, seed: int) -> Tensor:
        """Return a mixture [E, O], rows on the simplex, with the pathwise gradient to alpha."""
        with seeded(seed, "gumbel"):
            noise = -torch.empty_like(self.alpha, requires_grad=False).exponential_().log()
        perturbed = (self._logits.log_softmax(-1) + noise) / self.scheduled(self.temperature)
        soft = perturbed.softmax(-1)
        if not self.hard:
            return soft
        drawn = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
        return drawn - soft.detach() + soft

    def expected(self) -> Tensor:
        """Return the mean mixture [E, O], softmax(alpha), differentiable in alpha."""
        return self._logits.softmax(-1)

    @property
    def _logits(self) -> Tensor:
        return self.alpha.masked_fill(~self.active, -float("inf"))
