"""`robust-nas ensemble`, of one run, and `robust-nas ensemble build`, of several."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robust_nas.cli import slow
from robust_nas.cli.arguments import DATA_ROOT, NORMALISE, OUT, OVERRIDES, given, parted
from robust_nas.cli.job import finish, progress, resumed
from robust_nas.core.commands import argument, command
from robust_nas.core.errors import InputError


@command(
    argument("run", type=Path, metavar="RUN", help="a run folder; or build: 'robust-nas ensemble build --help'"),
    OVERRIDES,
    examples=["robust-nas ensemble runs/RUN"],
)
def ensemble(run: Path, overrides: Sequence[str]) -> None:
    """Join the trained models of a run, attack and certify the ensemble; or build one from several runs."""
    finish(resumed(run, overrides), slow.pipeline.ensemble)


@ensemble.variant(
    "build",
    OVERRIDES,
    argument(
        "--from",
        dest="models",
        nargs="+",
        metavar="MODEL",
        help="runs whose trained models are joined; saved ensembles; models of one's own, module:attribute@WEIGHTS",
    ),
    argument("--epsilon", metavar="EPSILON", help="radius of weights, attacks, certificates (the first run's)"),
    argument("--members", type=int, help="members with a weight, at most (no limit)"),
    argument("--images", type=int, help="test images, and validation images to fit the weights on"),
    argument("--data", metavar="NAME", help="without a run: a data set with a recipe, or a folder of class folders"),
    DATA_ROOT,
    argument("--threat", metavar="NORM:EPSILON", help="without a run: such as linf:8/255 (the recipe's)"),
    NORMALISE,
    OUT,
    examples=["robust-nas ensemble build --from runs/A runs/B --epsilon 0.03 --members 5"],
)
def build(overrides: Sequence[str], models: Sequence[str] | None, out: Path, **options: Any) -> None:
    """Join trained models of runs, and of one's own, in a run of their own, attack and certify the ensemble."""
    if models is None:
        raise InputError(
            "An ensemble of several models is written 'robust-nas ensemble build --from RUN RUN ...', and that of one "
            "run 'robust-nas ensemble RUN'."
        )
    # A KEY=VALUE behind --from is no model.
    names, settings = parted(models)
    job = slow.merged_runs.build(names, [*overrides, *settings], out, progress(), sys.argv[1:], **given(options))
    # The new run's files name what was named here.
    with slow.registry.allowing_names(slow.merged_runs.names_of_code(names)):
        finish(job, slow.pipeline.run)
