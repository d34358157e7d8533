"""`robust-nas run` and its stages, the help of another process, and the export."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robust_nas.cli import slow
from robust_nas.cli.arguments import (
    DATA,
    DATA_ROOT,
    EPSILON,
    MODELS,
    NORMALISE,
    OUT,
    OUTPUTS,
    OVERRIDES,
    RUN,
    given,
    parted,
)
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
    argument("--budget", action="store_true", help="before it starts, print how long each stage is expected to take"),
    examples=["robust-nas run digits", "robust-nas run digits train.epochs=5 seed=1"],
)
def run(
    recipe: str | None, overrides: Sequence[str], resume: Path | None, out: Path, data_root: Path | None, budget: bool
) -> None:
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
    finish(job, slow.pipeline.run_after_costs if budget else slow.pipeline.run)


@command(
    argument("place", metavar="RUN|STORAGE", help="a run folder, a scaling study, or the storage of a search's trials"),
    argument("--study", metavar="NAME", help="with a storage that has several searches: one's name"),
    DATA_ROOT,
    examples=[
        "robust-nas work runs/RUN",
        "robust-nas work journal:///shared/trials.log",
        "robust-nas work postgresql://user@host/base --study NAME",
    ],
)
def work(place: str, study: str | None, data_root: Path | None) -> None:
    """Measure trials of a search=sampled that runs elsewhere, with search.num_parallel above 1; or a study's cells."""
    if (Path(place) / "study.toml").is_file():
        if study is not None or data_root is not None:
            raise InputError(f"{place} is a scaling study, which has its cells and data; leave the options out.")
        with going_on(f"Go on with: robust-nas work {place}"):
            slow.scaling.measure(Path(place), progress())
        return
    with going_on("The trial under way is measured by another process."):
        slow.pipeline.work(place, progress(), study=study, data_root=data_root)


@command(RUN, examples=["robust-nas derive runs/RUN"])
def derive(run: Path) -> None:
    """Choose architectures by the search's probabilities."""
    finish(resumed(run), slow.pipeline.derive)


@command(
    argument(
        "model",
        metavar="MODEL",
        help="a run folder; or module:attribute, torchvision:NAME, both maybe @WEIGHTS; or a network's name, wrn-28-10",
    ),
    OVERRIDES,
    argument("--data", metavar="NAME", help="a data set with a recipe, which says how to train; or class folders"),
    DATA_ROOT,
    argument("--threat", metavar="NORM:EPSILON", help="such as linf:8/255 (the recipe's)"),
    NORMALISE,
    argument("--out", type=Path, metavar="FOLDER", help="folder for the run folder (runs)"),
    examples=[
        "robust-nas train runs/RUN",
        "robust-nas train my_net.py:Net --data digits --threat linf:0.1 train.epochs=5",
        "robust-nas train 'cifar-resnet-8 width=0.5' --data digits",
    ],
)
def train(model: str, overrides: Sequence[str], out: Path | None, **options: Any) -> None:
    """Train the chosen architectures of a run from scratch; or one network, in a run of its own."""
    chosen = given(options)
    if slow.run_folder.is_run(model) or (":" not in model and not chosen and slow.spaces.alone(model) is None):
        if chosen or out is not None:
            raise InputError(f"{model} is a run folder, which has its data and threat model; leave the options out.")
        finish(resumed(Path(model), overrides), slow.pipeline.train)
        return
    if "data" not in chosen:
        raise InputError(f"Say on which images '{model}' is trained: --data digits, or a folder of class folders.")
    recipe = slow.recipes.for_model(model, overrides, **chosen)
    finish(slow.pipeline.start(recipe, out or Path("runs"), progress(), sys.argv[1:]), slow.pipeline.train_given)


@command(
    MODELS,
    EPSILON,
    argument(
        "--method",
        metavar="NAME",
        help="kind of bound, such as crown or auto[memory=4] (the recipe's); or smoothing[sigma=0.25], for l2 "
        "certificates of the networks' smoothed classifiers",
    ),
    argument("--memory", type=float, metavar="GIB", help="memory that the bounds may take (2)"),
    argument("--images", type=int, help="test images to certify, the first ones (the recipe's)"),
    argument("--norm", choices=["linf", "l2", "l1"], help="of the balls, for models of one's own (linf)"),
    DATA,
    DATA_ROOT,
    NORMALISE,
    OUTPUTS,
    argument("--out", type=Path, metavar="FOLDER", help="folder for the certificates of one's own models (runs)"),
    examples=[
        "robust-nas certify runs/RUN --epsilon 0.03 --method auto",
        "robust-nas certify my_net.py:Net@weights.pt --data digits --epsilon 0.01 --images 50",
    ],
)
def certify(models: Sequence[str], out: Path | None, **options: Any) -> None:
    """Certify the trained models of a run by its recipe, or beside that by the options; or any models."""
    chosen = given(options)
    names, overrides = parted(models)
    own = len(names) == 1 and slow.run_folder.is_run(names[0])
    if own and not overrides and out is None and not {*chosen} - {"epsilons", "method", "memory", "images"}:
        _certify_run(Path(names[0]), chosen)
        return
    if not names:
        raise InputError("'robust-nas certify' takes a run folder or a model, such as package.module:attribute.")
    with going_on(SAME):
        settings = slow.certify_models.from_words(names, overrides, **chosen)
        folder = slow.certify_models.run(settings, out or Path("runs"), progress(), sys.argv[1:])
    _answer_certificates(folder)


def _certify_run(run: Path, chosen: dict[str, Any]) -> None:
    """Certify a run's models by its recipe, or by another plan beside it."""
    job = resumed(run)
    if not chosen:
        finish(job, slow.pipeline.certify)
        return
    plan = slow.plan.plan_with(job.recipe.certification, **chosen)
    with at_work(job, SAME):
        folder = slow.pipeline.certify_with(job, plan)
    _answer_certificates(run / folder)


def _answer_certificates(folder: Path) -> None:
    results = slow.results
    slow.answer.answer(lambda: results.of_certificates(folder), lambda: results.facts_of_certificates(folder))


@command(
    argument("run", type=Path, metavar="FOLDER", help="a run folder, or one of attacked models"),
    examples=["robust-nas report runs/RUN"],
)
def report(run: Path) -> None:
    """Write report.html from the results so far of a run, or of a folder of attacked models."""
    if (run / "attack.toml").is_file():
        page = slow.api.write_report(run)
        slow.answer.answer(str(page), {"report": page})
    else:
        finish(resumed(run), slow.pipeline.report)


@command(
    MODELS,
    EPSILON,
    argument("--images", type=int, help="test images, the first ones (those the recipe certifies)"),
    DATA,
    DATA_ROOT,
    NORMALISE,
    OUTPUTS,
    argument("--timeout", type=int, metavar="SECONDS", help="time limit of a verifier for an instance (300)"),
    argument("--python", action="store_true", help="a readable Python file of each network, and its weights, instead"),
    argument("--out", type=Path, metavar="FOLDER", help="folder to write (FOLDER/export, FOLDER/python)"),
    examples=["robust-nas export runs/RUN --epsilon 0.03 --images 20", "robust-nas export runs/RUN --python"],
)
def export(models: Sequence[str], out: Path | None, python: bool, **options: Any) -> None:
    """Write models for other tools: ONNX and VNN-LIB for verifiers, or, by --python, a run's as plain torch."""
    chosen, (names, overrides) = given(options), parted(models)
    if not names:
        raise InputError("'robust-nas export' takes a run folder or a model, such as package.module:attribute.")
    if python:
        _export_python(names, out, [*chosen, *overrides])
        return
    if out is None and not Path(names[0]).is_dir():
        raise InputError(f"Say where the export of '{names[0]}' is written: --out FOLDER.")
    folder = out or Path(names[0]) / "export"
    if slow.run_folder.is_run(names[0]) and not names[1:] and not {*chosen} - {"epsilons", "images", "timeout"}:
        job = resumed(Path(names[0]), overrides)
        with at_work(job, "Nothing was written."):
            written = slow.vnnlib.export_run(job, folder, **chosen)
    else:
        with going_on("Nothing was written."):
            written = slow.vnnlib.export_models(names, overrides, folder, progress=progress(), **chosen)
    slow.answer.answer(written, lambda: {"folder": folder, **slow.files.read_json(folder / "export.json")})


def _export_python(names: Sequence[str], out: Path | None, others: Sequence[str]) -> None:
    """Write the trained models of a run as Python modules."""
    if others:
        raise InputError(
            f"--{others[0].replace('epsilons', 'epsilon')} is for verifiers, and --python writes none of it."
        )
    run = Path(names[0])
    if names[1:] or not slow.run_folder.is_run(run):
        raise InputError(f"--python is for a run folder, whose networks a space wrote, but got {', '.join(names)}.")
    job = resumed(run)
    folder = out or run / "python"
    with at_work(job, "Nothing was written."):
        written = slow.python_module.export_run(job, folder)
    slow.answer.answer(
        written, lambda: {"folder": folder, "modules": sorted(path.name for path in folder.glob("*.py"))}
    )


@command(RUN, examples=["robust-nas record runs/RUN"])
def record(run: Path) -> None:
    """Add the trained networks to the table beside the run folder."""
    finish(resumed(run), slow.pipeline.record)
