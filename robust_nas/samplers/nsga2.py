"""NSGA-II, the non-dominated sorting genetic algorithm (Deb et al. 2002), as Optuna has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at
from robust_nas.samplers._optuna import MAX_SEED, Study

if TYPE_CHECKING:
    from robust_nas.spaces import Space


@dataclass(frozen=True, kw_only=True)
class NSGA2:
    """Cross and mutate the members of the best fronts, generation by generation; any number of objectives.

    Args:
        population_size: members of a generation; the first one is random (Optuna's 50 is more than a small budget).

    Raises:
        InputError: if `population_size` is below 2.
    """

    population_size: int = 20

    def __post_init__(self) -> None:
        if self.population_size < 2:
            raise InputError(f"NSGA2.population_size must be at least 2, but got {self.population_size}.")

    def start(self, space: Space, num_objectives: int, seed: int) -> Study:
        """Begin a search."""
        from optuna.samplers import NSGAIISampler

        sampler = NSGAIISampler(population_size=self.population_size, seed=seed_at(seed, "nsga2") % MAX_SEED)
        return Study(sampler, space, num_objectives)
