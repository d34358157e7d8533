"""Searches: from a search space, data and a threat model to a belief about which architectures are good.

One file is one search: a frozen, keyword-only dataclass with `search`. `searches.get("dirichlet")`.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from robust_nas.architecture import Architecture
from robust_nas.registry import Group

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset
    from robust_nas.run_dir import Stage
    from robust_nas.spaces import Space
    from robust_nas.supernet import Supernet
    from robust_nas.threat import ThreatModel


DRAWS = 10_000
"""Architectures that are drawn at most from a posterior, which may have fewer different ones than are asked for."""

LEAST_PROBABILITY = 1e-300
"""What stands for no probability at all in the logarithm of one."""


@dataclass(frozen=True)
class SearchResult:
    """What a search believes.

    Args:
        operations: the operations' names.
        probabilities: for each edge, the posterior mean weight of each operation; [E][O], rows sum to 1.
        supernet: the trained supernet, whose weights an architecture can inherit, or None.
        record: what `search.json` says about the search.
    """

    operations: tuple[str, ...]
    probabilities: list[list[float]]
    supernet: Supernet | None
    record: dict[str, Any]

    @property
    def best(self) -> Architecture:
        """The most probable operation on every edge."""
        return next(self.ranked())[0]

    @property
    def is_undecided(self) -> bool:
        """Whether all operations that an edge may have are equally probable, on every edge: none is the best."""
        rows = [[p for p in row if p > 0] for row in self.probabilities]
        return "measured" not in self.record and all(min(row) == max(row) and len(row) > 1 for row in rows)

    def log_probability(self, architecture: Architecture) -> float:
        """Return an architecture's log-probability, the sum over edges."""
        rows = zip(self.probabilities, architecture.operations, strict=True)
        return sum(math.log(max(row[self.operations.index(name)], LEAST_PROBABILITY)) for row, name in rows)

    def drawn(self, seed: int) -> Iterator[tuple[Architecture, float]]:
        """Yield architectures drawn from the posterior with their log-probabilities, `DRAWS` of them."""
        generator = random.Random(seed)
        for _ in range(DRAWS):
            names = [generator.choices(self.operations, row)[0] for row in self.probabilities]
            architecture = Architecture(tuple(names))
            yield architecture, self.log_probability(architecture)

    def ranked(self) -> Iterator[tuple[Architecture, float]]:
        """Yield every architecture with its log-probability, the sum over edges, in descending order.

        A search that has measured architectures, `record["measured"]`, yields these, best first. Else the sorted
        product is walked best first with a heap: nothing is enumerated that is not asked for.
        """
        for text in self.record.get("measured", []):
            architecture = Architecture.parse(text, self.operations)
            yield architecture, self.log_probability(architecture)
        if "measured" in self.record:
            return
        logarithms = [[math.log(max(p, LEAST_PROBABILITY)) for p in row] for row in self.probabilities]
        edges = [sorted(zip(row, self.operations, strict=True), reverse=True) for row in logarithms]

        def total(choice: tuple[int, ...]) -> float:
            return sum(edge[place][0] for edge, place in zip(edges, choice, strict=True))

        start = (0,) * len(edges)
        heap, seen = [(-total(start), start)], {start}
        while heap:
            cost, choice = heapq.heappop(heap)
            yield Architecture(tuple(edge[place][1] for edge, place in zip(edges, choice, strict=True))), -cost
            for index, place in enumerate(choice):
                if place + 1 < len(edges[index]):
                    successor = (*choice[:index], place + 1, *choice[index + 1 :])
                    if successor not in seen:
                        seen.add(successor)
                        heapq.heappush(heap, (-total(successor), successor))


@runtime_checkable
class Search(Protocol):
    """What every search does."""

    def search(self, space: Space, data: Dataset, threat: ThreatModel, stage: Stage) -> SearchResult:
        """Search `space` for architectures that are robust to `threat` on `data`.

        `data` is on the device of `stage.world`; the test split is not looked at. Saves its state to `stage` as it
        goes, and continues from there.
        """


_GROUP = Group(__name__, "Search", "search")
get, names = _GROUP.get, _GROUP.names
