"""Optuna's samplers by ask and tell: an architecture is one categorical parameter per decision."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robust_nas.architectures import AnyArchitecture

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study as OptunaStudy
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial, Trial

    from robust_nas.spaces import Space

NAME = "search"
"""The name of a study in its journal."""

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
        self._asked: dict[AnyArchitecture, list[Trial]] = {}
        self._finished: list[FrozenTrial] = []
        self._journal: OptunaStudy | None = None
        self._kept = 0

    def ask(self) -> AnyArchitecture:
        """Return the architecture of a new trial."""
        trial = self._study.ask(dict(self._decisions))
        architecture = self._space.decided(tuple(trial.params[name] for name in self._decisions))
        self._asked.setdefault(architecture, []).append(trial)
        return architecture

    def tell(self, architecture: AnyArchitecture, values: Sequence[float]) -> None:
        """Finish the architecture's trial; one that was not asked becomes a finished trial."""
        from optuna.trial import create_trial

        waiting = self._asked.get(architecture)
        if waiting:
            self._finished.append(self._study.tell(waiting.pop(0), list(values)))
        else:
            chosen = dict(zip(self._decisions, self._space.decisions_of(architecture), strict=True))
            added = create_trial(params=chosen, distributions=dict(self._decisions), values=list(values))
            self._study.add_trial(added)
            self._finished.append(added)

    def keep(self, path: Path) -> None:
        """Add what has been told since to Optuna's journal in a file, for its dashboard and `optuna.load_study`.

        The study in memory decides, and the journal is a copy: a search that goes on tells the same again. A file that
        has anything else than the beginning of it, or cannot be read, is replaced.
        """
        if self._journal is None:
            try:
                self._journal = _journal(path, self._study.directions)
                before = [(trial.params, trial.values) for trial in self._journal.get_trials(deepcopy=False)]
            # Whatever Optuna raises for lines that it cannot have written.
            except Exception:
                self._journal, before = None, []
            if self._journal is None or before != [
                (trial.params, trial.values) for trial in self._finished[: len(before)]
            ]:
                path.unlink()
                self._journal, before = _journal(path, self._study.directions), []
            self._kept = len(before)
        for trial in self._finished[self._kept :]:
            copied = copy.copy(trial)
            decided = self._space.decided(tuple(trial.params[name] for name in self._decisions))
            copied.user_attrs = {"architecture": str(decided)}
            self._journal.add_trial(copied)
        self._kept = len(self._finished)


def _journal(path: Path, directions: Sequence[StudyDirection]) -> OptunaStudy:
    """Return the study of a journal, without a line that was cut off when its writer was killed, or a new one."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if path.is_symlink():
        path.unlink()  # its target is no file of the run
    path = path.resolve()
    Path(f"{path}.lock").unlink(missing_ok=True)  # one process at a time has the run, and it was killed
    if path.exists():
        lines = path.read_bytes()
        path.write_bytes(lines[: lines.rfind(b"\n") + 1])
    storage = JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=NAME, storage=storage, directions=directions, load_if_exists=True)
    optuna.logging.set_verbosity(verbosity)
    return study
