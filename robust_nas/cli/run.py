"""`robust-nas run` and its stages, the help of another process, and the export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robust_nas.cli import slow
from robust_nas.cli.arguments import DATA_ROOT, OUT, OVERRIDES, RUN, given
from robust_nas.cli.ending import SAME, going_on
from robust_nas.cli.job import at_work, begun, finish, progress, resumed
from robust_nas.core.commands import argument, command
from robust_nas.core.errors import InputError


@command(
    argument("recipe", nargs="?", metavar="RECIPE", help="a recipe, a .toml file, or a folder of class folders"),
    OVERRIDES,
    argument("--resume", type=Path, metavar="RUN", help="go on with this run folder"),
    OUT,
    DATA_ROOT,
)
def run(recipe: str | None, overrides: Sequence[str], resume: Path | None, out: Path, data_root: Path | None) -> None:
    """Search, derive, train, attack, certify, ensemble, record and report."""
    if (recipe is None) == (resume is None) and "=" not in (recipe or ""):
        raise InputError(
            "'robust-nas run' takes a recipe, such as digits, or --resume RUN; 'robust-nas list recipes' lists them."
        )
    if resume is not None:
        # After --resume there is no recipe: what stands in its place is the first override.
        job = resumed(resume, [*([recipe] if recipe else []), *overrides])
    else:
        job = begun(str(recipe), overrides, out, data_root)
    finish(job, slow.pipeline.run)


@command(RUN)
def work(run: Path) -> None:
    """Measure trials of a search=sampled that runs elsewhere, beside it; with search.num_parallel above 1."""
    with going_on("The trial under way is measured by another process."):
        slow.pipeline.work(run, progress())


@command(RUN)
def derive(run: Path) -> None:
    """Choose architectures by the search's probabilities."""
    finish(resumed(run), slow.pipeline.derive)


@command(RUN)
def train(run: Path) -> None:
    """Train the chosen architectures from scratch."""
    finish(resumed(run), slow.pipeline.train)


@command(
    RUN,
    argument(
        "--epsilon",
        dest="epsilons",
        action="append",
        metavar="EPSILON",
        help="radius, such as 0.1 or 2/255; repeatable (the recipe's)",
    ),
    argument(
        "--method",
        metavar="NAME",
        help="kind of bound, such as crown or auto[memory=4] (the recipe's); or smoothing[sigma=0.25], for l2 "
        "certificates of the networks' smoothed classifiers",
    ),
    argument("--memory", type=float, metavar="GIB", help="memory that the bounds may take (2)"),
    argument("--images", type=int, help="test images to certify, the first ones (the recipe's)"),
)
def certify(run: Path, **options: Any) -> None:
    """Certify the trained models on the test images, by the recipe, or beside that by the options."""
    job, chosen = resumed(run), given(options)
    if not chosen:
        finish(job, slow.pipeline.certify)
        return
    plan = slow.recipes.certification_from(job.recipe.certification, **chosen)
    with at_work(job, SAME):
        folder = slow.pipeline.certify_with(job, plan)
    job.say(slow.results.of_certificates(run / folder))


@command(argument("run", type=Path, metavar="FOLDER", help="a run folder, or one of attacked models"))
def report(run: Path) -> None:
    """Write report.html from the results so far of a run, or of a folder of attacked models."""
    if (run / "attack.toml").is_file():
        print(slow.api.write_report(run))
    else:
        finish(resumed(run), slow.pipeline.report)


@command(
    argument("run", type=Path, metavar="FOLDER", help="a run folder, or that of a saved ensemble"),
    argument(
        "--epsilon",
        dest="epsilons",
        action="append",
        metavar="EPSILON",
        help="radius, such as 0.03 or 2/255; repeatable (those the recipe certifies)",
    ),
    argument("--images", type=int, help="test images, the first ones (those the recipe certifies)"),
    argument("--data", metavar="NAME", help="for a saved ensemble: a data set or a folder of class folders"),
    argument("--timeout", type=int, metavar="SECONDS", help="time limit of a verifier for an instance (300)"),
    argument("--python", action="store_true", help="a readable Python file of each network, and its weights, instead"),
    argument("--out", type=Path, metavar="FOLDER", help="folder to write (FOLDER/export, FOLDER/python)"),
)
def export(run: Path, out: Path | None, data: str | None, python: bool, **options: Any) -> None:
    """Write the trained models for other tools: ONNX and VNN-LIB for verifiers, or, by --python, plain torch."""
    chosen = given(options)
    if python:
        _export_python(run, out or run / "python", [*chosen, *(["data"] if data else [])])
        return
    folder = out or run / "export"
    if slow.ensembles.is_saved(run):
        print(slow.vnnlib.export_ensemble(run, folder, data=data, progress=progress(), **chosen))
        return
    if data is not None:
        raise InputError(f"--data is for the folder of a saved ensemble; {run} has images of its own.")
    job = resumed(run)
    with at_work(job, "Nothing was written."):
        written = slow.vnnlib.export_run(job, folder, **chosen)
    job.say(written)


def _export_python(run: Path, folder: Path, others: Sequence[str]) -> None:
    """Write the trained models as Python modules."""
    if others:
        raise InputError(
            f"--{others[0].replace('epsilons', 'epsilon')} is for verifiers, and --python writes none of it."
        )
    if slow.ensembles.is_saved(run):
        raise InputError(f"--python is for run folders, but {run} is a saved ensemble; give the run of its networks.")
    job = resumed(run)
    with at_work(job, "Nothing was written."):
        written = slow.python_module.export_run(job, folder)
    job.say(written)


@command(RUN)
def record(run: Path) -> None:
    """Add the trained networks to the table beside the run folder."""
    finish(resumed(run), slow.pipeline.record)
