"""OPT: a hard-label attack by zeroth-order descent on the distance to the boundary (arXiv:1807.04457)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_nas.attacks._black_box import Boundary, HardLabelAttack


@dataclass(frozen=True, kw_only=True)
class OPT(HardLabelAttack):
    """Descent on the distance to the boundary along differences of distances (algorithm 2, randomised gradient-free).

    Cheng et al. 2019. Each of the authors' 10 directions takes a search for the boundary (algorithm 1). See
    `HardLabelAttack` for the rest.
    """

    directions: int = 10

    def _farther(self, boundary: Boundary, rows: Tensor, beside: Tensor, radius: Tensor, exact: Tensor) -> Tensor:
        # Equation 5: g(theta + beta u) - g(theta).
        start = radius.unsqueeze(1).expand(beside.shape[:2])
        found = boundary.boundary(rows, beside, start, boundary.ask(rows, beside, start), 4 * exact, exact)
        # A direction without a boundary, or one that the budget did not reach, says nothing.
        return torch.where(found.isfinite(), found - start, 0.0)
