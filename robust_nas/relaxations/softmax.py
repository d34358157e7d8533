"""The softmax relaxation of DARTS (arXiv:1806.09055, equation 2): nothing is drawn."""

from __future__ import annotations

from torch import Tensor

from robust_nas.relaxations.relaxation import Relaxation, Schedule


class SoftmaxRelaxation(Relaxation):
    """The softmax of alpha / temperature on every edge; a sample is the mean.

    Args:
        temperature: low ones sharpen the mixture.
    """

    def __init__(self, num_edges: int, num_operations: int, *, seed: int, temperature: Schedule = (1.0, 1.0)) -> None:
        super().__init__(num_edges, num_operations, seed=seed)
        self.temperature = temperature

    def sample(self, seed: int) -> Tensor:
        """Return the mean mixture [E, O], differentiable in alpha."""
        return self.expected()

    def expected(self) -> Tensor:
        """Return the mean mixture [E, O], differentiable in alpha."""
        logits = self.alpha / self.scheduled(self.temperature)
        return logits.masked_fill(~self.active, -float("inf")).softmax(-1)
