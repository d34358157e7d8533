"""The collapse of a differentiable search: the sharpness of the loss in alpha, and edges without parameters.

Searches fail where the dominant eigenvalue of the Hessian in alpha grows, and then fill with skip connections (Zela et
al. 2020, "Understanding and Robustifying Differentiable Architecture Search", arXiv:1909.09656, which stops before it).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robust_nas.core.errors import InputError

PARAMETER_FREE = ("none", "skip_connect", "avg_pool_3x3", "max_pool_3x3")
"""Operations that learn nothing; a search that collapses ends at these."""


@dataclass(frozen=True, kw_only=True)
class CollapseMonitor:
    """The sign that a search has collapsed, and the reaction to it.

    Args:
        growth: a collapse is a growth of the eigenvalue, a mean over `window` epochs, by more than this factor in
            `window` epochs (arXiv:1909.09656 stops at 4/3, after 5 epochs). 0 switches this off.
        dominance: a collapse is also when this share of the edges, or more, have their largest mean weight on an
            operation without parameters for `window` epochs. Above 1 switches this off.
        window: epochs.
        restarts: number of returns to the last healthy state, from which the search goes on with ten times the anchor,
            before it ends at that state.
        images: of the validation split, for the eigenvalue.

    Raises:
        InputError: for a value outside its range.
    """

    growth: float = 4 / 3
    dominance: float = 1.0
    window: int = 5
    restarts: int = 0
    images: int = 64

    def __post_init__(self) -> None:
        for name, value, least in (
            ("growth", self.growth, 0),
            ("dominance", self.dominance, 0),
            ("window", self.window, 1),
            ("restarts", self.restarts, 0),
            ("images", self.images, 1),
        ):
            if value < least:
                raise InputError(f"search.watch.{name} must be at least {least}, but got {value}.")

    def has_collapsed(self, eigenvalues: Sequence[float | None], dominances: Sequence[float | None]) -> str | None:
        """Return why a search has collapsed, given an eigenvalue and a share of edges after every epoch; None if not.

        Epochs before alpha learns have neither.
        """
        window = self.window
        known = [value for value in eigenvalues if value is not None]
        if self.growth and len(known) >= 2 * window:
            now, before = statistics.mean(known[-window:]), statistics.mean(known[-2 * window : -window])
            if before > 0 and now > self.growth * before:
                return f"the largest eigenvalue of the Hessian in alpha rose from {before:.3g} to {now:.3g}"
        recent = [share for share in dominances if share is not None][-window:]
        if len(recent) == window and min(recent) >= self.dominance:
            return f"{recent[-1]:.0%} of the edges prefer operations without parameters"
        return None


def dominance(mixture: Tensor, operations: Sequence[str]) -> float:
    """Return the share of edges whose largest weight in the mixture [E, O] is on an operation without parameters."""
    largest = mixture.argmax(-1).tolist()
    return sum(operations[place] in PARAMETER_FREE for place in largest) / len(largest)


def largest_eigenvalue(loss: Callable[[Tensor], Tensor], alpha: Tensor) -> float:
    """Return the largest eigenvalue of the Hessian of `loss` at alpha, by Lanczos steps on Hessian-vector products."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    at = alpha.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(at), [at], create_graph=True)
    size = at.numel()

    def product(vector: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(np.asarray(vector)).to(gradient).view_as(gradient)
        (curved,) = torch.autograd.grad((gradient * direction).sum(), [at], retain_graph=True)
        return curved.detach().cpu().double().flatten().numpy()

    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    # Not a constant vector: a softmax does not change along it.
    start = np.random.default_rng(0).standard_normal(size)
    try:
        values = eigsh(operator, k=1, which="LA", tol=1e-3, v0=start, return_eigenvectors=False)
    except ArpackNoConvergence as error:
        values = error.eigenvalues
    return float(values[0]) if len(values) else math.nan
