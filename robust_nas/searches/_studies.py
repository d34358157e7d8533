"""Open trials as those of an Optuna study, in a journal in a shared folder or in a database.

    user attributes of the study     robust_nas (which search it is), recipe, agreed, host, over
    trials                           parameters by the names of decisions; values; as user attributes the trial's number
                                     (from 1), the architecture as text, its seed, who measures it, and the seconds

A trial waits, is claimed by one process, and is complete. A process that measures shows a sign of life every
`storages.BEAT` seconds. After `storages.GRACE` seconds without, its trial has failed, and the search asks for it again:
the same number, architecture and seed, so that the values are the same. Databases compare times of their own clock; of
a journal, the process that runs the search notes by its own clock when a sign changes.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at
from robust_nas.runtime import storages
from robust_nas.runtime.storages import Opened, quiet
from robust_nas.searches._sharing import OpenTrials, meanwhile, own_name

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from robust_nas.architectures import AnyArchitecture
    from robust_nas.spaces import Space

MARK = "robust_nas"
"""The attribute of studies that are searches of this package: the version of their form, and which search it is."""

VERSION = 1

_ATTEMPTS = ("failed_trial", "retry_history")
"""The system attributes by which Optuna knows a trial that is measured again, and which before it failed."""


class StoredTrials(OpenTrials):
    """The open trials of one search, in a study.

    Args:
        storage: where the study is.
        name: the study's name.
        space: the space of the architectures.
        identity: what tells this search from others, such as a digest of its settings; None to take it as it is.
        seed: the search's seed.
        leads_alone: whether no other process runs the search: what such a one was measuring is lost then.
    """

    def __init__(
        self,
        storage: Opened,
        name: str,
        space: Space,
        *,
        identity: str | None = None,
        seed: int = 0,
        leads_alone: bool = False,
    ) -> None:
        self._storage, self._name, self._space, self._identity = storage, name, space, identity
        self._seed, self._leads_alone = seed, leads_alone
        self._study: Study | None = None
        self._role = "work"
        self._signs: dict[int, tuple[Any, float]] = {}

    @property
    def place(self) -> str:
        """The study and its storage."""
        return f"{self._name} in {self._storage.text}"

    @property
    def in_folder(self) -> bool:
        """Whether the storage is a file."""
        return self._storage.in_folder

    def begin(self, objectives: Sequence[str], recipe: dict[str, Any] | None) -> None:
        """Make the study, or take the one that is there.

        Args:
            objectives: the names of the values.
            recipe: the run's, for processes that have the storage alone.

        Raises:
            InputError: if the study is another search's.
        """
        import optuna

        self._role = "search"
        directions = [optuna.study.StudyDirection.MAXIMIZE] * len(objectives)

        def create() -> Study:
            with contextlib.suppress(optuna.exceptions.DuplicatedStudyError):
                optuna.create_study(study_name=self._name, storage=self._storage.storage, directions=directions)
            study = optuna.load_study(study_name=self._name, storage=self._storage.storage)
            # Else whoever made it was killed at once, or is about to write the same.
            if not study.user_attrs and not study.get_trials(deepcopy=False):
                study.set_user_attr(MARK, self._mark_of_search)
                study.set_metric_names(list(objectives))
            return study

        study = self._storage.call(create)
        found = self._storage.call(lambda: study.user_attrs)
        if found.get(MARK) != self._mark_of_search:
            raise InputError(
                f"The study {self.place} is of another search; name another one: search.study=NAME, or --study NAME."
            )
        self._study = study
        if recipe is not None:
            self._set("recipe", recipe)

    def open(self, agreed: dict[str, Any], done: Sequence[dict[str, Any]]) -> None:
        known = {trial.user_attrs["trial"] for trial in self._trials("COMPLETE")}
        for number, trial in enumerate(done, start=1):
            if number not in known:  # the storage is another one than that which they were measured in
                self._add(number, self._space.parse(trial["architecture"]), values=trial["values"])
        for left in self._trials("RUNNING") if self._leads_alone else ():
            if left.user_attrs.get("role") == "search":  # one process at a time has the run, and it was killed
                self._fail(left)
        self._set("over", False)
        self._set("host", {"process": own_name(), "machine": socket.gethostname(), "seen": []})
        self._set("agreed", agreed)

    def close(self) -> None:
        for trial in self._trials("WAITING"):
            self._fail(trial)
        self._set("over", True)

    def is_over(self) -> bool:
        return bool(self._attributes().get("over"))

    def agreed(self) -> dict[str, Any] | None:
        return self._attributes().get("agreed")

    def ask(self, number: int, architecture: AnyArchitecture) -> None:
        live = self._live(number)
        for trial in live:
            if trial.user_attrs["architecture"] != str(architecture):  # another question than before
                self._forget(trial)
        if not any(trial.user_attrs["architecture"] == str(architecture) for trial in live):
            self._add(number, architecture)

    def values(self, number: int) -> list[float] | None:
        return next((trial.values for trial in self._live(number) if trial.state.name == "COMPLETE"), None)

    def forget(self, number: int) -> None:
        """Leave the trial as it is: it is the study's record."""

    def numbers(self) -> list[int]:
        found = {trial.user_attrs["trial"] for trial in self._trials("WAITING", "RUNNING")}
        return sorted(found - {trial.user_attrs["trial"] for trial in self._trials("COMPLETE")})

    @contextlib.contextmanager
    def claim(self, number: int) -> Iterator[str | None]:
        trial = self._taken(number)
        if trial is None:
            yield None
            return
        with self._alive(trial):
            try:
                yield trial.user_attrs["architecture"]
            finally:
                if self._unanswered(trial):  # stopped: another process need not wait for a sign of life
                    self._fail(trial)

    def _taken(self, number: int) -> FrozenTrial | None:
        """Return the trial, if this process alone may measure it now."""
        from optuna.trial import TrialState

        live = self._live(number)
        waiting = next((trial for trial in live if trial.state == TrialState.WAITING), None)
        if waiting is None or any(trial.state != TrialState.WAITING for trial in live):
            return None
        self._beat(waiting)  # before it is claimed: what is claimed has shown a sign of life
        if not self._change(waiting, TrialState.RUNNING):
            return None
        for name, value in {"process": own_name(), "role": self._role}.items():
            self._mark(waiting, name, value)
        return waiting

    def claimant(self, number: int) -> str:
        running = (trial for trial in self._live(number) if trial.state.name == "RUNNING")
        return str(next((trial.user_attrs.get("process") for trial in running), None) or "another process")

    def answer(self, number: int, architecture: AnyArchitecture, values: Sequence[float], seconds: float) -> None:
        from optuna.trial import TrialState

        for trial in self._live(number):
            if trial.state == TrialState.RUNNING and trial.user_attrs["architecture"] == str(architecture):
                self._mark(trial, "seconds", round(seconds, 3))
                self._change(trial, TrialState.COMPLETE, values)

    def reopen_lost(self, pending: Sequence[AnyArchitecture], first: int) -> None:
        for trial in self._lost():
            self._fail(trial)
        for number, architecture in enumerate(pending, start=first):
            self.ask(number, architecture)

    def greet(self, guest: str) -> None:
        self._set(f"guest {guest}", True)

    def guests(self) -> list[str]:
        return sorted(name.removeprefix("guest ") for name in self._attributes() if name.startswith("guest "))

    def welcome(self, host: dict[str, Any]) -> None:
        self._set("host", host)

    def host(self) -> dict[str, Any] | None:
        return self._attributes().get("host")

    @property
    def _mark_of_search(self) -> dict[str, Any]:
        return {"version": VERSION, "search": self._identity}

    @property
    def _loaded(self) -> Study:
        if self._study is None:
            import optuna

            self._study = self._storage.call(
                lambda: optuna.load_study(study_name=self._name, storage=self._storage.storage)
            )
        return self._study

    def _attributes(self) -> dict[str, Any]:
        """Return the study's attributes, none before it is there."""
        try:
            study = self._loaded
        except KeyError:
            return {}
        return self._storage.call(lambda: study.user_attrs)

    def _set(self, name: str, value: Any) -> None:
        self._storage.call(lambda: self._loaded.set_user_attr(name, value))

    def _trials(self, *states: str) -> list[FrozenTrial]:
        """Return this package's trials in some states, in their order."""
        found = self._storage.call(lambda: self._loaded.get_trials(deepcopy=False))
        return [trial for trial in found if "trial" in trial.user_attrs and (trial.state.name in states)]

    def _live(self, number: int) -> list[FrozenTrial]:
        """Return a trial that has not failed; more than one, where several processes run the same search."""
        found = self._trials("WAITING", "RUNNING", "COMPLETE")
        return [trial for trial in found if trial.user_attrs["trial"] == number]

    def _add(self, number: int, architecture: AnyArchitecture, values: Sequence[float] | None = None) -> None:
        """Add a trial that waits, or, with values, one that is complete."""
        from optuna.distributions import CategoricalDistribution
        from optuna.trial import TrialState, create_trial

        decisions = self._space.decisions
        failed = [trial for trial in self._trials("FAIL") if trial.user_attrs["trial"] == number]
        history = [trial.number for trial in failed if trial.user_attrs["architecture"] == str(architecture)]
        added = create_trial(
            state=TrialState.WAITING if values is None else TrialState.COMPLETE,
            values=None if values is None else list(values),
            params=dict(zip(decisions, self._space.decisions_of(architecture), strict=True)),
            distributions={name: CategoricalDistribution(options) for name, options in decisions.items()},
            user_attrs={
                "trial": number,
                "architecture": str(architecture),
                "seed": seed_at(self._seed, str(architecture)),
            },
            system_attrs=dict(zip(_ATTEMPTS, (history[0], history), strict=True)) if history else {},
        )
        self._storage.call(lambda: self._loaded.add_trial(added))

    def _mark(self, trial: FrozenTrial, name: str, value: Any) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.call(lambda: self._storage.storage.set_trial_user_attr(trial._trial_id, name, value))

    def _change(self, trial: FrozenTrial, state: Any, values: Sequence[float] | None = None) -> bool:
        """Give a trial a state; return whether this process did so, and no other one before it."""
        from optuna.exceptions import UpdateFinishedTrialError

        def change() -> bool:
            return self._storage.storage.set_trial_state_values(trial._trial_id, state, values)

        try:
            return self._storage.call(change)
        except UpdateFinishedTrialError:
            return False

    def _fail(self, trial: FrozenTrial) -> None:
        from optuna.trial import TrialState

        self._change(trial, TrialState.FAIL)

    def _forget(self, trial: FrozenTrial) -> None:
        if trial.state.is_finished():
            raise InputError(
                f"Trial {trial.user_attrs['trial']} of {self.place} was {trial.user_attrs['architecture']}, but the "
                "sampler would now ask for another one; name another study: search.study=NAME, or --study NAME."
            )
        self._fail(trial)

    def _unanswered(self, trial: FrozenTrial) -> bool:
        found = self._trials("RUNNING")
        return any(other._trial_id == trial._trial_id for other in found)

    @contextlib.contextmanager
    def _alive(self, trial: FrozenTrial) -> Iterator[None]:
        """Show signs of life in the block; while the storage is away for longer than the grace, the trial is lost."""
        with meanwhile(lambda: self._beat(trial), storages.BEAT, "sign of life"):
            yield

    def _beat(self, trial: FrozenTrial) -> None:
        record: Callable[[int], None] | None = getattr(self._storage.storage, "record_heartbeat", None)
        if record is not None:
            record(trial._trial_id)
        else:
            self._storage.storage.set_trial_user_attr(trial._trial_id, "alive", int(time.time()))

    def _lost(self) -> list[FrozenTrial]:
        """Return the trials under way that have shown no sign of life for too long."""
        import optuna

        running = self._trials("RUNNING")
        if hasattr(self._storage.storage, "record_heartbeat"):
            # Optuna's own rule fails them.
            self._storage.call(lambda: optuna.storages.fail_stale_trials(self._loaded))
            return []
        now, lost = time.monotonic(), []
        for trial in running:
            sign = (trial.user_attrs.get("process"), trial.user_attrs.get("alive"))
            before, since = self._signs.get(trial._trial_id, (None, now))
            if sign != before:
                self._signs[trial._trial_id] = (sign, now)
            elif now - since > storages.GRACE:
                lost.append(trial)
        return lost


def searches_in(storage: Opened) -> dict[str, dict[str, Any]]:
    """Return the searches in a storage, their studies' attributes by name; those that are over too."""
    import optuna

    def read() -> dict[str, dict[str, Any]]:
        names = optuna.get_all_study_names(storage.storage)
        every = {name: optuna.load_study(study_name=name, storage=storage.storage).user_attrs for name in names}
        return {name: found for name, found in every.items() if (found.get(MARK) or {}).get("version") == VERSION}

    with quiet():
        return storage.call(read)
