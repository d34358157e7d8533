"""By how much the numbers of a table differ by chance, as far as its rows can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from robust_nas.tables._arrays import Arrays


@dataclass(frozen=True)
class NoiseFloor:
    """By how much a column's means differ by chance, as standard deviations of accuracies in [0, 1].

    Args:
        std: pooled over all groups.
        robust: the same from medians, which a few failed trainings do not move: of the standard errors of the classes'
            means; or 1.4826 times the median absolute deviation, of identical functions.
        method: "seeds" (trainings of one class) or "identical functions" (classes that differ by chance alone,
            `Architecture.function`).
        num_groups: number of groups of at least two.
        num_members: number of means or trainings in them.
    """

    std: float
    robust: float
    method: Literal["seeds", "identical functions"]
    num_groups: int
    num_members: int


def measured_noise(arrays: Arrays, column: int) -> NoiseFloor | None:
    """Return by how much the means of a column differ by chance, or None if the rows cannot tell."""
    means, stds, trainings = arrays.means[column], arrays.stds[column], arrays.trainings[column]
    repeated = ~np.isnan(stds)
    if repeated.any():
        freedom = trainings[repeated] - 1
        # The mean of n trainings varies by the root of n less than one does.
        per_mean = stds[repeated] / np.sqrt(trainings[repeated])
        return NoiseFloor(
            std=float(np.sqrt((freedom * per_mean**2).sum() / freedom.sum())),
            robust=float(np.median(per_mean)),
            method="seeds",
            num_groups=int(repeated.sum()),
            num_members=int(trainings[repeated].sum()),
        )
    known = ~np.isnan(means)
    is_known = np.array([name is not None for name in arrays.functions])[arrays.function_of]
    known &= is_known
    if not known.any():
        return None
    groups = arrays.function_of[known]
    sizes = np.bincount(groups)
    shared = sizes[groups] > 1
    if not shared.any():
        return None
    group_means = np.bincount(groups, means[known]) / np.maximum(sizes, 1)
    deviations = (means[known] - group_means[groups])[shared]
    members = sizes[groups][shared]
    num_groups = int((sizes > 1).sum())
    return NoiseFloor(
        std=float(np.sqrt((deviations**2).sum() / (len(deviations) - num_groups))),
        robust=float(1.4826 * np.median(np.abs(deviations) * np.sqrt(members / (members - 1)))),
        method="identical functions",
        num_groups=num_groups,
        num_members=len(deviations),
    )
