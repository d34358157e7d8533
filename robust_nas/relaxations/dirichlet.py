"""The Dirichlet relaxation of DrNAS (arXiv:2006.10355, section 3.1): each edge's mixture is a Dirichlet sample."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from robust_nas.core.seeds import seeded
from robust_nas.relaxations.relaxation import Relaxation, Schedule


class DirichletRelaxation(Relaxation):
    """One Dirichlet distribution per edge, with concentration elu(alpha) + 1.

    At the start concentrations are about 1: the uniform distribution on the simplex. Operations that were left out have
    no part in a sample; the rest of a Dirichlet sample, renormalised, is a Dirichlet sample of the rest.

    Args:
        sharpness: divisor of concentrations when a mixture is sampled. The mean stays; samples above 1 are
            sparser, near to single operations at 10.
    """

    def __init__(self, num_edges: int, num_operations: int, *, seed: int, sharpness: Schedule = (1.0, 1.0)) -> None:
        super().__init__(num_edges, num_operations, seed=seed)
        self.sharpness = sharpness

    @property
    def concentration(self) -> Tensor:
        """The concentrations [E, O], differentiable in alpha."""
        # elu(alpha) + 1, written so that a very negative alpha does not round to a concentration of 0; exp(-80) is one.
        return torch.where(self.alpha > 0, self.alpha + 1, self.alpha.clamp(-80, 0).exp())

    def sample(self, seed: int) -> Tensor:
        """Return a mixture [E, O], rows on the simplex, with the pathwise gradient to alpha."""
        # In float64: samples of small concentrations come near to 0, where their gradient is delicate.
        concentration = self.concentration.double() / self.scheduled(self.sharpness)
        with seeded(seed, "dirichlet"):
            drawn = [
                torch.zeros_like(row).masked_scatter(active, Dirichlet(row[active]).rsample())
                for row, active in zip(concentration, self.active, strict=True)
            ]
        return torch.stack(drawn).float()

    def expected(self) -> Tensor:
        """Return the mean mixture [E, O], differentiable in alpha."""
        concentration = self.concentration * self.active
        return concentration / concentration.sum(dim=-1, keepdim=True)

    def describe(self) -> dict[str, Any]:
        """Return the concentrations, 0 for operations that were left out."""
        return {"concentration": (self.concentration * self.active).tolist()}

    def anchor(self, kind: Literal["l2", "kl"]) -> Tensor:
        """Return the anchor to the start: |alpha|^2 / 2 ("l2"), or sum_e KL(Dir || Dir(1)) ("kl").

        The KL is taken edge by edge (section 3.3); flattening all edges into one Dirichlet would be another quantity.
        """
        if kind == "l2":
            return super().anchor(kind)
        rows = [row[active] for row, active in zip(self.concentration, self.active, strict=True)]
        return torch.stack([kl_divergence(Dirichlet(row), Dirichlet(torch.ones_like(row))) for row in rows]).sum()
