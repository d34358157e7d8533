"""Model-based search: a Gaussian process over features of the cell, and expected improvement over all classes.

The procedure is Bayesian optimisation as in Jones et al. 1998 (EGO); with several objectives, each has a process of its
own, and the improvement is the hypervolume's. The features, the only part that knows about cells, are the operations of
the pruned cell, edge by edge, and statistics of its paths from input to output.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at
from robust_nas.samplers._cells import classes, num_weights, start_draw
from robust_nas.samplers._gaussian_process import GaussianProcess
from robust_nas.samplers._objectives import expected_hypervolume_improvement, expected_improvement
from robust_nas.spaces.cell import CellSpace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from robust_nas.spaces import Space

    Floats = NDArray[np.float64]


NUM_DRAWS = 32
"""Draws behind an estimated gain in hypervolume."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Measure the class with the greatest expected improvement; any number of objectives.

    Nothing is known before the first query unless `prior` says so. Nothing is fitted but the process's variance: the
    other choices are round numbers, of which the result depends little.

    Args:
        random_starts: random architectures before the first model.
        length_scale: the kernel's, in units of the root mean square distance of two classes.
        noise: standard deviation of a value's noise, in units of that of the values observed.
        prior: "none"; or "parameters": the random starts are drawn from the tenth of the classes with the most
            convolution weights, which assumes, before any query, that larger networks are better.

    Raises:
        InputError: if `random_starts` is below 1, or `length_scale` or `noise` is not positive.
    """

    random_starts: int = 2
    length_scale: float = 1.0
    noise: float = 0.1
    prior: Literal["none", "parameters"] = "none"

    def __post_init__(self) -> None:
        if self.random_starts < 1:
            raise InputError(f"Predictor.random_starts must be at least 1, but got {self.random_starts}.")
        for name in ("length_scale", "noise"):
            if getattr(self, name) <= 0:
                raise InputError(f"Predictor.{name} must be positive, but got {getattr(self, name)}.")

    def start(self, space: Space, num_objectives: int, seed: int) -> _Model:
        """Begin a search.

        Raises:
            InputError: if the space is too large to enumerate, or its architectures are no cells.
        """
        if not isinstance(space, CellSpace):
            raise InputError(
                f"The sampler 'predictor' knows features of cell spaces, such as nasbench201, but the space "
                f"is {space.name}; use another one, such as evolution or tpe."
            )
        return _Model(self, space, seed)


class _Model:
    def __init__(self, sampler: Predictor, space: CellSpace, seed: int) -> None:
        self._sampler, self._space, self._seed = sampler, space, seed
        self._classes = cast("tuple[Architecture, ...]", classes(space))
        points, self._place = _features(self._classes)
        distance = np.sqrt(2 * points.var(axis=0).sum())
        self._process = GaussianProcess(points, sampler.length_scale * distance, sampler.noise**2)
        self._values: list[Sequence[float]] = []
        self._asked = 0

    def ask(self) -> AnyArchitecture:
        self._asked += 1
        if len(self._values) < self._sampler.random_starts:
            return self._start()
        # Per objective: outliers pulled in, then mean 0 and standard deviation 1.
        measured = np.apply_along_axis(_without_outliers, 0, np.array(self._values, dtype=float))
        deviations = measured.std(axis=0)
        measured = (measured - measured.mean(axis=0)) / np.where(deviations > 0, deviations, 1)
        posteriors = [self._process.posterior(targets) for targets in measured.T]
        mean, std = (np.stack(parts, axis=1) for parts in zip(*posteriors, strict=True))
        if mean.shape[1] == 1:
            gain = expected_improvement(mean[:, 0], std[:, 0], measured.max())
        else:
            gain = self._hypervolume_gain(mean, std, measured)
        gain[self._process.observed] = -1
        return self._classes[int(gain.argmax())]

    def _hypervolume_gain(self, mean: Floats, std: Floats, measured: Floats) -> Floats:
        # From half of the observed range below the worst, so that the ends of the front count.
        low, spread = measured.min(axis=0), np.ptp(measured, axis=0)
        spread = np.where(spread > 0, spread, 1)
        generator = np.random.default_rng(seed_at(self._seed, "directions", self._asked))
        return expected_hypervolume_improvement(
            (mean - low) / spread, std / spread, (measured - low) / spread, -0.5, NUM_DRAWS, generator
        )

    def _start(self) -> AnyArchitecture:
        if self._sampler.prior == "none":
            return start_draw(self._space, self._seed, self._asked - 1)
        largest = sorted(self._classes, key=num_weights, reverse=True)[: -(-len(self._classes) // 10)]
        return random.Random(seed_at(self._seed, "largest", self._asked)).choice(largest)

    def tell(self, architecture: AnyArchitecture, values: Sequence[float]) -> None:
        place = self._place[architecture.canonical]
        if place not in self._process.observed:
            self._process.observe(place)
            self._values.append(values)


def _without_outliers(values: Floats) -> Floats:
    """Return the values with the lowest raised to three standard deviations of the upper half below the median.

    Cells without a path and failed trainings lie far below the rest; how far says nothing about what is best.
    """
    median = np.median(values)
    above = values[values >= median] - median
    return np.maximum(values, median - 3 * np.sqrt((above**2).mean()))


@functools.lru_cache(maxsize=1)
def _features(architectures: tuple[Architecture, ...]) -> tuple[Floats, dict[str, int]]:
    """Return the features of classes, [N, F], and each class's place by its canonical form.

    Edge by edge, which operation the pruned cell has, one-hot; then the statistics of its paths, each divided by its
    standard deviation over the classes.
    """
    cells = [architecture.pruned for architecture in architectures]
    names = sorted({name for cell in cells for name in cell.operations})
    codes = np.array([[names.index(name) for name in cell.operations] for cell in cells])
    operations = np.eye(len(names))[codes].reshape(len(cells), -1)
    paths = np.array([_path_statistics(cell, names) for cell in cells], dtype=float)
    paths /= np.where(paths.std(axis=0) > 0, paths.std(axis=0), 1)
    return np.hstack([operations, paths]), {cell.canonical: place for place, cell in enumerate(architectures)}


def _path_statistics(cell: Architecture, names: Sequence[str]) -> list[int]:
    """Return the number of paths from input to output and how often operations are on them.

    Of each operation, the most on one path and the total over the paths; of all convolutions, the most and the least on
    one path.
    """
    operation = {(source, target): name for source, target, name in cell.edges}
    inner = range(1, cell.num_nodes - 1)
    paths = []
    for size in range(len(inner) + 1):
        for between in itertools.combinations(inner, size):
            path = [operation[edge] for edge in itertools.pairwise((0, *between, cell.num_nodes - 1))]
            if "none" not in path:
                paths.append(path)
    statistics = [len(paths)]
    for name in names:
        if name not in ("none", "skip_connect"):
            counts = [path.count(name) for path in paths]
            statistics += [max(counts, default=0), sum(counts)]
    depths = [sum(name.startswith("nor_conv") for name in path) for path in paths]
    return [*statistics, max(depths, default=0), min(depths, default=0)]
