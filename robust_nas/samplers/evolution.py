"""Regularised (aging) evolution (Real et al. 2019, arXiv:1802.01548, algorithm 1)."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.architectures import AnyArchitecture
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at
from robust_nas.samplers._cells import neighbours, start_draw
from robust_nas.samplers._objectives import only_one

if TYPE_CHECKING:
    from robust_nas.spaces import Space


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """Mutate the best of a random sample of the population, and let the oldest member die; one objective.

    A mutation is another value of one decision: another operation on an edge, or, in the DARTS space, another pair of
    sources of a node. A child whose class is known joins the population like any other.

    Args:
        population_size: members; the first ones are random (the paper's P; its 100 is more than a small budget).
        sample_size: members among which the parent is the best (the paper's S).

    Raises:
        InputError: if `sample_size` is below 1 or above `population_size`.
    """

    population_size: int = 20
    sample_size: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.sample_size <= self.population_size:
            raise InputError(
                f"Evolution.sample_size must be from 1 to population_size ({self.population_size}), "
                f"but got {self.sample_size}."
            )

    def start(self, space: Space, num_objectives: int, seed: int) -> _Population:
        """Begin a search.

        Raises:
            InputError: for several objectives.
        """
        only_one("evolution", num_objectives)
        return _Population(self, space, seed)


class _Population:
    def __init__(self, sampler: Evolution, space: Space, seed: int) -> None:
        self._sampler, self._space, self._seed = sampler, space, seed
        self._asked = 0
        # Full, it drops the oldest member for each new one.
        self._members: deque[tuple[float, AnyArchitecture]] = deque(maxlen=sampler.population_size)

    def ask(self) -> AnyArchitecture:
        self._asked += 1
        if len(self._members) < self._sampler.population_size:
            return start_draw(self._space, self._seed, self._asked - 1)
        generator = random.Random(seed_at(self._seed, "mutation", self._asked))
        sample = generator.sample(self._members, self._sampler.sample_size)
        _, parent = max(sample, key=lambda member: member[0])
        return generator.choice(neighbours(self._space, parent))

    def tell(self, architecture: AnyArchitecture, values: Sequence[float]) -> None:
        self._members.append((values[0], architecture))
