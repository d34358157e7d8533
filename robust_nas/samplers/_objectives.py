"""One objective or several: the samplers that take only one, and the expected gain of a query."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from robust_nas.core.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def only_one(sampler: str, num_objectives: int) -> None:
    """Raise the objection of `sampler` to several objectives.

    Raises:
        InputError: if there is more than one objective.
    """
    if num_objectives != 1:
        raise InputError(
            f"The sampler '{sampler}' maximises one objective, but got {num_objectives}; use nsga2, predictor, random "
            "or tpe for several."
        )


def expected_improvement(mean: Floats, std: Floats, best: float) -> Floats:
    """Return E[max(f - best, 0)] for normal f (Jones et al. 1998, equation 15)."""
    from scipy.special import ndtr

    score: Floats = (mean - best) / std
    density = np.exp(-(score**2) / 2) / math.sqrt(2 * math.pi)
    return std * (score * ndtr(score) + density)


def expected_hypervolume_improvement(
    mean: Floats, std: Floats, measured: Floats, reference: float, num_draws: int, generator: np.random.Generator
) -> Floats:
    """Return by how much each of N candidates is expected to enlarge the dominated hypervolume, [N]; an estimate.

    The hypervolume is the mean, over random directions, of how far the points reach along them (Zhang and Golovin 2020,
    arXiv:2006.04655, lemma 5). Directions and outcomes are drawn together, and are the same for all candidates.

    Args:
        mean: of each candidate's objectives, which are independent and normal, [N, m].
        std: their standard deviations, [N, m].
        measured: the objectives of what is measured, [n, m].
        reference: below all of them, in every objective.
        num_draws: number of draws in the mean.
        generator: the generator of draws.
    """
    num_objectives = mean.shape[1]
    total = np.zeros(len(mean))
    for _ in range(num_draws):
        direction = np.abs(generator.standard_normal(num_objectives))
        direction /= np.linalg.norm(direction)
        outcome = mean + std * generator.standard_normal(num_objectives)

        def reach(points: Floats, direction: Floats = direction) -> Floats:
            nearest: Floats = ((points - reference) / direction).min(axis=1)
            return np.maximum(nearest, 0) ** num_objectives

        total += np.maximum(reach(outcome) - reach(measured).max(), 0)
    ball = math.pi ** (num_objectives / 2) / (2**num_objectives * math.gamma(num_objectives / 2 + 1))
    return ball * total / num_draws
