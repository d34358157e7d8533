"""The command line: one verb per stage, no logic of its own.

Wrong input ends in one sentence and exit code 2. Set ROBUST_NAS_TRACEBACK=1 to see where it was found.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from robust_nas import __version__
from robust_nas.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="Search neural architectures that hold up under adversarial attack, measure and certify how robust they are.",
    epilog="Start with: robust-nas run digits",
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as train.epochs=3.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder for run folders.")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Where the data set's files are.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="robust-nas")
    except InputError as error:
        _fail(str(error), error)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space and resume the run" if full else "check the path, and whether it may be used"
        _fail(f"{place}{error.strerror}; {advice}.", error)


def _fail(message: str, error: BaseException) -> None:
    if os.environ.get("ROBUST_NAS_TRACEBACK"):
        raise error
    # Under torchrun a mistake may be one rank's alone; mistakes that all ranks find are said by each.
    rank = os.environ.get("RANK", "0")
    print(f"robust-nas: {'' if rank == '0' else f'rank {rank}: '}{' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"robust-nas {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def run(
    recipe: Annotated[str | None, typer.Argument(help="A recipe, a .toml file, or a folder of class folders.")] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with this run folder.")] = None,
    out: Out = Path("runs"),
    data_root: DataRoot = None,
) -> None:
    """Search, derive, train, attack, certify, ensemble, record and report."""
    if (recipe is None) == (resume is None) and "=" not in (recipe or ""):
        raise InputError(
            "'robust-nas run' takes a recipe, such as digits, or --resume RUN; 'robust-nas list recipes' lists them."
        )
    if resume is not None:
        # After --resume there is no recipe: what stands in its place is the first override.
        job = _resume(resume, [*([recipe] if recipe else []), *(overrides or [])])
    else:
        assert recipe is not None
        job = _start(recipe, overrides, out, data_root)
    _work(job, "run")


@app.command()
def search(
    recipe: Annotated[str, typer.Argument(help="A recipe or an unfinished run folder.")],
    overrides: Overrides = None,
    out: Out = Path("runs"),
    data_root: DataRoot = None,
) -> None:
    """Train the supernet and its distributions over architectures."""
    is_run = (Path(recipe) / "config.toml").is_file()
    _work(_resume(Path(recipe), overrides or []) if is_run else _start(recipe, overrides, out, data_root), "search")


@app.command()
def derive(run: RunFolder) -> None:
    """Choose architectures from what the search believes."""
    _work(_resume(run, []), "derive")


@app.command()
def train(run: RunFolder) -> None:
    """Train the chosen architectures from scratch."""
    _work(_resume(run, []), "train")


@app.command()
def attack(run: RunFolder) -> None:
    """Attack the trained models on the test images."""
    _work(_resume(run, []), "attack")


@app.command()
def certify(run: RunFolder) -> None:
    """Certify the trained models on the test images."""
    _work(_resume(run, []), "certify")


@app.command()
def ensemble(run: RunFolder) -> None:
    """Join the trained models; attack and certify the ensemble."""
    _work(_resume(run, []), "ensemble")


@app.command()
def report(run: RunFolder) -> None:
    """Write report.html from what the run has so far."""
    _work(_resume(run, []), "report")


@app.command()
def record(run: RunFolder) -> None:
    """Add the trained networks to the table beside the run folder."""
    _work(_resume(run, []), "record")


@app.command("list")
def list_(what: Annotated[str, typer.Argument(help="spaces, attacks, trainings, searches, ...")]) -> None:
    """List what there is of a kind."""
    from robust_nas import listing

    for name in listing.names(what):
        print(name)


@app.command()
def info(thing: Annotated[str, typer.Argument(help="An architecture, a run folder, or a component.")]) -> None:
    """Say what an architecture, a run folder or a component is."""
    from robust_nas import listing

    print(listing.describe(thing))


table = typer.Typer(no_args_is_help=True, help="Look into a table of robust accuracies.")
app.add_typer(table, name="table")

TablePath = Annotated[
    Path, typer.Option("--table", help="The table's folder; finished runs are recorded in runs/table.")
]
Filters = Annotated[
    list[str] | None, typer.Argument(metavar="[COLUMN=VALUE]...", help="Such as attack=pgd dataset=digits.")
]


@table.command()
def query(
    architecture: Annotated[
        str, typer.Argument(help="An architecture in the string or digits form; any equivalent one.")
    ],
    filters: Filters = None,
    path: TablePath = Path("runs/table"),
) -> None:
    """Print every accuracy that was measured of an architecture's class."""
    from robust_nas import listing

    print(listing.describe_rows(path, filters or [], architecture=architecture))


@table.command()
def top(
    filters: Filters = None,
    path: TablePath = Path("runs/table"),
    count: Annotated[int, typer.Option("-n", "--count", help="How many.")] = 10,
) -> None:
    """Print the most accurate networks under an attack (attack=pgd unless another is given)."""
    from robust_nas import listing

    chosen = filters or []
    if not any(text.startswith("attack=") for text in chosen):
        chosen = ["attack=pgd", *chosen]
    print(listing.describe_rows(path, chosen, count=count))


def _progress() -> Any:
    from robust_nas.progress import Progress

    return Progress(quiet=os.environ.get("RANK", "0") != "0")


def _start(recipe: str, overrides: list[str] | None, out: Path, data_root: Path | None) -> Any:
    from robust_nas import pipeline
    from robust_nas.recipe import load

    return pipeline.start(load(recipe, overrides or [], data_root=data_root), out, _progress(), sys.argv[1:])


def _resume(path: Path, overrides: list[str]) -> Any:
    from robust_nas import pipeline

    return pipeline.resume(path, overrides, _progress())


def _work(job: Any, function: str) -> None:
    """Call a function of the pipeline with a job, and say how to go on if it is interrupted."""
    from robust_nas import listing, pipeline

    job.say(f"run folder: {job.folder.path}")
    try:
        getattr(pipeline, function)(job)
    except KeyboardInterrupt:
        job.say(f"Stopped. Go on with: robust-nas run --resume {job.folder.path}")
        raise SystemExit(130) from None
    finally:
        job.folder.unlock()
        job.world.stop()
    job.say(listing.describe_run(job.folder.path))
