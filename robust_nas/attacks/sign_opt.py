"""Sign-OPT: a hard-label attack by the signs of directional derivatives (Cheng et al. 2020, arXiv:1909.10773)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_nas.attacks._black_box import Boundary, HardLabelAttack


@dataclass(frozen=True, kw_only=True)
class SignOPT(HardLabelAttack):
    """Descent on the distance to the boundary along the mean of signed random directions (algorithm 1).

    Whether a direction beside theta is nearer to the boundary takes one query, at theta's distance; how much nearer
    takes the whole search that OPT makes. The authors' 200 directions. See `HardLabelAttack` for the rest.
    """

    def _farther(self, boundary: Boundary, rows: Tensor, beside: Tensor, radius: Tensor, exact: Tensor) -> Tensor:
        # Equation 3: sign(g(theta + beta u) - g(theta)) is -1 if the point at g(theta) along theta + beta u is
        # misclassified, and else 1.
        return torch.where(boundary.ask(rows, beside, radius.unsqueeze(1).expand(beside.shape[:2])), -1.0, 1.0)
