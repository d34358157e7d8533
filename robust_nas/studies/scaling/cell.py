"""The measurement of one cell of a study, in a process of its own: what is lost in it, such as memory, is its own.

`python -m robust_nas.studies.scaling.cell STUDY NAME PARENT [BYTES]` is how `run` starts it.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from robust_nas import pipeline, records
from robust_nas.core.errors import InputError, Interrupted, NotFinite, Terminated, TooLarge, reason_of
from robust_nas.records.scaling import CellEnd, Status
from robust_nas.runtime.distributed import end_with_parent
from robust_nas.runtime.process import unchanged_process
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import is_run
from robust_nas.runtime.threads import wait_passively
from robust_nas.studies.scaling import grid
from robust_nas.studies.scaling.files import Files, claimed

TAKEN = 76
"""The exit code of a process whose cell another one measures, or has measured."""

LOST = 75
"""The exit code of a process that lost another one of its own: another try may succeed."""

_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|Cannot allocate memory", re.IGNORECASE)


def main(words: Sequence[str]) -> int:
    """Measure a cell that nobody else measures; return the exit code, 0 where the study knows how it ended."""
    (study, name, parent), limit = (Path(words[0]), words[1], int(words[2])), words[3:]
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before we asked to be told
        return TAKEN
    if limit:  # of all that it writes to, mapped files excepted
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit[0]), int(limit[0])))
    signal.signal(signal.SIGTERM, _terminate)
    files = Files(study)
    with claimed(files.claim(name)) as mine:
        if not mine or files.end(name) is not None:
            return TAKEN
        try:
            end = _measured(study, name)
        except Interrupted as error:
            print(f"robust-nas: {error}", file=sys.stderr)
            return LOST
        except KeyboardInterrupt as stop:
            return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
        records.write(files.end_file(name), end)
    return 0


def _measured(study: Path, name: str) -> CellEnd:
    """Train and attack a cell's network in its run folder; return how that ended."""
    started = time.monotonic()
    status: Status = "finished"
    reason = None
    try:
        _run(study, name)
    except Interrupted:  # a process of its own was killed
        raise
    except Exception as error:
        status, reason = _status(error), reason_of(error)
        if not isinstance(error, InputError):
            traceback.print_exc()
            reason = f"{type(error).__name__}: {reason}"
        print(f"robust-nas: {reason}", file=sys.stderr)
    return CellEnd(
        status=status,
        reason=reason,
        seconds=time.monotonic() - started,
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _run(study: Path, name: str) -> None:
    asked, files = grid.read(study), Files(study)
    (cell,) = [each for each in asked.cells() if each.name == name]
    path, progress = files.run(name), Progress()
    if is_run(path):
        job = pipeline.resume(path, [], progress)
    else:
        job = pipeline.start(cell.recipe, path.parent, progress, ["scale", "run", str(study)], path=path)
    try:
        pipeline.train_given(job)
        pipeline.attack(job)
        if asked.certify:
            pipeline.certify(job)
    finally:
        job.close()


def _status(error: Exception) -> Status:
    if isinstance(error, NotFinite):
        return "diverged"
    of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError | TooLarge)
    return "out of memory" if of_memory or _OF_MEMORY.search(str(error)) else "failed"


def _terminate(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Terminated


if __name__ == "__main__":
    wait_passively()
    with unchanged_process():
        code = main(sys.argv[1:])
    sys.exit(code)
