"""Local search: to a better neighbour as long as there is one, then from a new start.

A simple baseline that is hard to beat on small cell spaces (White et al. 2021, arXiv:2005.02960).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from robust_nas.architectures import AnyArchitecture
from robust_nas.core.seeds import seed_at
from robust_nas.samplers._cells import neighbours, start_draw
from robust_nas.samplers._objectives import only_one

if TYPE_CHECKING:
    from robust_nas.spaces import Space


@dataclass(frozen=True, kw_only=True)
class Local:
    """Hill climbing over architectures that differ in one decision, such as the operation on an edge; one objective.

    Neighbours are tried in a random order. One that is not better than all its neighbours is left; from one that is, a
    local optimum, the search starts anew at a random architecture.

    Args:
        improvement: "first" moves to the first neighbour that is better, "best" tries all and moves to the best one.
    """

    improvement: Literal["first", "best"] = "first"

    def start(self, space: Space, num_objectives: int, seed: int) -> _Climb:
        """Begin a search.

        Raises:
            InputError: for several objectives.
        """
        only_one("local", num_objectives)
        return _Climb(self, space, seed)


class _Climb:
    """The state of a climb: `current` is None when the next architecture is a new start."""

    def __init__(self, sampler: Local, space: Space, seed: int) -> None:
        self._at_once = sampler.improvement == "first"
        self._space, self._seed = space, seed
        self._starts = self._moves = 0
        self._untried: list[AnyArchitecture] = []
        self._best: tuple[float, AnyArchitecture] | None = None
        self.current: tuple[float, AnyArchitecture] | None = None

    def ask(self) -> AnyArchitecture:
        if self._untried:
            return self._untried.pop()
        self._starts += 1
        return start_draw(self._space, self._seed, self._starts - 1)

    def tell(self, architecture: AnyArchitecture, values: Sequence[float]) -> None:
        if self._best is None or values[0] > self._best[0]:
            self._best = values[0], architecture
        if self._best != self.current and (self._at_once or not self._untried):
            self._move()
        elif not self._untried:
            self.current = self._best = None

    def _move(self) -> None:
        assert self._best is not None
        self.current = self._best
        self._untried = neighbours(self._space, self.current[1])
        random.Random(seed_at(self._seed, "move", self._moves)).shuffle(self._untried)
        self._moves += 1
