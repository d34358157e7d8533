"""The command line: one verb per stage, no logic of its own.

Wrong input ends in one sentence and exit code 2. Work that is stopped says how to go on, and ends with 130 after
Ctrl-C, 143 after SIGTERM, and 75 if a part of it was lost: a worker that was killed, another process of torchrun, the
memory. Set ROBUST_NAS_TRACEBACK=1 to see where a mistake was found.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from robust_nas import __version__
from robust_nas.cli import table as table_cli
from robust_nas.core.commands import Commands, End, argument
from robust_nas.core.errors import InputError, Interrupted, Terminated, of_exit
from robust_nas.core.text import visible
from robust_nas.runtime.environment import unchanged_process

T = TypeVar("T")

app = Commands(
    "robust-nas",
    "Search neural architectures that hold up under adversarial attack, measure and certify how robust they are.",
    "Start with: robust-nas run digits",
)

OVERRIDES = argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, such as train.epochs=3")
OUT = argument("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="folder for run folders (runs)")
DATA_ROOT = argument("--data-root", type=Path, metavar="FOLDER", help="the folder of the data set's files")
_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)*=")
_SAME = "The same command goes on where it ended."
RUN = argument("run", type=Path, metavar="RUN", help="a run folder")
REPORTED = argument("run", type=Path, metavar="FOLDER", help="a run folder, or one of attacked models")


LOST = 75
"""Exit code of work of which a part was lost: EX_TEMPFAIL of sysexits.h, which says that another try may succeed."""


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        # Names that the terminal's encoding lacks are written with escapes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with unchanged_process():
        _hear_signals()
        try:
            _answer(sys.argv[1:])
        except KeyboardInterrupt as stop:  # while something else was said
            raise End(_code(stop)) from None


def _hear_signals() -> None:
    """Answer SIGTERM like Ctrl-C, and have it sent if the torchrun that started this process is lost."""
    if threading.current_thread() is not threading.main_thread():
        return
    own = os.getpid()

    def terminate(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # clusters and launchers send several
        if os.getpid() != own:
            os._exit(128 + number)  # a fork, which has nothing to say
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from robust_nas.runtime.distributed import end_with_parent

        end_with_parent(signal.SIGTERM)


def _code(stop: KeyboardInterrupt) -> int:
    """Return the exit code of stopped work: 128 and the number of the signal, as shells have it."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


@contextlib.contextmanager
def _going_on(again: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Say how to go on if the work in the block is stopped, or a part of it is lost."""
    from robust_nas.runtime.distributed import losses_said

    try:
        with losses_said():
            yield
    except KeyboardInterrupt as stop:
        (say or partial(print, file=sys.stderr))(f"Stopped. {again}")
        raise End(_code(stop)) from None
    except Interrupted as error:
        raise Interrupted(f"{error} {again}") from error


def _answer(words: Sequence[str]) -> None:
    """Run the command that the words name; a mistake in them ends in one sentence."""
    try:
        if words == ["--version"]:
            print(f"robust-nas {__version__}")
        else:
            app.run(words)
    except InputError as error:
        _fail(str(error), error)
    except End:
        raise
    except SystemExit as error:
        _fail(str(of_exit(error)), error)
    except KeyboardInterrupt as stop:
        # Runs and simulated searches say themselves how to go on.
        print("robust-nas: Stopped; nothing was half-written.", file=sys.stderr)
        raise End(_code(stop)) from None
    except BrokenPipeError:
        # Whoever read the output has seen enough (`| head`); Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space and resume the run" if full else "check the path, and whether it may be used"
        _fail(f"{place}{error.strerror}; {advice}.", error)


def _shortened(message: str) -> str:
    """Return a message on one line, without the middle of words of hundreds of letters."""
    return re.sub(r"\S{400,}", lambda word: f"{word[0][:100]}...{word[0][-20:]}", " ".join(message.split()))


def _fail(message: str, error: BaseException) -> None:
    if os.environ.get("ROBUST_NAS_TRACEBACK"):
        raise (RuntimeError(message) if isinstance(error, SystemExit) else error) from error.__cause__
    # Under torchrun a mistake may be one rank's alone; mistakes that all ranks find are said by each.
    rank = os.environ.get("RANK", "0")
    print(f"robust-nas: {'' if rank == '0' else f'rank {rank}: '}{visible(_shortened(message))}", file=sys.stderr)
    raise End(LOST if isinstance(error, Interrupted) else 2)


@app.command(
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
        job = _resume(resume, [*([recipe] if recipe else []), *overrides])
    else:
        assert recipe is not None
        job = _start(recipe, overrides, out, data_root)
    _work(job, "run")


@app.command(
    argument("recipe", nargs="?", metavar="RECIPE", help="a recipe, an unfinished run folder, or a search space"),
    OVERRIDES,
    OUT,
    DATA_ROOT,
    argument("--data", metavar="NAME", help="with a search space: a data set that has a recipe, or a folder"),
    argument(
        "--threat", metavar="NORM:EPSILON", help="with a search space: such as linf:8/255 (the data set's recipe's)"
    ),
    argument(
        "--relaxation",
        metavar="NAME",
        help="with a search space that has a supernet: dirichlet, softmax or gumbel (dirichlet)",
    ),
    argument(
        "--progressive",
        action="store_true",
        default=None,
        help="with a search space: leave out operations and widen partial channels at half-time",
    ),
    argument("--on", metavar="table:NAME", help="simulate searches of a table instead, by queries"),
    argument(
        "--objective",
        action="append",
        metavar="LABEL",
        help="with --on: a column such as pgd@8/255, or flops (few are good); repeatable",
    ),
    argument("--dataset", help="with --on: of the table; all of its data sets in turn, if not given"),
    argument("--sampler", action="append", metavar="NAME", help="with --on: repeatable; all that can, if not given"),
    argument("--budget", type=int, help="with --on: queries per search (50)"),
    argument("--seeds", type=int, help="with --on: searches per sampler (100)"),
    argument("--workers", type=int, help="with --on: processes side by side (1)"),
)
def search(
    recipe: str | None,
    overrides: Sequence[str],
    out: Path,
    data_root: Path | None,
    on: str | None,
    data: str | None,
    threat: str | None,
    relaxation: str | None,
    progressive: bool | None,
    **simulated: Any,
) -> None:
    """Train the supernet and its distributions over architectures; or simulate searches of a table."""
    of_space = {"threat": threat, "relaxation": relaxation, "progressive": progressive, "data": data}
    if data is None and any(of_space.values()):
        name = next(name for name, value in of_space.items() if value)
        raise InputError(f"--{name} belongs to the search of a space, with --data; in a recipe it is a KEY=VALUE.")
    if data is not None and (recipe is None or on is not None):
        raise InputError("--data goes with a search space: 'robust-nas search nasbench201 --data cifar10'.")
    if on is not None:
        if recipe is not None or data_root is not None:
            word = recipe or f"--data-root {data_root}"
            raise InputError(f"'search --on {on}' searches a table and takes no recipe or data, but got '{word}'.")
        _simulate(on, out, **{name: value for name, value in simulated.items() if value is not None})
        return
    for name, value in simulated.items():
        if value is not None and recipe is not None:
            raise InputError(f"--{name} belongs to the search of a table, with --on; leave it out for '{recipe}'.")
    if recipe is None:
        raise InputError("'robust-nas search' takes a recipe, such as digits, or --on table:NAME --objective LABEL.")
    if data is not None:
        from robust_nas import pipeline
        from robust_nas.recipes import for_space

        given: dict[str, Any] = {name: value for name, value in of_space.items() if value is not None}
        chosen = for_space(str(recipe), overrides, data_root=data_root, **given)
        _work(pipeline.start(chosen, out, _progress(), sys.argv[1:]), "search")
        return
    is_run = (Path(recipe) / "config.toml").is_file()
    _work(_resume(Path(recipe), overrides) if is_run else _start(recipe, overrides, out, data_root), "search")


def _simulate(
    on: str, out: Path, *, objective: Sequence[str] = (), dataset: str | None = None, budget: int = 50,
    seeds: int = 100, workers: int = 1, sampler: Sequence[str] = (),
) -> None:  # fmt: skip
    """Simulate searches of a table, on one of its data sets or on each, and print the results."""
    from robust_nas import tables
    from robust_nas.studies import simulation

    kind, _, name = on.partition(":")
    if kind != "table" or not name or not objective:
        raise InputError(
            "A search of a table is written --on table:NAME --objective LABEL, such as --on table:nas-robbench-201 "
            f"--objective pgd@8/255, but got --on {on} and {len(objective)} objectives."
        )
    table = tables.load(name)
    for chosen in table.datasets() if dataset is None else [dataset]:
        with _going_on(_SAME):
            found = simulation.run_in(
                out, table, objective, chosen, sampler, budget, seeds, workers=workers, progress=_progress()
            )
            print(found, end="\n\n")


@app.command(RUN)
def work(run: Path) -> None:
    """Measure trials of a search=sampled that runs elsewhere, beside it; with search.num_parallel above 1."""
    from robust_nas import pipeline

    with _going_on("The trial under way is measured by another process."):
        pipeline.work(run, _progress())


@app.command(RUN)
def derive(run: Path) -> None:
    """Choose architectures by the search's probabilities."""
    _work(_resume(run, []), "derive")


@app.command(RUN)
def train(run: Path) -> None:
    """Train the chosen architectures from scratch."""
    _work(_resume(run, []), "train")


@app.command(
    argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a run folder, weights in one, a saved ensemble, module:attribute, torchvision:NAME; the last two may end "
        "in @FILE.safetensors; or KEY=VALUE, such as evaluation.batch_size=100",
    ),
    argument(
        "--data",
        metavar="NAME",
        help="a data set or a folder of class folders, for its test images (that of the first run)",
    ),
    DATA_ROOT,
    argument(
        "--threat",
        action="append",
        type=str,
        metavar="NORM:EPSILON",
        help="such as linf:8/255 or l2:0.5; repeatable; that of the first run folder, if not given",
    ),
    argument(
        "--attack",
        action="append",
        metavar="NAME",
        help="such as apgd or pgd[steps=100]; repeatable (pgd and autoattack)",
    ),
    argument(
        "--epsilons", metavar="LIST", help="radii of the curve, such as 0,2/255,8/255 (multiples of the threat's)"
    ),
    argument("--distances", metavar="NAME", help="attack that looks for the nearest adversarial examples, such as fab"),
    argument("--images", type=int, help="test images to attack, the first ones (all)"),
    argument("--normalise", metavar="NAME", help="the pixels that the model expects: imagenet, cifar10, ..., MEAN/STD"),
    argument("--outputs", choices=["logits", "probabilities"], help="the kind of the model's outputs (logits)"),
    argument("--budget", action="store_true", help="before it starts, print the expected cost"),
    OUT,
)
def attack(models: Sequence[str], budget: bool, out: Path, **options: Any) -> None:
    """Attack the trained models of a run by its recipe, or any models by the options."""
    given = {name: value for name, value in options.items() if value is not None}
    if len(models) == 1 and not given and (Path(models[0]) / "config.toml").is_file():
        _work(_resume(Path(models[0]), []), "attack_after_costs" if budget else "attack")
        return
    _attack_models(models, given, budget, out)


def _attack_models(words: Sequence[str], given: dict[str, Any], budget: bool, out: Path) -> None:
    """Attack models in a folder of their own, and print the results."""
    overrides = [word for word in words if _OVERRIDE.match(word)]
    models = [word for word in words if word not in overrides]
    if not models:
        raise InputError("'robust-nas attack' takes a run folder or a model, such as package.module:attribute.")
    with _going_on(_SAME):
        from robust_nas.cli import listing
        from robust_nas.jobs import attack_models as assessment

        chosen = assessment.from_words(models, overrides, **given)
        folder = assessment.run(chosen, out, _progress(), sys.argv[1:], budget=budget)
    if os.environ.get("RANK", "0") == "0":
        print(visible(listing.describe(str(folder))))


@app.command(
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
    given = {name: value for name, value in options.items() if value is not None}
    job = _resume(run, [])
    if not given:
        _work(job, "certify")
        return
    from robust_nas import recipes as recipe
    from robust_nas.cli import listing

    plan = recipe.certification_from(job.recipe.certification, **given)
    folder = _finish(job, lambda pipeline: pipeline.certify_with(job, plan))
    job.say(listing.describe_certified(run / folder))


@app.command(
    argument("run", metavar="RUN", help="a run folder; or build, with --from"),
    OVERRIDES,
    argument(
        "--from",
        dest="runs",
        nargs="+",
        metavar="RUN",
        help="with build: runs whose trained models are joined",
    ),
    argument(
        "--epsilon", metavar="EPSILON", help="with build: radius of weights, attacks, certificates (the first run's)"
    ),
    argument("--members", type=int, help="with build: members with a weight, at most (no limit)"),
    argument("--images", type=int, help="with build: test images, and validation images to fit the weights on"),
    argument("--out", type=Path, metavar="FOLDER", help="with build: folder for run folders (runs)"),
)
def ensemble(run: str, overrides: Sequence[str], runs: Sequence[str] | None, **options: Any) -> None:
    """Join the trained models of a run, attack and certify the ensemble; or build one from several runs."""
    given = {name: value for name, value in options.items() if value is not None}
    if (run == "build") != (runs is not None):
        raise InputError(
            "An ensemble of several runs is written 'robust-nas ensemble build --from RUN RUN ...', and that of one "
            "run 'robust-nas ensemble RUN'."
        )
    if runs is None:
        if given:
            raise InputError(f"--{next(iter(given))} belongs to 'ensemble build'; {run} has its recipe's settings.")
        _work(_resume(Path(run), overrides), "ensemble")
        return
    from robust_nas.jobs import merged_runs as joining

    # A KEY=VALUE behind --from is no run.
    settings = [*overrides, *(word for word in runs if _OVERRIDE.match(word))]
    paths, out = [Path(word) for word in runs if not _OVERRIDE.match(word)], given.pop("out", Path("runs"))
    _work(joining.build(paths, settings, out, _progress(), sys.argv[1:], **given), "run")


@app.command(REPORTED)
def report(run: Path) -> None:
    """Write report.html from the results so far of a run, or of a folder of attacked models."""
    if (run / "attack.toml").is_file():
        from robust_nas import api

        print(api.write_report(run))
        return
    _work(_resume(run, []), "report")


@app.command(
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
    argument("--out", type=Path, metavar="FOLDER", help="folder to write (FOLDER/export)"),
)
def export(run: Path, out: Path | None, data: str | None, **options: Any) -> None:
    """Write the trained models as ONNX and the balls around images as VNN-LIB, for other people's verifiers."""
    from robust_nas.ensembles import is_saved

    given = {name: value for name, value in options.items() if value is not None}
    folder = out or run / "export"
    if is_saved(run):
        from robust_nas.integrations import vnnlib

        print(vnnlib.export_ensemble(run, folder, data=data, progress=_progress(), **given))
        return
    if data is not None:
        raise InputError(f"--data is for the folder of a saved ensemble; {run} has images of its own.")
    job = _resume(run, [])
    from robust_nas.integrations import vnnlib

    job.say(_finish(job, lambda _: vnnlib.export_run(job, folder, **given), "Nothing was written."))


@app.command(RUN)
def record(run: Path) -> None:
    """Add the trained networks to the table beside the run folder."""
    _work(_resume(run, []), "record")


@app.command(argument("what", metavar="KIND", help="spaces, attacks, trainings, searches, tables, ..."), name="list")
def list_(what: str) -> None:
    """List the components of a kind."""
    from robust_nas.cli import listing

    for name in listing.names(what):
        print(name)


@app.command(argument("thing", metavar="THING", help="an architecture, a run folder, a component or a table"))
def info(thing: str) -> None:
    """Describe an architecture, a run folder, a component or a table."""
    from robust_nas.cli import listing

    print(visible(listing.describe(thing)))


proxies = Commands("robust-nas proxies", "Score untrained networks; 'robust-nas list proxies' lists the scores.")


@proxies.command(
    argument("table", metavar="TABLE", help="a published table, such as nas-robbench-201, or a folder: runs/table"),
    argument(
        "words",
        nargs="*",
        default=(),
        metavar="LABEL|COLUMN=VALUE|KEY=VALUE",
        help="columns, such as pgd@8/255 dataset=cifar10 (all); sizes of the networks, such as space.channels=8",
    ),
    argument("--data", metavar="NAME", help="a data set or a folder of class folders, for its training images"),
    DATA_ROOT,
    argument("--threat", metavar="NORM:EPSILON", help="for scores that attack (linf:8/255)"),
    argument("--proxy", action="append", metavar="NAME", help="such as robust_ntk[b=1.0]; repeatable (all)"),
    argument("--architectures", type=int, metavar="N", help="random classes of the table (300)"),
    argument("--seeds", type=int, help="initialisations and batches (3)"),
    argument("--batch-size", type=int, metavar="N", help="images that a score sees (32)"),
    OUT,
)
def rank(table: str, words: Sequence[str], out: Path, architectures: int | None, **options: Any) -> None:
    """Score random architectures of a table, and print how well the scores rank them."""
    from robust_nas import tables
    from robust_nas.studies import ranking
    from robust_nas.tables import answers

    opened = tables.load(table)
    overrides = [word for word in words if "." in word.partition("=")[0] and "=" in word]
    criteria, labels = answers.parse([word for word in words if word not in overrides], labels=1)
    columns = opened.select(*labels, **criteria)
    given = {"num_architectures": architectures, **options}
    given = {name: value for name, value in given.items() if value is not None}
    with _going_on(_SAME):
        scoring = ranking.from_words(opened, columns, overrides, **given)
        print(ranking.text(ranking.run(opened, columns, scoring, out, _progress())))


app.add("table", table_cli.app)
app.add("proxies", proxies)


def _progress() -> Any:
    from robust_nas.runtime.progress import Progress

    return Progress(quiet=os.environ.get("RANK", "0") != "0")


def _start(recipe: str, overrides: Sequence[str], out: Path, data_root: Path | None) -> Any:
    from robust_nas import pipeline
    from robust_nas.recipes import load

    return pipeline.start(load(recipe, overrides, data_root=data_root), out, _progress(), sys.argv[1:])


def _resume(path: Path, overrides: Sequence[str]) -> Any:
    from robust_nas import pipeline

    return pipeline.resume(path, list(overrides), _progress())


def _work(job: Any, function: str) -> None:
    """Call a function of the pipeline with a job, and print the run's results."""
    from robust_nas import pipeline
    from robust_nas.cli import listing

    again = f"Go on with: {pipeline.launch(job.world.size)} run --resume {job.folder.path}"
    _finish(job, lambda pipeline: getattr(pipeline, function)(job), again)
    job.say(listing.describe_run(job.folder.path))


def _finish(job: Any, work: Callable[[Any], T], again: str = _SAME) -> T:
    """Return the result of `work` for the module `pipeline`; say how to go on if it is interrupted."""
    from robust_nas import pipeline

    job.say(f"run folder: {job.folder.path}")
    try:
        with _going_on(again, job.say):
            return work(pipeline)
    finally:
        job.folder.unlock()
        job.world.stop()
