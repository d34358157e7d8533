"""The Dirichlet relaxation of DrNAS (arXiv:2006.10355, section 3.1): each edge's mixture is a Dirichlet sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from robust_nas.seeds import seeded


class DirichletRelaxation:
    """One Dirichlet distribution per edge, with concentration elu(alpha) + 1.

    `alpha` [E, O] lives on the CPU, small as it is, so that a sample is the same on every device and rank.

    Args:
        num_edges: E.
        num_operations: O.
        seed: draws the start, 1e-3 N(0, 1): concentrations about 1, the uniform distribution on the simplex.
    """

    def __init__(self, num_edges: int, num_operations: int, *, seed: int) -> None:
        with seeded(seed, "alpha"):
            self.alpha = (1e-3 * torch.randn(num_edges, num_operations)).requires_grad_()

    @property
    def concentration(self) -> Tensor:
        """The concentrations [E, O], differentiable in alpha."""
        # elu(alpha) + 1, written so that a very negative alpha does not round to a concentration of 0.
        return torch.where(self.alpha > 0, self.alpha + 1, self.alpha.clamp(max=0).exp())

    def sample(self, seed: int) -> Tensor:
        """Return a mixture [E, O], rows on the simplex, with the pathwise gradient to alpha."""
        with seeded(seed, "dirichlet"):
            return Dirichlet(self.concentration).rsample()

    def mean(self) -> Tensor:
        """Return the mean mixture [E, O]: what validation and derivation use."""
        concentration = self.concentration.detach()
        return concentration / concentration.sum(dim=-1, keepdim=True)

    def entropy(self) -> float:
        """Return the entropy of the mean mixture in nats, averaged over edges; log O at the start, 0 when decided."""
        mean = self.mean()
        return float(torch.special.entr(mean).sum(dim=-1).mean())

    def anchor(self, kind: str) -> Tensor:
        """Return what holds the distribution near its start: |alpha|^2 / 2 ("l2"), or sum_e KL(Dir || Dir(1)) ("kl").

        The KL is taken edge by edge (section 3.3); flattening all edges into one Dirichlet would be another quantity.
        """
        if kind == "l2":
            return self.alpha.square().sum() / 2
        concentration = self.concentration
        return kl_divergence(Dirichlet(concentration), Dirichlet(torch.ones_like(concentration))).sum()
