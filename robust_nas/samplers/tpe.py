"""The tree-structured Parzen estimator (Bergstra et al. 2011), as Optuna has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.core.seeds import seed_at
from robust_nas.samplers._optuna import MAX_SEED, Study

if TYPE_CHECKING:
    from robust_nas.spaces import Space


@dataclass(frozen=True, kw_only=True)
class TPE:
    """Choose values that are likelier among the good architectures than among the rest; any number of objectives.

    Args:
        random_starts: random architectures before the first model (Optuna's `n_startup_trials`).
        multivariate: model all decisions together instead of each by itself.
    """

    random_starts: int = 10
    multivariate: bool = True

    def start(self, space: Space, num_objectives: int, seed: int) -> Study:
        """Begin a search."""
        from optuna.samplers import TPESampler

        sampler = TPESampler(
            n_startup_trials=self.random_starts, multivariate=self.multivariate, seed=seed_at(seed, "tpe") % MAX_SEED
        )
        return Study(sampler, space, num_objectives)
