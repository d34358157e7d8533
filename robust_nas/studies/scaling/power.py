"""Power laws with an irreducible term: y = E + sum of A_j x_j ** -b_j, with E >= 0, A_j >= 0 and b_j > 0.

The objective is the one of Hoffmann et al. 2022 (arXiv:2203.15556, appendix D.3): the sum of Huber losses of the
distance of logarithms, log of the law minus log of the error. They minimise it by L-BFGS from a grid of starts. Here
the exponents alone are searched, on a grid that is refined around its best point, and the other coefficients are solved
for at every exponent: they are linear in the law. So there is no start to choose, and many bootstrap samples are fitted
at once. Tests compare it with scipy's `least_squares` from many starts.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

EXPONENTS = (0.02, 8.0)
"""The least and the greatest exponent that is searched: below is a straight line over log(x), above is a step."""

_SOLVES = (3, 5)  # reweightings of the linear coefficients at exponents of the first grid, and of finer ones
_AT_ONCE = 2_000_000  # numbers in an array


@dataclass(frozen=True)
class PowerLaws:
    """Fitted laws, one for each of B samples.

    Args:
        coefficients: [B, 1 + terms]: E, then each A at x = 1.
        exponents: [B, terms].
        loss: the objective [B].
    """

    coefficients: Floats
    exponents: Floats
    loss: Floats

    def at(self, *sizes: Floats) -> Floats:
        """Return the laws' errors [B, points] at sizes [points], one array for each term."""
        value = np.repeat(self.coefficients[:, :1], len(sizes[0]), axis=1)
        for place, size in enumerate(sizes):
            value = value + self.coefficients[:, place + 1, None] * size ** -self.exponents[:, place, None]
        return value


def fit(
    sizes: Sequence[Floats], errors: Floats, delta: float, counts: Floats | None = None, *, finely: bool = True
) -> PowerLaws:
    """Fit a law to each of B samples, the first more finely than the others: they only spread around it.

    Args:
        sizes: of each term, x [points].
        errors: y [B, points], above 0.
        delta: distance of logarithms from which on the Huber loss is linear; infinite for least squares.
        counts: weights of the points [points]; 1, if not given.
        finely: whether the first sample's exponents are found to the last digits.
    """
    counts = np.ones(errors.shape[1]) if counts is None else counts
    centres = np.array([np.exp(np.log(size).mean()) for size in sizes])
    scaled = np.stack([size / centre for size, centre in zip(sizes, centres, strict=True)])  # [terms, points]
    terms = len(sizes)
    numbers = (21, 4, 5) if terms == 1 else (7, 7, 3)
    fine = (33, 9, 9) if terms == 1 else (17, 40, 5)
    parts = [_refined(scaled, errors[:1], counts, delta, *(fine if finely else numbers))]
    chunk = max(1, _AT_ONCE // (max(numbers[0], numbers[2]) ** terms * errors.shape[1]))
    for start in range(1, len(errors), chunk):
        parts.append(_refined(scaled, errors[start : start + chunk], counts, delta, *numbers))
    coefficients, exponents, loss = (np.concatenate(found) for found in zip(*parts, strict=True))
    coefficients[:, 1:] *= centres**exponents
    return PowerLaws(coefficients, exponents, loss)


def _refined(
    scaled: Floats, errors: Floats, counts: Floats, delta: float, coarse: int, rounds: int, width: int
) -> tuple[Floats, Floats, Floats]:
    """Return coefficients [B, K], exponents [B, terms] and loss [B] at the best exponents.

    Args:
        scaled: x over its centre [terms, points].
        errors: y [B, points].
        counts: weights of the points [points].
        delta: of the Huber loss.
        coarse: exponents of a term in the first grid.
        rounds: finer grids around the best point.
        width: exponents of a term in each.
    """
    terms, batch = len(scaled), np.arange(len(errors))
    steps = np.geomspace(*EXPONENTS, coarse)
    step = steps[1] / steps[0]
    exponents = np.array(list(itertools.product(steps, repeat=terms)))[None]  # [1, G, terms]
    offsets = np.array(list(itertools.product(np.linspace(-1, 1, width), repeat=terms)))
    for turn in range(rounds + 1):
        coefficients, loss = _solved(scaled, errors, counts, exponents, delta, _SOLVES[turn > 0])
        best = loss.argmin(axis=1)
        chosen = np.broadcast_to(exponents, (len(errors), *exponents.shape[1:]))[batch, best]
        found = coefficients[batch, best], chosen, loss[batch, best]
        # The next grid goes from one neighbour of the best point to the other.
        exponents = np.clip(chosen[:, None, :] * step**offsets, *EXPONENTS)
        # In two terms the best of one exponent depends on the other: the grid shrinks slowly enough to move.
        step **= 2 / (width - 1) if terms == 1 else 0.7
    return found


def _solved(
    scaled: Floats, errors: Floats, counts: Floats, exponents: Floats, delta: float, solves: int
) -> tuple[Floats, Floats]:
    """Return the best coefficients [B, G, K] at exponents [B or 1, G, terms], and their loss [B, G].

    Gauss-Newton steps on the logarithm of the law, in which the Huber loss weighs each point; the first one is on
    relative distances.
    """
    # [B or 1, G, points] for each coefficient; that of E is 1.
    features = [np.ones((1, 1, errors.shape[1])), *(size ** -exponents[..., [j]] for j, size in enumerate(scaled))]
    count = len(features)
    targets = errors[:, None, :]
    logs = np.log(targets)
    model, logs_of_model = targets, logs
    weights: Floats = counts
    best: tuple[Floats, Floats] | None = None
    for _ in range(solves):
        # log(m) + (new - m) / m = log(y): linear in the coefficients of `new`.
        own = weights / model**2
        wanted = own * model * (1 + logs - logs_of_model)
        weighted = [own * feature for feature in features]
        gram = [[(weighted[i] * features[j]).sum(axis=-1) for j in range(i + 1)] for i in range(count)]
        right = [(wanted * feature).sum(axis=-1) for feature in features]
        coefficients = _non_negative(gram, right)
        law = sum(coefficients[..., [j]] * feature for j, feature in enumerate(features))
        logs_of_law = np.log(np.maximum(law, 1e-12))
        size = np.abs(logs_of_law - logs)
        near = np.minimum(size, delta)
        loss = (counts * near * (size - near / 2)).sum(axis=-1)
        if best is None:
            best = coefficients, loss
        else:
            better = loss < best[1]
            best = np.where(better[..., None], coefficients, best[0]), np.where(better, loss, best[1])
        weights = counts * np.minimum(1, delta / np.maximum(size, 1e-12))
        model = np.clip(law, targets / 3, targets * 3)
        logs_of_model = np.clip(logs_of_law, logs - np.log(3), logs + np.log(3))
    assert best is not None
    return best


def _non_negative(gram: Sequence[Sequence[Floats]], right: Sequence[Floats]) -> Floats:
    """Return the minimisers [..., K] of c'Gc / 2 - c'r with c >= 0.

    With two or three coefficients, all choices of those that are not 0 are tried.

    Args:
        gram: the lower triangle of G, each entry [...].
        right: r, each entry [...].
    """
    count = len(right)
    shape = np.broadcast_shapes(*(entry.shape for row in gram for entry in row), right[0].shape)
    best, gain = np.zeros((*shape, count)), np.zeros(shape)
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            matrix = [[gram[max(i, j)][min(i, j)] for j in chosen] for i in chosen]
            found = _by_cramer(matrix, [right[i] for i in chosen])
            reached = sum(own * right[i] for own, i in zip(found, chosen, strict=True))
            better = np.logical_and.reduce([np.broadcast_to(own >= 0, shape) for own in found]) & (reached > gain)
            gain = np.where(better, reached, gain)
            for j in range(count):
                own = found[chosen.index(j)] if j in chosen else np.zeros(1)
                best[..., j] = np.where(better, own, best[..., j])
    return best


def _by_cramer(matrix: Sequence[Sequence[Floats]], right: Sequence[Floats]) -> list[Floats]:
    """Return the solution of one to three equations, in entries [...]; NaN where there is no one solution."""
    count = len(right)
    # The matrix with the right side in the place of each column.
    replaced = [
        [[*row[:place], own, *row[place + 1 :]] for row, own in zip(matrix, right, strict=True)]
        for place in range(count)
    ]
    whole = _determinant(matrix)
    # Columns that coincide, as powers of nearly equal exponents do, leave a determinant of rounding alone.
    whole = np.where(whole > 1e-13 * reduce(operator.mul, [matrix[i][i] for i in range(count)]), whole, np.nan)
    return [_determinant(own) / whole for own in replaced]


def _determinant(matrix: Sequence[Sequence[Floats]]) -> Floats:
    if len(matrix) == 1:
        return matrix[0][0]
    if len(matrix) == 2:
        (a, b), (c, d) = matrix
        return a * d - b * c
    (a, b, c), (d, e, f), (g, h, i) = matrix
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
