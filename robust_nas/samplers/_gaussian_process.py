"""A Gaussian process on a finite set of points, which grows by one observation at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import solve_triangular

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


class GaussianProcess:
    """The posterior at all points [N, F], with zero mean and a Matern 5/2 kernel.

    Observing a point costs N times the number of observations: the Cholesky factor of the observed points' covariance
    grows by a row, and so does its solution V = L^-1 K(observed, all), from which the posterior of every point is read
    off (Rasmussen and Williams 2006, algorithm 2.1).

    Args:
        points: the points.
        length_scale: the kernel's, in the points' unit.
        noise: variance of an observation's noise, as a share of the process's own variance.
    """

    def __init__(self, points: Floats, length_scale: float, noise: float) -> None:
        self._points, self._noise = points / length_scale, noise
        self._squares = (self._points**2).sum(axis=1)
        self.observed: list[int] = []
        self._solved = np.empty((0, len(points)))
        self._factor = np.empty((0, 0))
        self._left = np.ones(len(points))

    def _covariances(self, index: int) -> Floats:
        """Return the prior covariance of a point with every point (equation 4.17 with nu = 5/2)."""
        squared = self._squares + self._squares[index] - 2 * self._points @ self._points[index]
        scaled = np.sqrt(5 * np.maximum(squared, 0))
        return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)

    def observe(self, index: int) -> None:
        """Add an observation of a point; its value is given to `posterior`."""
        n = len(self.observed)
        if n == len(self._solved):  # make room for as many again
            solved, factor = np.empty((2 * n + 16, len(self._left))), np.zeros((2 * n + 16, 2 * n + 16))
            solved[:n], factor[:n, :n] = self._solved[:n], self._factor[:n, :n]
            self._solved, self._factor = solved, factor
        column = self._solved[:n, index]
        diagonal = np.sqrt(self._left[index] + self._noise)
        self._factor[n, :n], self._factor[n, n] = column, diagonal
        self._solved[n] = (self._covariances(index) - column @ self._solved[:n]) / diagonal
        self._left = np.maximum(self._left - self._solved[n] ** 2, 1e-12)
        self.observed.append(index)

    def posterior(self, targets: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the noise-free process at every point, [N] each.

        Args:
            targets: the observations' values, [n]; the process's variance is the one that makes them most likely.
        """
        n = len(self.observed)
        whitened = solve_triangular(self._factor[:n, :n], targets, lower=True)
        variance = max(float(whitened @ whitened) / n, 1e-12)
        return whitened @ self._solved[:n], np.sqrt(variance * self._left)
