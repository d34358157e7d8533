"""The errors that a study measured, by setting, network and seed, and what chance does to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from robust_nas.core.seeds import seed_at
from robust_nas.records.reading import Estimate, Kind, Size, setting_of
from robust_nas.records.scaling import CellRow, StudyRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RESAMPLES = 300
"""Bootstrap samples of the seeds behind an interval."""

TAILS = (0.025, 0.975)

_NORMAL_QUANTILE = 1.959963984540054


@dataclass(frozen=True)
class Network:
    """A network of a setting with its errors.

    Args:
        row: one of its cells: all have the same size.
        errors: by seed, fractions above 0.
        flops: of its training, mean over seeds.
    """

    row: CellRow
    errors: dict[int, float]
    flops: float

    @property
    def name(self) -> str:
        """The architecture's string."""
        return self.row.network

    @property
    def mean(self) -> float:
        """The mean error over seeds."""
        return float(np.mean([*self.errors.values()]))

    def size(self, over: Size) -> float:
        """Return one of its sizes; a width that differs among stages is their geometric mean."""
        if over == "width":
            return math.exp(float(np.mean(np.log(self.row.widths))))
        return self.flops if over == "training_flops" else float(getattr(self.row, over))


@dataclass(frozen=True)
class Sample:
    """The finished cells of a setting, with one kind of error.

    An interval is over seeds. Each of its bootstrap samples draws the errors of every network anew: its mean, and
    distances from the mean that seeds have. Two or three seeds of a network are too few to draw from them alone, and
    leave intervals too narrow. Hence distances are drawn from those of all networks: of logarithms, in which errors of
    all sizes vary about equally. They are stretched twice: by n / (n - 1) of the variance, since distances from the
    mean of n seeds are shorter than those from the truth, and by the quantile of t over that of the normal
    distribution, since the variance is estimated itself. No drawn error is above 1.

    Args:
        setting: its name.
        error: the kind of error.
        networks: those with a finished cell.
    """

    setting: str
    error: Kind
    networks: tuple[Network, ...]

    @cached_property
    def _distances(self) -> list[Floats]:
        """Distances of the logarithms of each network's errors from their mean, stretched; none for a single seed."""
        found = []
        for network in self.networks:
            logs, count = np.log([*network.errors.values()]), len(network.errors)
            found.append((logs - logs.mean()) * math.sqrt(count / (count - 1)) if count > 1 else np.empty(0))
        return found

    @cached_property
    def noise(self) -> float | None:
        """Standard deviation over seeds as a share of the error; None if no network has two seeds."""
        repeated = [distances for distances in self._distances if len(distances)]
        if not repeated:
            return None
        # Stretched squares sum to n times the variance, with n - 1 degrees of freedom of n.
        squares = sum(float((own**2).sum()) * (len(own) - 1) / len(own) for own in repeated)
        return math.sqrt(squares / sum(len(own) - 1 for own in repeated))

    @cached_property
    def _pool(self) -> Floats:
        """The distances that are drawn from; a single 0 if no network has two seeds."""
        repeated = [own for own in self._distances if len(own)]
        if not repeated:
            return np.zeros(1)
        degrees = sum(len(own) - 1 for own in repeated)
        return np.concatenate(repeated) * _t_quantile(degrees) / _NORMAL_QUANTILE

    @cached_property
    def draws(self) -> list[Floats]:
        """Of each network, errors [1 + RESAMPLES, seeds]; the first row has the measured ones."""
        found = []
        for network in self.networks:
            logs = np.log([*network.errors.values()])
            random = np.random.default_rng(seed_at(0, "scaling", self.setting, self.error, network.name))
            drawn = self._pool[random.integers(len(self._pool), size=(RESAMPLES, len(logs)))]
            found.append(np.minimum(np.exp(np.vstack([logs, logs.mean() + drawn])), 1.0))
        return found

    @cached_property
    def means(self) -> Floats:
        """Mean errors [1 + RESAMPLES, networks]; the first row has the measured ones."""
        return np.stack([drawn.mean(axis=1) for drawn in self.draws], axis=1)

    @property
    def num_cells(self) -> int:
        """The number of networks and seeds."""
        return sum(len(network.errors) for network in self.networks)

    def part(self, wanted: Callable[[Network], bool]) -> Sample:
        """Return the sample of some of the networks; their draws are the same as in the whole."""
        chosen = [place for place, network in enumerate(self.networks) if wanted(network)]
        part = Sample(self.setting, self.error, tuple(self.networks[place] for place in chosen))
        # What is cached in the instance is found before it is computed.
        part.__dict__.update(draws=[self.draws[place] for place in chosen], noise=self.noise)
        return part

    def where(self, name: str, value: Any) -> Sample:
        """Return the sample of the networks whose rows have a value."""
        return self.part(lambda network: getattr(network.row, name) == value)

    def estimate(self, values: Floats) -> Estimate:
        """Return a statistic from its value on the measured errors, the first, and on the drawn ones, the others."""
        if self.noise is None:
            return Estimate(value=float(values[0]))
        low, high = np.quantile(values[1:], TAILS)
        return Estimate(value=float(values[0]), low=float(low), high=float(high))


def samples(study: StudyRecord, kind: Kind) -> list[Sample]:
    """Return the samples of a study's settings, in its order; a cell that did not finish is in none.

    An error of 0 counts as half an image, since a logarithm is taken of it.
    """
    found: dict[str, dict[str, list[CellRow]]] = {}
    for row in study.cells:
        networks = found.setdefault(setting_of(row, study), {})
        if row.status == "finished" and getattr(row, kind) is not None:
            networks.setdefault(row.network, []).append(row)
    return [
        Sample(
            setting,
            kind,
            tuple(
                Network(
                    rows[0],
                    {row.seed: _error(row, kind) for row in rows},
                    float(np.mean([row.training_flops for row in rows])),
                )
                for rows in networks.values()
            ),
        )
        for setting, networks in found.items()
    ]


def _error(row: CellRow, kind: Kind) -> float:
    measured = row.robust if kind == "robust" else row.clean
    assert measured is not None
    return max(1 - measured.accuracy, 0.5 / measured.count)


def paired(differences: Sequence[float]) -> Estimate:
    """Return the mean of paired differences with its 95 % t interval; none for a single pair.

    Equal differences, which say nothing of chance, have none either.
    """
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2 or values.std() < 1e-12:
        return Estimate(value=mean)
    half = _t_quantile(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(value=mean, low=mean - half, high=mean + half)


def _t_quantile(degrees: int) -> float:
    from scipy.special import stdtrit  # without the second that scipy.stats takes

    return float(stdtrit(degrees, TAILS[1]))


def excludes_zero(found: Estimate) -> bool:
    """Return whether an estimate has an interval, and 0 is outside."""
    return found.low is not None and found.high is not None and not found.low <= 0 <= found.high
