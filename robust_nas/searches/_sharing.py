"""A search's open trials, which several processes measure side by side: what they share, wherever it is kept.

The process that runs the search asks and reads; all measure. Files in the run folder (`_trials`) and studies in one of
Optuna's storages (`_studies`) are two places for them, with one order of questions and answers: the result is the same.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from robust_nas import __version__
from robust_nas.core.errors import InputError
from robust_nas.datasets import changes
from robust_nas.runtime import storages

if TYPE_CHECKING:
    from robust_nas.architectures import AnyArchitecture
    from robust_nas.datasets import Dataset
    from robust_nas.runtime.progress import Progress
    from robust_nas.runtime.stages import Stage
    from robust_nas.runtime.storages import Opened

SEEN = ("train", "validation")
"""The splits that a search looks at."""

POLL = 0.5
"""Seconds between two looks at a place in which there was nothing to do."""

PATIENCE = 60.0
"""Seconds after which it is said what is being waited for, and in which a shared folder shows that it is shared."""

LOOK = 5.0
"""Seconds between two looks for processes that have come to take part."""


class OpenTrials(ABC):
    """The open trials of one search, in a place that processes share."""

    @property
    @abstractmethod
    def place(self) -> str:
        """The place's name in messages."""

    @property
    def in_folder(self) -> bool:
        """Whether the place is in a folder, so that another machine may have another one of that name."""
        return True

    @abstractmethod
    def open(self, agreed: dict[str, Any], done: Sequence[dict[str, Any]]) -> None:
        """Begin, or go on after the trials that are done; what processes must agree with is there last."""

    @abstractmethod
    def close(self) -> None:
        """Say that the search is over."""

    @abstractmethod
    def is_over(self) -> bool:
        """Whether the search is over."""

    @abstractmethod
    def agreed(self) -> dict[str, Any] | None:
        """Return the data that a process must agree with, or None while the search has not begun to ask."""

    @abstractmethod
    def ask(self, number: int, architecture: AnyArchitecture) -> None:
        """Open a trial; one that was open before an interruption stays, with its values if it has been measured."""

    @abstractmethod
    def values(self, number: int) -> list[float] | None:
        """Return a trial's values, or None if it has not been measured."""

    @abstractmethod
    def forget(self, number: int) -> None:
        """Close a trial: its values are in the search's own state."""

    @abstractmethod
    def numbers(self) -> list[int]:
        """Return the numbers of the trials that are asked and not measured, the oldest first."""

    @abstractmethod
    def claim(self, number: int) -> AbstractContextManager[str | None]:
        """Give the architecture of a trial that this process alone may measure now, or None.

        None if another process measures it, or has done so.
        """

    @abstractmethod
    def claimant(self, number: int) -> str:
        """Return the process that measures a trial, in words."""

    @abstractmethod
    def answer(self, number: int, architecture: AnyArchitecture, values: Sequence[float], seconds: float) -> None:
        """Write a trial's values, unless it is no longer open."""

    def reopen_lost(self, pending: Sequence[AnyArchitecture], first: int) -> None:
        """Open the trials again that were measured by processes that are lost; `first` is the oldest one's number."""

    @abstractmethod
    def greet(self, guest: str) -> None:
        """Write down that a process has come to take part."""

    @abstractmethod
    def guests(self) -> list[str]:
        """Return the processes that have come."""

    @abstractmethod
    def welcome(self, host: dict[str, Any]) -> None:
        """Write down who runs the search, and whom it has seen come."""

    @abstractmethod
    def host(self) -> dict[str, Any] | None:
        """Return who runs the search, as `welcome` wrote it."""


def own_name() -> str:
    """Return this process in words."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def wait() -> None:
    """Wait before another look."""
    time.sleep(POLL)


@contextlib.contextmanager
def welcoming(trials: OpenTrials) -> Iterator[None]:
    """Answer, in the block, the processes that come to take part, so that they know that the place is shared."""
    if not trials.in_folder:
        yield
        return
    seen: list[str] = []

    def answer_guests() -> None:
        nonlocal seen
        if (found := trials.guests()) != seen:
            trials.welcome({"process": own_name(), "machine": socket.gethostname(), "seen": found})
            seen = found

    with meanwhile(answer_guests, min(LOOK, POLL * 10), "welcome"):
        yield


@contextlib.contextmanager
def meanwhile(work: Callable[[], None], seconds: float, name: str) -> Iterator[None]:
    """Do some work beside the block, again and again.

    What it raises is left to the block, which meets the same error and says so.

    Args:
        seconds: between two times.
        name: of the thread.
    """
    stop = threading.Event()

    def go_on() -> None:
        while not stop.wait(seconds):
            with contextlib.suppress(Exception):
                work()

    thread = threading.Thread(target=go_on, daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)


class Patience:
    """A wait for something to do; once it has been long, what is being waited for is said, once.

    Args:
        message: the thing that is being waited for.
    """

    def __init__(self, progress: Progress, message: str) -> None:
        self._progress, self._message, self._idle = progress, message, time.monotonic()

    def wait(self) -> None:
        """Wait before another look."""
        if time.monotonic() - self._idle > PATIENCE:
            self._progress.say(self._message)
            self._idle = math.inf  # said once
        wait()

    def begin_anew(self) -> None:
        """Note that there was something to do."""
        self._idle = time.monotonic()


def joined(storage: str, progress: Progress) -> Opened:
    """Return a storage that another process has made, or is about to make.

    Raises:
        InputError: if it does not answer, or if there is no such file in a minute.
    """
    end = time.monotonic() + PATIENCE
    while (found := storages.opened(storage, make=False)) is None:
        if time.monotonic() > end:
            raise InputError(
                f"{storage} has not appeared on {socket.gethostname()} in {PATIENCE:.0f} s; begin the search with that "
                "--storage, in a folder that all its machines share: it is not shared if the search runs already."
            )
        wait()
    return found


class Guest:
    """A process that has come to take part in a search.

    Before it measures anything in a folder, it knows that the process that runs the search sees what it writes: two
    machines may each have a folder of that name, or one of them an old copy. Both write, and read what the other wrote.
    """

    def __init__(self, trials: OpenTrials, progress: Progress, again: str) -> None:
        self._trials, self._again = trials, again
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._since: float | None = None
        self._is_welcome = not trials.in_folder
        message = f"nothing to measure for {PATIENCE:.0f} s; if nobody runs the search: {again}"
        self._patience = Patience(progress, message)

    def is_welcome(self) -> bool:
        """Whether what this process writes is seen.

        Raises:
            InputError: if it was not for a minute.
        """
        if self._is_welcome:
            return True
        host = self._trials.host()
        if host is None or host["machine"] == socket.gethostname() or self._name in host["seen"]:
            self._is_welcome = True
            return True
        if self._since is None:
            self._since = time.monotonic()
            self._trials.greet(self._name)
        if time.monotonic() - self._since > PATIENCE:
            raise InputError(
                f"{self._trials.place} is not shared with {host['machine']}, where {host['process']} runs the search: "
                f"it has not seen in {PATIENCE:.0f} s what {socket.gethostname()} wrote there; give both machines the "
                f"same folder, or, if that process has ended, go on with the search: {self._again}"
            )
        return False

    def measured(self) -> None:
        """Note that there was something to do."""
        self._patience.begin_anew()

    def waits(self) -> None:
        """Wait before another look; say once what is being waited for."""
        self._patience.wait()


def measured_together(
    trials: OpenTrials,
    number: int,
    pending: Sequence[AnyArchitecture],
    measure: Callable[[AnyArchitecture], list[float]],
    stage: Stage,
) -> list[float]:
    """Return the values of the oldest open trial, `number`; meanwhile measure open trials that nobody else does.

    Args:
        pending: the architectures of the open trials, from `number` on.
    """
    idle = time.monotonic()
    while (values := trials.values(number)) is None:
        for place, architecture in enumerate(pending, start=number):
            with trials.claim(place) as text:
                if text is None:
                    continue
                started = time.monotonic()
                trials.answer(place, architecture, measure(architecture), time.monotonic() - started)
            idle = time.monotonic()
            break
        else:
            trials.reopen_lost(pending, number)
            if time.monotonic() - idle > PATIENCE:
                stage.progress.say(f"waiting for trial {number}, which {trials.claimant(number)} measures")
                idle = math.inf  # said once
            wait()
    return values


def to_agree_on(data: Dataset) -> dict[str, Any]:
    """Return the data that all processes of a search's trials must share, beside the run's configuration."""
    versions = {"robust-nas": __version__, "torch": torch.__version__}
    return {
        "versions": versions,
        "device": data.train.device.type,
        "threads": torch.get_num_threads(),
        "data": data.fingerprint(SEEN),
    }


def check_agreement(agreed: dict[str, Any], data: Dataset, place: str) -> None:
    """Raise InputError if this process cannot take part in the search in a place; take as many threads as it has."""
    if agreed["processes"] > 1:
        raise InputError(
            f"The trials of {place} are measured by {agreed['processes']} processes of torchrun together, which "
            "take no other ones; resume the run without torchrun."
        )
    if agreed.get("threads") and agreed["device"] == "cpu":
        torch.set_num_threads(min(agreed["threads"], os.cpu_count() or 1))
    own = to_agree_on(data)
    for package, version in own["versions"].items():
        if agreed["versions"][package] != version:
            raise InputError(
                f"{place} runs with {package} {agreed['versions'][package]}, but this is {version}; use the same one."
            )
    if agreed["device"] != own["device"]:
        raise InputError(
            f"{place} runs on {agreed['device']}, but this is {own['device']}, which rounds otherwise; use the "
            "same kind of device."
        )
    if changed := changes(agreed["data"], own["data"], SEEN):
        raise InputError(
            f"The images of {data.name} here are not those of {place}: {'; '.join(changed)}; use the same files."
        )
