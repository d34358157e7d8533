"""The folder of a scaling study.

    study.toml               the grid
    study.json               its data and cells in numbers
    cells/NAME/              a cell's run folder
    cells/NAME.log           what its process said
    cells/NAME.claim         locked by the process that measures it
    cells/NAME.json          how it ended: nobody measures it again
    scaling.json             all cells in one table
    scaling.html             the page

A lock ends with the process that has it, however that ends. So any number of processes, on machines that share the
folder, take cells from it, and a cell that was under way is gone on with.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robust_nas import records
from robust_nas.core.files import is_there
from robust_nas.core.writing import open_own
from robust_nas.records.scaling import CellEnd

_ADVICE = "delete it, and run the study again"


@dataclass(frozen=True)
class Files:
    """The places of a study's files."""

    study: Path

    @property
    def cells(self) -> Path:
        """The folder of the cells."""
        return self.study / "cells"

    def run(self, name: str) -> Path:
        """Return a cell's run folder."""
        return self.cells / name

    def log(self, name: str) -> Path:
        """Return the file with what a cell's process said."""
        return self.cells / f"{name}.log"

    def claim(self, name: str) -> Path:
        """Return the file that is locked while a cell is measured."""
        return self.cells / f"{name}.claim"

    def end_file(self, name: str) -> Path:
        """Return the file that says how a cell ended."""
        return self.cells / f"{name}.json"

    def end(self, name: str) -> CellEnd | None:
        """Return how a cell ended, or None if it has not.

        Raises:
            InputError: if the file is damaged.
        """
        path = self.end_file(name)
        return records.read(path, CellEnd, _ADVICE) if is_there(path) else None


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Lock a file in the block; give whether that was possible, or another process has it."""
    with open_own(path, "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            yield False
            return
        yield True


def is_claimed(path: Path) -> bool:
    """Whether another process has a file locked."""
    if not path.exists():
        return False
    with claimed(path) as mine:
        return not mine
