"""Searches: from a search space, data and a threat model to probabilities of architectures.

One file is one search: a frozen, keyword-only dataclass with `search` that inherits `Search`.
`searches.get("dirichlet")`.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from robust_nas.core.figures import matrix_plot
from robust_nas.core.registry import Group, name_of
from robust_nas.core.shown import Shown, Summary, frame
from robust_nas.spaces import mixed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from robust_nas.architectures import AnyArchitecture
    from robust_nas.datasets import Dataset
    from robust_nas.runtime.stages import Stage
    from robust_nas.spaces import ElasticSupernet, Space
    from robust_nas.spaces.cell.supernet import Supernet
    from robust_nas.threat import ThreatModel

    SharedWeights: TypeAlias = Supernet | ElasticSupernet


DRAWS = 10_000
"""Architectures that are drawn at most from a posterior, which may have fewer different ones than are asked for."""

LEAST_PROBABILITY = 1e-300
"""The probability that stands for 0 in logarithms."""


@dataclass(frozen=True, repr=False)
class SearchResult(Shown):
    """The result of a search: its probabilities.

    Args:
        space: the searched space.
        probabilities: for each edge, the posterior mean weight of each operation; [E][O], rows sum to 1, or to less
            where architectures may lack the edge.
        supernet: the trained supernet, whose weights an architecture can inherit, or None.
        record: the search's record in `search.json`.
        measured: the architectures that the search has measured, best first; None for a search that measures none.
    """

    space: Space
    probabilities: list[list[float]]
    supernet: SharedWeights | None
    record: dict[str, Any]
    measured: Sequence[str] | None = None

    @property
    def best(self) -> AnyArchitecture:
        """The most probable architecture: in a cell space, the most probable operation on every edge."""
        return next(self.ranked())[0]

    @property
    def is_undecided(self) -> bool:
        """Whether all operations that an edge may have are equally probable, on every edge: none is the best."""
        rows = [[p for p in row if p > 0] for row in self.probabilities]
        return self.measured is None and all(len(row) > 1 and min(row) == max(row) for row in rows)

    def log_probability(self, architecture: AnyArchitecture) -> float:
        """Return an architecture's log-probability, the sum over the independent parts of the space's posterior."""
        return self._logarithm(self._parts, architecture)

    def drawn(self, seed: int) -> Iterator[tuple[AnyArchitecture, float]]:
        """Yield architectures drawn from the posterior with their log-probabilities, `DRAWS` of them."""
        generator, parts = random.Random(seed), self._parts
        options = [(list(part), list(part.values())) for part in parts]
        for _ in range(DRAWS):
            chosen = [generator.choices(values, weights)[0] for values, weights in options]
            architecture = self.space.decided(tuple(itertools.chain.from_iterable(chosen)))
            yield architecture, self._logarithm(parts, architecture)

    def ranked(self) -> Iterator[tuple[AnyArchitecture, float]]:
        """Yield every architecture with its log-probability, the sum over independent parts, in descending order.

        A search that has measured architectures yields these, best first. Else the sorted product is walked best first
        with a heap: nothing is enumerated that is not asked for.
        """
        if self.measured is None:
            yield from self._walked()
            return
        for text in self.measured:
            architecture = self.space.parse(text)
            yield architecture, self.log_probability(architecture)

    def _walked(self) -> Iterator[tuple[AnyArchitecture, float]]:
        parts = [
            sorted(((math.log(max(p, LEAST_PROBABILITY)), values) for values, p in part.items()), reverse=True)
            for part in self._parts
        ]

        def total(choice: tuple[int, ...]) -> float:
            return sum(part[place][0] for part, place in zip(parts, choice, strict=True))

        start = (0,) * len(parts)
        heap, seen = [(-total(start), start)], {start}
        while heap:
            cost, choice = heapq.heappop(heap)
            chosen = (part[place][1] for part, place in zip(parts, choice, strict=True))
            yield self.space.decided(tuple(itertools.chain.from_iterable(chosen))), -cost
            for index, place in enumerate(choice):
                if place + 1 < len(parts[index]):
                    successor = (*choice[:index], place + 1, *choice[index + 1 :])
                    if successor not in seen:
                        seen.add(successor)
                        heapq.heappush(heap, (-total(successor), successor))

    def to_frame(self) -> pd.DataFrame:
        """Return a row per choice and option: choice (such as an edge), option (its operation) and probability."""
        choices = self.space.choices.items()
        return frame(
            {"choice": name, "option": option, "probability": probability}
            for (name, options), row in zip(choices, self.probabilities, strict=True)
            for option, probability in zip(options, row, strict=True)
        )

    def plot(self) -> Figure:
        """Return a figure with the probability of every option of every choice, dark where it is high."""
        choices = self.space.choices
        options = list(dict.fromkeys(option for row in choices.values() for option in row))
        found = [
            dict(zip(names, row, strict=True)) for names, row in zip(choices.values(), self.probabilities, strict=True)
        ]
        values = [[row.get(option, math.nan) for option in options] for row in found]
        return matrix_plot(values, list(choices), options, f"Probabilities in {self.space.name}")

    def _summary(self) -> Summary:
        rows = []
        for (name, options), row in zip(self.space.choices.items(), self.probabilities, strict=True):
            most = max(range(len(row)), key=row.__getitem__)
            rows.append((name, options[most], f"{row[most]:.3f}"))
        best = "undecided, all are equally probable" if self.is_undecided else f"best {self.best}"
        return Summary(f"Search of {self.space.name}: {best}", ("choice", "most probable", "probability"), tuple(rows))

    @property
    def _parts(self) -> Sequence[Mapping[tuple[str, ...], float]]:
        return self.space.posterior(self.probabilities)

    def _logarithm(self, parts: Sequence[Mapping[tuple[str, ...], float]], architecture: AnyArchitecture) -> float:
        values, total = iter(self.space.decisions_of(architecture)), 0.0
        for part in parts:
            chosen = tuple(itertools.islice(values, len(next(iter(part)))))
            total += math.log(max(part.get(chosen, 0.0), LEAST_PROBABILITY))
        return total


class Search(ABC):
    """The base class of searches; most searches keep its defaults."""

    @property
    def needs_supernet(self) -> bool:
        """Whether it trains a supernet, whose weights architectures can inherit; else what needs those is refused."""
        return True

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Global batches of the trainings that it makes."""
        return ()

    def check(self, space: Space) -> None:
        """Raise InputError for a space that it cannot search; a recipe with both is then refused.

        One that trains a supernet needs a space that has one.
        """
        if self.needs_supernet:
            mixed(space, name_of(self))

    def rehearse(self, space: Space, data: Dataset) -> None:
        """Raise InputError for what the search would be refused for when it begins; no run folder is left then."""

    def reach(self) -> None:
        """Raise InputError if a server or a folder that the search needs does not answer."""

    def supernet_of(self, space: Space, data: Dataset, structure: Mapping[str, Any]) -> SharedWeights:
        """Return a supernet that a search's weights fit, with values of its own.

        Args:
            structure: its structure when the weights were saved.
        """
        supernet = mixed(space, name_of(self)).supernet(data, partial=structure["partial"][0])
        supernet.load_structure(structure)
        return supernet

    @abstractmethod
    def search(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> SearchResult:
        """Search `space` for architectures that are robust to `threat` on `data`.

        `data` is on the device of `stage.world`; the test split is not looked at. Saves its state to `stage` as it
        goes, and continues from there.
        """


_GROUP = Group(__name__, "Search", "search")
get, names = _GROUP.get, _GROUP.names
