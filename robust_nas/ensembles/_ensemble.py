"""The ensemble as a model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robust_nas.ensembles import logit_factors


class Ensemble(nn.Module):
    """F(x) = sum_t a_t f_t(x), a model like its members: images [B, C, H, W] in [0, 1] to logits [B, K].

    The factors a_t come from the weights and scales (`logit_factors`).

    Members of weight 0 are kept, and not run. Interval bounds on this module are those of `joint_margins` on its
    members, because the members' last layers stay visible through the sum.

    Args:
        members: the networks f, T of them, with the same classes.
        weights: w, [T], at least 0 and not all 0.
        scales: Z, [T], above 0.

    Raises:
        InputError: for other weights or scales, or numbers of members that differ.
    """

    def __init__(
        self, members: Sequence[nn.Module], weights: Sequence[float] | Tensor, scales: Sequence[float] | Tensor
    ) -> None:
        super().__init__()
        self.factors = logit_factors(weights, scales, len(members))
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        weighted = zip(self.factors, self.members, strict=True)
        terms = [factor * member(images) for factor, member in weighted if factor > 0]
        return sum(terms[1:], terms[0])
