"""A study at work: its cells are measured side by side, each in a process of its own, until all have ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robust_nas import pipeline, records
from robust_nas.core import config
from robust_nas.core.checks import check_at_least
from robust_nas.core.errors import InputError
from robust_nas.core.writing import make_folder, write_text
from robust_nas.recipes.rehearsal import rehearse
from robust_nas.records.scaling import CellEnd, StudyData
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.run_folder import RunFolder
from robust_nas.studies.scaling import grid as grids
from robust_nas.studies.scaling.cell import LOST, TAKEN
from robust_nas.studies.scaling.files import Files, is_claimed
from robust_nas.studies.scaling.grid import Cell, Grid

POLL = 0.2
"""Seconds between two looks at the processes."""

TRIES = 2
"""How often a cell is begun whose process is killed: the system does so when memory runs out, and so do people."""


def folder_of(grid: Grid, out: Path) -> Path:
    """Return the folder of a grid's study: the same grid goes on where it ended."""
    return out / f"scale-{config.digest(config.to_dict(grid))}"


def begun(study: Path | None, words: Mapping[str, Any], out: Path, command: str | None = None) -> Path:
    """Return the folder of a study, made if it is not there yet.

    Args:
        study: the folder; if not given, one in `out` that is named after the grid.
        words: those of `from_words`; without any, the study must be there.
        out: the folder of studies.
        command: what is typed to make it, for its page.

    Raises:
        InputError: for a mistake in the words, data that is not there, or a folder that has another grid.
    """
    if not words:
        if study is None:
            raise InputError(
                "'robust-nas scale run' takes a grid, such as --depths 8,14 --data digits, or a study to go on with."
            )
        return begin(grids.read(study), study)
    missing = [f"--{name}" for name in ("data", "depths") if name not in words]
    if missing:
        raise InputError(f"A grid needs {' and '.join(missing)}, such as --depths 20,38,74 --data cifar10.")
    grid = grids.from_words(**words)
    return begin(grid, study or folder_of(grid, out), command)


def begin(grid: Grid, study: Path, command: str | None = None) -> Path:
    """Make a grid's folder, unless it is there, and return it.

    All that can be known to be wrong is found here: a study that cannot start leaves no folder.

    Raises:
        InputError: for a mistake in the settings, data that is not there, or a folder that has something else.
    """
    if not _is_study(study):
        if study.exists() and (not study.is_dir() or any(study.iterdir())):
            raise InputError(f"{study} has something else than a scaling study; name a folder that is not there yet.")
        _make(grid, study, command)
    RunFolder(study).settle(config.to_dict(grid), "study.toml")
    return study


def _is_study(path: Path) -> bool:
    return (path / "study.toml").is_file()


def _make(grid: Grid, study: Path, command: str | None) -> None:
    """Make a study's folder, in whole or not at all; another process may have done so meanwhile."""
    first = replace(grid, depths=grid.depths[:1], widths=grid.widths[:1], seeds=grid.seeds[:1])
    every = [cell.recipe for cell in replace(grid, seeds=grid.seeds[:1]).cells()]
    data = pipeline.read_data(every[0].data, World())
    for cell in first.cells():  # a step of each setting's training says what does not fit
        rehearse(cell.recipe, data, World(), trains=True)
    facts = StudyData(
        name=data.name,
        image_shape=data.image_shape,
        num_classes=len(data.classes),
        num_train=len(data.train),
        num_validation=len(data.validation),
        num_cells=len(grid),
        command=command,
    )
    make_folder(study.parent, "choose another place with --out")
    making = Path(tempfile.mkdtemp(prefix=f".{study.name}.", suffix=".unfinished", dir=study.parent))
    try:
        making.chmod(0o755)
        (making / "cells").mkdir()
        records.write(making / "study.json", facts)
        write_text(making / "study.toml", config.to_toml(config.to_dict(grid)))
        making.rename(study)
    except OSError:
        if not _is_study(study):
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def measure(
    study: Path, progress: Progress, *, workers: int = 1, memory: float | None = None, retry: bool = False
) -> None:
    """Measure the open cells of a study, as many side by side as there are workers, until every cell has ended.

    Processes that were started elsewhere on the same folder have their part of the cells, and are waited for.

    Args:
        workers: processes at once.
        memory: GiB that each may take; the system's own limit, if not given.
        retry: whether cells are open again that did not finish.

    Raises:
        InputError: if `study` is none, or for a number that is none of workers or of GiB.
    """
    check_at_least("--workers", workers, 1)
    if memory is not None and not 0.5 <= memory < 2**20:  # an interpreter with torch has some hundred MiB
        raise InputError(f"--memory is what each cell's process may take in GiB, 0.5 or more, but got {memory:g}.")
    files, cells = Files(study), grids.read(study).cells()
    for cell in cells if retry else ():
        if (end := files.end(cell.name)) is not None and end.status != "finished":
            files.end_file(cell.name).unlink(missing_ok=True)  # another process may have done so
    bench = _Bench(files, cells, workers, memory)
    progress.say(f"study: {study}")
    try:
        for name, end in progress.steps(bench.ended(), "cells", total=len(cells), done=len(cells) - len(bench.open())):
            progress.say(_sentence(name, end))
    finally:
        bench.stop()


def _sentence(name: str, end: CellEnd) -> str:
    took = f"{end.seconds:.0f} s"
    return f"{name}: {end.status}, {took}" if end.reason is None else f"{name}: {end.status} ({end.reason}), {took}"


@dataclass
class _Bench:
    """The processes at work on a study's cells."""

    files: Files
    cells: Sequence[Cell]
    workers: int
    memory: float | None
    running: dict[int, tuple[str, subprocess.Popen[bytes], float]] = field(default_factory=dict)
    killed: dict[str, int] = field(default_factory=dict)

    def open(self) -> list[str]:
        """Return the cells that have not ended, in the grid's order."""
        return [cell.name for cell in self.cells if self.files.end(cell.name) is None]

    def ended(self) -> Iterator[tuple[str, CellEnd]]:
        """Start processes; yield each cell that ends, whoever measured it."""
        left = self.open()
        while left:
            self._start(left)
            time.sleep(POLL)
            self._look()
            for name in list(left):
                if (end := self.files.end(name)) is not None:
                    left.remove(name)
                    yield name, end

    def _start(self, left: Sequence[str]) -> None:
        """Start a process on each free place, for cells that nobody measures."""
        mine = {name for name, _, _ in self.running.values()}
        waiting = (name for name in left if name not in mine and not is_claimed(self.files.claim(name)))
        for place in range(self.workers):
            if place not in self.running and (name := next(waiting, None)) is not None:
                self.running[place] = (name, self._process(name, place), time.monotonic())

    def _process(self, name: str, place: int) -> subprocess.Popen[bytes]:
        words = [
            sys.executable,
            "-P",
            "-m",
            "robust_nas.studies.scaling.cell",
            str(self.files.study),
            name,
            str(os.getpid()),
        ]
        limit = [] if self.memory is None else [str(int(self.memory * 2**30))]
        with self.files.log(name).open("ab") as log:
            return subprocess.Popen(
                [*words, *limit], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(place)
            )

    def _look(self) -> None:
        """Note the ends of processes that could not do so themselves."""
        for place, (name, process, started) in list(self.running.items()):
            if (code := process.poll()) is None:
                continue
            del self.running[place]
            if self.files.end(name) is not None or code in (0, TAKEN):
                continue
            if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM):
                raise KeyboardInterrupt  # whoever stopped the cell means the study
            self.killed[name] = self.killed.get(name, 0) + 1
            if (code < 0 or code == LOST) and self.killed[name] < TRIES:
                continue
            records.write(self.files.end_file(name), self._lost(name, code, time.monotonic() - started))

    def _lost(self, name: str, code: int, seconds: float) -> CellEnd:
        if code in (-signal.SIGKILL, LOST):
            reason = (
                f"its process, or one of its own, was killed {TRIES} times, as the system does when memory runs out"
            )
            return CellEnd(status="out of memory", reason=reason, seconds=seconds)
        ended = f"by signal {-code}" if code < 0 else f"with code {code}"
        reason = f"its process ended {ended}; {self.files.log(name).name} has what it said"
        return CellEnd(status="failed", reason=reason, seconds=seconds)

    def stop(self) -> None:
        """End the processes; what they have done so far is in their run folders."""
        for _, process, _ in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for _, process, _ in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()
        self.running.clear()


def _environment(place: int) -> Mapping[str, str]:
    """Return the environment of a worker's processes: one accelerator of those there are."""
    import torch

    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if devices == [""]:
        devices = [str(number) for number in range(torch.cuda.device_count())]
    return {**os.environ, "CUDA_VISIBLE_DEVICES": devices[place % len(devices)]} if devices else os.environ
