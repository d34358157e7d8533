"""The ensemble as a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robust_nas.ensembles import check_weights


class Ensemble(nn.Module):
    """F(x) = sum_t w_t f_t(x) / Z_t, a model like its members: images [B, C, H, W] in [0, 1] to logits [B, K].

    Members of weight 0 are kept, and not run. Interval bounds on this module are those of `joint_margins` on its
    members, because the members' last layers stay visible through the sum.

    Args:
        members: the networks f, T of them, with the same classes.
        weights: w, [T], at least 0 and not all 0.
        scales: Z, [T], above 0.

    Raises:
        InputError: for other weights or scales, or numbers of members that differ.
    """

    weights: Tensor
    scales: Tensor

    def __init__(
        self, members: Sequence[nn.Module], weights: Sequence[float] | Tensor, scales: Sequence[float] | Tensor
    ) -> None:
        super().__init__()
        weights, scales = [float(w) for w in weights], [float(z) for z in scales]
        check_weights(weights, scales, len(members))
        self.members = nn.ModuleList(members)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float64))
        self.register_buffer("scales", torch.tensor(scales, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        factors = (self.weights / self.scales).tolist()
        terms = [factor * member(images) for factor, member in zip(factors, self.members, strict=True) if factor > 0]
        return sum(terms[1:], terms[0])
