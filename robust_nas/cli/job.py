"""A run's job on the command line: started or resumed, worked at, and its results printed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robust_nas.cli import slow
from robust_nas.cli.ending import going_on
from robust_nas.runtime.progress import Progress

if TYPE_CHECKING:
    from robust_nas.pipeline import Job


def is_main() -> bool:
    """Whether this process, of those that torchrun started, is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def progress() -> Progress:
    """Return the display of progress, which is quiet on all processes but one."""
    return Progress(quiet=not is_main())


def begun(recipe: str, overrides: Sequence[str], out: Path, data_root: Path | None) -> Job:
    """Return the job of a recipe, in a new run folder."""
    start, chosen = slow.pipeline.start, slow.recipes.load(recipe, overrides, data_root=data_root)
    with slow.distributed.losses_said():
        return start(chosen, out, progress(), sys.argv[1:])


def resumed(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Return the job of a run folder."""
    resume = slow.pipeline.resume
    with slow.distributed.losses_said():
        return resume(path, list(overrides), progress())


@contextlib.contextmanager
def at_work(job: Job, again: str) -> Iterator[None]:
    """Print the job's folder, and how to go on if the work in the block is interrupted; close the job."""
    job.say(f"run folder: {job.folder.path}")
    try:
        with going_on(again, job.say):
            yield
    finally:
        job.close()


def finish(job: Job, stage: Callable[[Job], object]) -> None:
    """Do a stage, or the whole pipeline, and print the run's results."""
    with at_work(job, job.how_to_go_on):
        stage(job)
    path = job.folder.path
    # The job's space was named, or allowed; what other files of the folder name was not.
    slow.answer.answer(lambda: slow.results.of_run(path, job.recipe.space), lambda: slow.results.facts_of_run(path))
