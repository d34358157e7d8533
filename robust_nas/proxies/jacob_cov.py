"""The correlation of input gradients (Mellor et al. 2021, arXiv:2006.04647, version 1, equations 1 to 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_nas.models.scores import logits_of
from robust_nas.proxies._networks import depends_on, held_still
from robust_nas.threat import ThreatModel

K = 1e-5
"""The paper's k, for numerical stability."""


@dataclass(frozen=True, kw_only=True)
class JacobCov:
    """-sum_i [log(s_i + k) + 1 / (s_i + k)], s_i the eigenvalues of the correlations of the images' input gradients.

    The gradients are those of the sum of an image's logits; uncorrelated ones, eigenvalues of 1, have the best score.
    An image whose gradient does not vary counts as correlated with all others: the network tells it from none.
    """

    def score(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0) -> float:
        """Return the score of `model`; labels, threat and seed are not used."""
        with held_still(model, images, "running"):
            points = images.detach().clone().requires_grad_()
            if depends_on(model, images):
                (gradient,) = torch.autograd.grad(logits_of(model, points).sum(), points)
            else:
                gradient = torch.zeros_like(points)
        return spectrum_score(correlations(gradient.flatten(1).double()))


def correlations(rows: Tensor) -> Tensor:
    """Return the correlation coefficients of rows [B, D], [B, B]; 1 for a row that does not vary."""
    centred = rows - rows.mean(1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    found = (centred / length.clamp_min(1e-300)) @ (centred / length.clamp_min(1e-300)).T
    constant = length.squeeze(1) == 0
    return torch.where(constant.unsqueeze(0) | constant.unsqueeze(1), 1.0, found)


def spectrum_score(matrix: Tensor) -> float:
    """Return the score of correlations [B, B]."""
    eigenvalues = torch.linalg.eigvalsh(matrix).clamp_min(0) + K
    return -float((eigenvalues.log() + 1 / eigenvalues).sum())
