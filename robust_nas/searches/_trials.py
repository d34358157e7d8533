"""Open trials in the run folder, which several processes measure side by side, on machines that share the folder.

    trials/queue.json          what a process must agree with to take part
    trials/supernet.safetensors   whose weights the trials take, if there is a supernet
    trials/7.asked.json        the architecture of trial 7, to be measured
    trials/7.claim             locked by the process that measures it
    trials/7.measured.json     its values, which do not depend on who measured them
    trials/host.json           who runs the search, and whom it has seen come
    trials/NAME.guest          a process of another machine that has come

The process that runs the search asks and reads; all measure. A lock ends with the process that has it, however that
ends, `kill -9` included, and the trial is open again: no clocks are compared, and nobody waits for a lease to run out.
Where a file system does not lock between machines, two may measure the same trial; that costs time, not correctness.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import shutil
import socket
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
from robust_nas.runtime.run_folder import STAGE_FILES
from robust_nas.searches._sharing import OpenTrials, own_name

T = TypeVar("T")

FOLDER = "trials"

_ADVICE = "delete the folder trials and resume the run"


@dataclass(frozen=True)
class Trials(OpenTrials):
    """The open trials of one search, in a folder of their own in the run folder."""

    folder: Path

    @property
    def place(self) -> str:
        """The run folder."""
        return str(self.folder.parent)

    def open(self, agreed: dict[str, Any], done: Sequence[dict[str, Any]]) -> None:
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.glob("[0-9]*.*.json"):
            if int(path.name.partition(".")[0]) <= len(done):
                path.unlink()
        self.welcome({"process": own_name(), "machine": socket.gethostname(), "seen": []})
        write_json(self.folder / "queue.json", agreed)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def is_over(self) -> bool:
        return not self.folder.parent.is_dir() or (self.folder.parent / STAGE_FILES["search"]).exists()

    def agreed(self) -> dict[str, Any] | None:
        return _unless_gone(self.folder / "queue.json", _table)

    def ask(self, number: int, architecture: AnyArchitecture) -> None:
        if self.asked(number) != str(architecture):
            (self.folder / f"{number}.measured.json").unlink(missing_ok=True)
            write_json(self.folder / f"{number}.asked.json", {"architecture": str(architecture)})

    def asked(self, number: int) -> str | None:
        """Return the architecture of an open trial as text, or None if it is not open."""
        found = _unless_gone(self.folder / f"{number}.asked.json", lambda path: read(path, records.Asked, _ADVICE))
        return None if found is None else found.architecture

    def values(self, number: int) -> list[float] | None:
        path = self.folder / f"{number}.measured.json"
        found = _unless_gone(path, lambda path: read(path, records.MeasuredTrial, _ADVICE))
        return None if found is None else list(found.values)

    def forget(self, number: int) -> None:
        for kind in ("asked.json", "measured.json", "claim"):  # no longer asked, it cannot be claimed any more
            (self.folder / f"{number}.{kind}").unlink(missing_ok=True)

    def numbers(self) -> list[int]:
        found = [int(path.name.partition(".")[0]) for path in self.folder.glob("[0-9]*.asked.json")]
        return sorted(number for number in found if self.values(number) is None)

    @contextlib.contextmanager
    def claim(self, number: int) -> Iterator[str | None]:
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
                file.write(f"{own_name()}\n")
                file.flush()
            yield text

    def claimant(self, number: int) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / f"{number}.claim").read_text(encoding="utf-8").strip() or "another process"
        return "another process"

    def answer(self, number: int, architecture: AnyArchitecture, values: Sequence[float], seconds: float) -> None:
        found = {"architecture": str(architecture), "values": list(values), "seconds": seconds}
        if self.asked(number) == str(architecture):
            write_json(self.folder / f"{number}.measured.json", found)

    def greet(self, guest: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # the search has ended meanwhile
            open_own(self.folder / f"{guest}.guest", "w").close()

    def guests(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.guest"))

    def welcome(self, host: dict[str, Any]) -> None:
        write_json(self.folder / "host.json", host)

    def host(self) -> dict[str, Any] | None:
        found = _unless_gone(self.folder / "host.json", _table)
        return found if found and {"process", "machine", "seen"} <= found.keys() else None


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


def _locked(file: IO[str]) -> bool:
    """Lock a file for this process, until it is closed; return whether that was possible."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True
