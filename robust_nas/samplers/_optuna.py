"""Optuna's samplers by ask and tell: an architecture is one categorical parameter per decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robust_nas.architecture import AnyArchitecture

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

    from robust_nas.spaces import Space

MAX_SEED = 2**32
"""Optuna's samplers take seeds below this."""


class Study:
    """An Optuna study in memory that maximises every objective."""

    def __init__(self, sampler: BaseSampler, space: Space, num_objectives: int) -> None:
        import optuna
        from optuna.distributions import CategoricalDistribution

        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line for every study, otherwise
        self._study = optuna.create_study(sampler=sampler, directions=["maximize"] * num_objectives)
        optuna.logging.set_verbosity(verbosity)
        self._space = space
        self._decisions = {name: CategoricalDistribution(values) for name, values in space.decisions.items()}
        self._asked: dict[AnyArchitecture, Trial] = {}

    def ask(self) -> AnyArchitecture:
        """Return the architecture of a new trial."""
        trial = self._study.ask(dict(self._decisions))
        architecture = self._space.decided(tuple(trial.params[name] for name in self._decisions))
        self._asked[architecture] = trial
        return architecture

    def tell(self, architecture: AnyArchitecture, values: Sequence[float]) -> None:
        """Finish the architecture's trial; one that was not asked becomes a finished trial."""
        from optuna.trial import create_trial

        trial = self._asked.pop(architecture, None)
        if trial is not None:
            self._study.tell(trial, list(values))
        else:
            chosen = dict(zip(self._decisions, self._space.decisions_of(architecture), strict=True))
            self._study.add_trial(create_trial(params=chosen, distributions=dict(self._decisions), values=list(values)))
