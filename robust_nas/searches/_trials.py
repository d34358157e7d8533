"""Open trials in the run folder, which several processes measure side by side, on machines that share the folder.

    trials/queue.json          what a process must agree with to take part
    trials/supernet.safetensors   whose weights the trials take, if there is a supernet
    trials/7.asked.json        the architecture of trial 7, to be measured
    trials/7.claim             locked by the process that measures it
    trials/7.measured.json     its values, which do not depend on who measured them

The process that runs the search asks and reads; all measure. A lock ends with the process that has it, however that
ends, `kill -9` included, and the trial is open again: no clocks are compared, and nobody waits for a lease to run out.
Where a file system does not lock between machines, two may measure the same trial; that costs time, not correctness.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from robust_nas import records
from robust_nas.architectures import AnyArchitecture
from robust_nas.core.errors import InputError
from robust_nas.core.files import damaged, read_json
from robust_nas.core.writing import open_own, write_json
from robust_nas.records import read

T = TypeVar("T")

FOLDER = "trials"

POLL = 0.5
"""Seconds between two looks at a folder in which there was nothing to do."""

PATIENCE = 60.0
"""Seconds after which it is said what is being waited for."""

_ADVICE = "delete the folder trials and resume the run"


@dataclass(frozen=True)
class Trials:
    """The open trials of one search, in a folder of their own."""

    folder: Path

    def open(self, agreed: dict[str, Any], done: int) -> None:
        """Begin, or go on after trial `done`; what processes must agree with is there last."""
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.glob("[0-9]*.*.json"):
            if int(path.name.partition(".")[0]) <= done:
                path.unlink()
        write_json(self.folder / "queue.json", agreed)

    def close(self) -> None:
        """Remove everything: the search is over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def agreed(self) -> dict[str, Any] | None:
        """Return the data that a process must agree with, or None while the search has not begun to ask."""
        return _unless_gone(self.folder / "queue.json", _table)

    def ask(self, number: int, architecture: AnyArchitecture) -> None:
        """Open a trial; one that was open before an interruption stays, with its values if it has been measured."""
        if self.asked(number) != str(architecture):
            (self.folder / f"{number}.measured.json").unlink(missing_ok=True)
            write_json(self.folder / f"{number}.asked.json", {"architecture": str(architecture)})

    def asked(self, number: int) -> str | None:
        """Return the architecture of an open trial as text, or None if it is not open."""
        found = _unless_gone(self.folder / f"{number}.asked.json", lambda path: read(path, records.Asked, _ADVICE))
        return None if found is None else found.architecture

    def values(self, number: int) -> list[float] | None:
        """Return a trial's values, or None if it has not been measured."""
        path = self.folder / f"{number}.measured.json"
        found = _unless_gone(path, lambda path: read(path, records.MeasuredTrial, _ADVICE))
        return None if found is None else list(found.values)

    def forget(self, number: int) -> None:
        """Remove a trial's files: its values are in the search's own state."""
        for kind in ("asked.json", "measured.json", "claim"):  # no longer asked, it cannot be claimed any more
            (self.folder / f"{number}.{kind}").unlink(missing_ok=True)

    def numbers(self) -> list[int]:
        """Return the numbers of the trials that are asked and not measured, the oldest first."""
        found = [int(path.name.partition(".")[0]) for path in self.folder.glob("[0-9]*.asked.json")]
        return sorted(number for number in found if self.values(number) is None)

    @contextlib.contextmanager
    def claim(self, number: int) -> Iterator[str | None]:
        """Give the architecture of a trial that this process alone may measure now, or None.

        None if another process measures it, or has done so.
        """
        try:
            file = open_own(self.folder / f"{number}.claim", "a")
        except FileNotFoundError:  # the search has ended meanwhile
            yield None
            return
        with file:
            if not _locked(file):
                yield None
                return
            # Read only now: whoever had the lock may have measured it.
            text = self.asked(number) if self.values(number) is None else None
            if text is not None:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
            yield text

    def claimant(self, number: int) -> str:
        """Return the process that measures a trial, in words."""
        with contextlib.suppress(OSError):
            return (self.folder / f"{number}.claim").read_text(encoding="utf-8").strip() or "another process"
        return "another process"

    def answer(self, number: int, architecture: AnyArchitecture, values: Sequence[float], seconds: float) -> None:
        """Write a trial's values, unless it is no longer open."""
        found = {"architecture": str(architecture), "values": list(values), "seconds": seconds}
        if self.asked(number) == str(architecture):
            write_json(self.folder / f"{number}.measured.json", found)


def _unless_gone(path: Path, reader: Callable[[Path], T]) -> T | None:
    """Return the record in a file of the folder, or None if it is not there any more."""
    if not path.exists():
        return None
    try:
        return reader(path)
    except InputError:
        if path.exists():
            raise
        return None


def _table(path: Path) -> dict[str, Any]:
    found = read_json(path, _ADVICE)
    if not isinstance(found, dict):
        raise InputError(damaged(path, "it must be a table", _ADVICE))
    return found


def wait() -> None:
    """Wait before another look at the folder."""
    time.sleep(POLL)


def _locked(file: IO[str]) -> bool:
    """Lock a file for this process, until it is closed; return whether that was possible."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True
