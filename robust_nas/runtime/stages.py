"""A stage's place in a run: its state under way, from which it resumes, its metrics, its progress display."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_nas.core.errors import InputError
from robust_nas.core.files import damaged, read_rows
from robust_nas.core.writing import open_own, write_text
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.states import load_state, save_state

if TYPE_CHECKING:
    from robust_nas.runtime.distributed import World

METRICS = "metrics.jsonl"


@dataclass
class Stage:
    """One stage's place in a run: its state under way, its log, its progress display.

    Without a folder (the plain Python API) nothing is written, and a stage always starts from its beginning.

    Args:
        name: the stage's name, such as "search" or "train-0"; also the root of its seeds.
        seed: the run's seed.
        world: the processes at work.
        progress: the display of the stage's progress.
        folder: the run folder, or None.
        save_steps: optimiser steps after which its state is saved within an epoch; 0 for whole epochs alone.
    """

    name: str
    seed: int
    world: World
    progress: Progress
    folder: Path | None = None
    save_steps: int = 0

    @property
    def checkpoint(self) -> Path | None:
        """The file of the state under way."""
        return self.folder and self.folder / "checkpoints" / f"{self.name}.state.safetensors"

    def within(self, name: str) -> Stage:
        """Return a silent stage for work inside a step of this one; it writes nothing and keeps no state."""
        return Stage(f"{self.name}-{name}", self.seed, self.world, Progress(quiet=True))

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Keep the state after `step` steps (epochs, chunks), replacing the one before. Rank 0 writes."""
        if self.checkpoint and self.world.is_main:
            save_state(self.checkpoint, {"step": step, "state": state})

    def resume(self) -> tuple[int, dict[str, Any] | None]:
        """Return the number of steps that are done and the state after them, or (0, None); forget later log entries."""
        path, step, state = self.checkpoint, 0, None
        if path and path.exists():
            step, state = _under_way(path)
        if self.folder and self.world.is_main:
            _forget_metrics(self.folder / METRICS, self.name, step)
        self.world.barrier()
        return step, state

    def finish(self) -> None:
        """Remove the state under way: the stage's result is written."""
        if self.checkpoint and self.world.is_main:
            self.checkpoint.unlink(missing_ok=True)

    def log(self, step: int, **values: Any) -> None:
        """Append a line of metrics for `step`, counted from 1; NaN and infinity are kept as such."""
        if self.folder and self.world.is_main:
            with open_own(self.folder / METRICS, "a") as file:
                file.write(json.dumps({"stage": self.name, "step": step, **values}) + "\n")


def _under_way(path: Path) -> tuple[int, dict[str, Any]]:
    saved = load_state(path)
    if type(saved.get("step")) is not int or not isinstance(saved.get("state"), dict):
        raise InputError(damaged(path, "it has no step with its state"))
    return saved["step"], saved["state"]


def check_states(folder: Path) -> None:
    """Raise InputError if a state under way in a run folder is damaged: before earlier stages are computed anew."""
    for path in sorted((folder / "checkpoints").glob("*.state.safetensors")):
        _under_way(path)


def _forget_metrics(path: Path, stage: str, step: int) -> None:
    """Drop a stage's lines after `step`, and a line that was cut off in the middle."""
    if not path.exists():
        return
    rows = read_metrics(path)
    kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file; a last line that was cut off is left out.

    Raises:
        InputError: if it cannot be read, or a row is not of an epoch of a stage.
    """
    return read_rows(path, _is_metrics, "a stage, a step and, if any, accuracies that are numbers")


def _is_metrics(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("stage"), str) or type(row.get("step")) is not int:
        return False
    accuracies = [value for key, value in row.items() if key.startswith("validation_") and value is not None]
    return all(type(value) in (int, float) for value in accuracies)
