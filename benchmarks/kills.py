"""Jobs that are killed again and again, and end with what one that was left alone ends with, bit for bit.

    python benchmarks/kills.py --kills 200 --seed 0 [--out runs/kills] [--published FOLDER]

Five kinds of job, each in small: a complete run of digits, an attack on a run's networks, an ensemble of two runs, the
making of tables (import, merge, record), and simulated searches of a table. Each is done once undisturbed. Then it is
started again and again, and killed: by SIGKILL, SIGTERM or Ctrl-C, at a random time or at a random file operation
(before the n-th file that is opened for writing, renamed, removed or made). After some kills it is let go on to its
end, and its files are compared with those of the undisturbed one: all must be equal but `TIMES` and run folders' names.

A process is forked from one that has imported everything, which saves most of the time of a start; of one start in
eight, a new interpreter is killed instead. With the same `--out`, `--kills` and `--seed` it goes on where it ended.
`--published` names the folder with the files of NAS-RobBench-201, for the import; without, it is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMES = {"seconds", "started", "environment", "earlier"}
"""The facts of time in results, which no two runs have in common."""

RUN = re.compile(r"\d{8}-[A-Za-z]+-[0-9a-f]{6}")
"""A run folder's name, which is drawn anew for each."""

FINAL = {130: "Ctrl-C", 143: "SIGTERM"}
"""Exit codes of what was stopped and said so."""

SIGNALS = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT]

TINY = [
    "space.channels=2",
    "space.stages=1",
    "threads=1",
    "workers=1",
    "search.epochs=2",
    "search.batch_size=512",
    "derive.count=2",
    "derive.pool=3",
    "train.epochs=3",
    "train.batch_size=256",
    "train.method.attack.steps=1",
    "train.selection_attack.steps=1",
    "evaluation.attacks=['fgsm', {name='pgd', steps=3}]",
    "evaluation.strongest=[{name='square', queries=20}]",
    "evaluation.curve_epsilons=[0.05, 0.2]",
    "evaluation.num_images=100",
    "evaluation.batch_size=25",
    "evaluation.masking_images=8",
    "certification.epsilons=[0.00001, 0.01]",
    "certification.bound=interval",
    "certification.num_images=30",
    "certification.batch_size=10",
    "ensemble.num_images=30",
]


@dataclass(frozen=True)
class Kind:
    """A kind of job.

    Args:
        name: what the table calls it.
        share: of all kills.
        commands: given the job's folder, the commands that are still to be done, as words; none when it is done.
        place: given the folder, where in the job it is, in a word or two.
    """

    name: str
    share: float
    commands: Callable[[Path], list[list[str]]]
    place: Callable[[Path], str]


# --- the jobs ---------------------------------------------------------------------------------------------------------


def run_folder(folder: Path) -> Path | None:
    """Return the run folder in a job's folder, or None."""
    found = [path.parent for path in folder.glob("runs/*/config.toml")]
    return found[0] if found else None


def unfinished(folder: Path, first: list[str]) -> list[list[str]]:
    """Return the command that starts a run, or goes on with it, unless it is done."""
    from robust_nas.runtime.run_folder import unfinished_stages

    run = run_folder(folder)
    if run is None:
        return [first]
    return [["run", "--resume", str(run)]] if unfinished_stages(run) else []


def stage(folder: Path) -> str:
    """Return the stage that a run is in."""
    from robust_nas.runtime.run_folder import unfinished_stages

    run = run_folder(folder)
    return "before the run folder" if run is None else (unfinished_stages(run) or ["after the report"])[0]


def complete_run(folder: Path) -> list[list[str]]:
    """A run through all stages."""
    return unfinished(folder, ["run", "digits", *TINY, "--out", str(folder / "runs")])


def attack(made: Path) -> Callable[[Path], list[list[str]]]:
    """An attack on the networks of a run."""

    def commands(folder: Path) -> list[list[str]]:
        if list(folder.glob("runs/attack-*/report.html")):
            return []
        words = ["attack", str(made), "--images", "100", "--distances", "fab[steps=5,targets=2]"]
        words += ["--attack", "fgsm", "--attack", "pgd[steps=5]", "--attack", "square[queries=40]"]
        settings = ["evaluation.batch_size=20", "evaluation.masking_images=8", "threads=1", "workers=1"]
        return [[*words, *settings, "--out", str(folder / "runs")]]

    return commands


def ensemble(made: Path, other: Path) -> Callable[[Path], list[list[str]]]:
    """An ensemble of the networks of two runs."""
    words = ["ensemble", "build", "--from", str(made), str(other), "--images", "40"]
    return lambda folder: unfinished(folder, [*words, "--out", str(folder / "runs")])


NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
"""


def own_training(net: Path) -> Callable[[Path], list[list[str]]]:
    """The training of a model of one's own."""

    def commands(folder: Path) -> list[list[str]]:
        run = run_folder(folder)
        if run is None:
            words = ["train", f"{net}:Net", "--data", "digits", "train.epochs=20", "threads=1", "workers=1"]
            return [[*words, "--out", str(folder / "runs")]]
        return [] if (run / "train.json").exists() else [["train", str(run), "--allow-code"]]

    return commands


def own_certificates(net: Path) -> Callable[[Path], list[list[str]]]:
    """Certificates of a model of one's own."""

    def commands(folder: Path) -> list[list[str]]:
        if list(folder.glob("runs/certify-*/certification.json")):
            return []
        words = ["certify", f"{net}:Net", "--data", "digits", "--images", "300", "--method", "crown"]
        words += ["--epsilon", "0.001", "--epsilon", "0.01", "certification.batch_size=10", "threads=1", "workers=1"]
        return [[*words, "--out", str(folder / "runs")]]

    return commands


def table(made: Path, other: Path, published: Path | None) -> Callable[[Path], list[list[str]]]:
    """The import of a published table, the record of a run, and the merge of two tables."""

    def commands(folder: Path) -> list[list[str]]:
        left, copy = [], folder / "runs" / made.name
        if published is not None and not (folder / "home" / "tables" / "nas-robbench-201.parquet").exists():
            left.append(["table", "import", "--name", "nas-robbench-201", "--source", str(published)])
        if not copy.exists():
            half = folder / "copying"
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(made, half)
            (half / "record.json").unlink()
            copy.parent.mkdir(exist_ok=True)
            half.rename(copy)
        if not (copy / "record.json").exists():
            left.append(["record", str(copy)])
        sources, into = [copy.parent / "table", other.parent / "table"], folder / "merged"
        if {path.name for source in sources for path in source.glob("part-*")} - {path.name for path in into.glob("*")}:
            left.append(["table", "merge", *map(str, sources), "--into", str(into)])
        return left

    return commands


def simulated(made: Path) -> Callable[[Path], list[list[str]]]:
    """Simulated searches of a table of all cells of three nodes."""

    def commands(folder: Path) -> list[list[str]]:
        if list(folder.glob("runs/search-*/simulation.json")):
            return []
        words = ["search", "--on", f"table:{made}", "--objective", "pgd@8/255", "--dataset", "digits", "--budget", "12"]
        words += ["--sampler", "random", "--sampler", "evolution", "--sampler", "local", "--sampler", "predictor"]
        return [[*words, "--seeds", "40", "--out", str(folder / "runs")]]

    return commands


def small_table(folder: Path, space: Path) -> Path:
    """Write a made-up table of all cells of three nodes, and their space."""
    import pyarrow.parquet as pq

    from robust_nas.architectures.cell import Architecture
    from robust_nas.tables._schema import measured

    operations = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]
    folder.mkdir(parents=True)
    space.write_text(f'kind = "cell"\nnum_nodes = 3\noperations = {json.dumps(operations)}\n')
    about = {"space": str(space), "skeleton": "cells_per_stage=1,channels=4,stages=1", "dataset": "digits"}
    about |= {"split": "test", "recipe": "made-up", "version": "0", "hardware": "none", "source": "made-up"}
    about |= {"attack": "pgd", "norm": "linf", "epsilon": 8 / 255, "num_images": 100}
    cells = {cell.canonical: str(cell) for cell in Architecture.enumerate(3, operations)}
    accuracies = [random.Random(canonical).randint(0, 100) / 100 for canonical in cells]
    pq.write_table(measured(about, architecture=list(cells.values()), accuracy=accuracies), folder / "part-pgd.parquet")
    return folder


# --- processes --------------------------------------------------------------------------------------------------------


def in_fork(function: Callable[[], int], log: Path) -> int:
    """Return the id of a fork of this process that ends with what `function` returns."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(written, 1), os.dup2(written, 2)
        code = function()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def command(words: Sequence[str], number: int, number_of_signal: int, counted: Path | None = None) -> Callable[[], int]:
    """Return a command that sends itself a signal before its `number`-th file operation."""
    done = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate"):
            done += 1
            if done == number:
                os.kill(os.getpid(), number_of_signal)

    def work() -> int:
        from robust_nas import cli

        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["robust-nas", *words]
        sys.addaudithook(hook)
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            if counted is not None:
                counted.write_text(str(done))
        return 0

    return work


def ended(child: int, seconds: float | None = None) -> int | None:
    """Return a child's exit code, -n if signal n ended it; None if it has not ended after so many seconds."""
    limit = None if seconds is None else time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, 0 if limit is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if limit is not None and time.monotonic() > limit:
            return None
        time.sleep(0.002)


def do(words: list[str], folder: Path) -> int:
    """Do a command undisturbed, and return how many file operations that took."""
    count = folder / "count"
    code = ended(in_fork(command(words, -1, 0, count), folder / "log"))
    if code:
        raise SystemExit(f"{' '.join(words)} ended with {code}; see {folder / 'log'}")
    operations = int(count.read_text())
    count.unlink()
    return operations


# --- kills ------------------------------------------------------------------------------------------------------------


def kill(kind: Kind, folder: Path, draw: random.Random, life: tuple[float, int]) -> dict[str, Any] | None:
    """Start what is to be done next and kill it; return what happened, or None if it ended before.

    Args:
        life: the seconds and file operations of the undisturbed job.
    """
    seconds, operations = life
    (words, *_), number = kind.commands(folder), draw.choice(SIGNALS)
    how = draw.choice(["operation"] * 4 + ["time"] * 3 + ["new interpreter"])
    log = folder / "log"
    at = log.stat().st_size if log.exists() else 0
    if how == "operation":
        child = in_fork(command(words, draw.randint(1, max(2, operations // 3)), number), log)
        code = ended(child)
    else:
        if how == "time":
            child = in_fork(command(words, -1, 0), log)
            after = draw.uniform(0, seconds / 2)
        else:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            with log.open("ab") as file:
                started = subprocess.Popen(
                    [sys.executable, "-m", "robust_nas", *words],
                    stdout=file,
                    stderr=file,
                    env=environment,
                    start_new_session=True,
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                )
            child, after = started.pid, draw.uniform(0, 3)
        code = ended(child, after)
        if code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, number)
            code = ended(child)
            if how == "new interpreter":
                started.returncode = code  # it has been waited for
    if code == 0:
        return None
    said = log.read_bytes()[at:].decode(errors="replace")
    # Before our own code runs, Python answers.
    stopped = code in (-number, 128 + number) or (how == "new interpreter" and code in (1, -number))
    fault = "" if stopped else f"exit code {code}"
    if code > 0 and "Traceback" in said and how != "new interpreter":
        fault = "a traceback"
    return {
        "kind": kind.name,
        "signal": signal.Signals(number).name,
        "how": how,
        "at": kind.place(folder),
        "fault": fault,
    }


def disturbed(
    kind: Kind, folder: Path, draw: random.Random, kills: int, life: tuple[float, int]
) -> list[dict[str, Any]]:
    """Kill a job up to `kills` times, then let it end; return the kills."""
    found: list[dict[str, Any]] = []
    while len(found) < kills and kind.commands(folder):
        happened = kill(kind, folder, draw, life)
        if happened is not None:
            found.append(happened)
    while commands := kind.commands(folder):
        do(commands[0], folder)
    return found


# --- what is compared -------------------------------------------------------------------------------------------------


def without_times(value: Any, folder: Path) -> Any:
    """Return the contents of a result, without times and the names of run folders and of the job's own `folder`."""
    if isinstance(value, dict):
        return {key: without_times(item, folder) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [without_times(item, folder) for item in value]
    if isinstance(value, str):
        value = value.replace(f"{folder}-unfinished", "<folder>").replace(str(folder), "<folder>")
        return RUN.sub("<run>", value)
    return value


def said(path: Path, folder: Path) -> Any:
    """Return the contents of a file, in a form that is equal for equal results."""
    from robust_nas.runtime.states import load_state

    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()), folder)
    if path.suffix in (".jsonl", ".journal"):
        return [without_times(json.loads(line), folder) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows = pq.read_table(path).to_pylist()
        return sorted(json.dumps(without_times(row, folder), sort_keys=True, default=str) for row in rows)
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            ours = "skeleton" in (file.metadata() or {})
        return without_times(as_bytes(load_state(path)), folder) if ours else path.read_bytes().hex()
    if path.suffix == ".html":
        return path.read_text().rstrip().endswith("</html>")
    return without_times(path.read_bytes().decode("latin-1"), folder)


def as_bytes(value: Any) -> Any:
    """Return a nested value with tensors as their types, shapes and bytes."""
    if isinstance(value, dict):
        return {str(key): as_bytes(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_bytes(item) for item in value]
    if hasattr(value, "numpy"):
        return [str(value.dtype), list(value.shape), value.contiguous().numpy().tobytes().hex()]
    return value


def results(folder: Path) -> dict[str, Any]:
    """Return the contents of all files of a job, by their names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = RUN.sub("<run>", str(path.relative_to(folder)))
        # A part's name in a table ends in a digest of the run's name.
        name = re.sub(r"(part-.*)-[0-9a-f]{8}\.parquet", r"\1.parquet", name)
        if path.is_file() and path.name not in (".lock", "log", "environment.json"):
            found[name] = said(path, folder)
    return found


def differences(one: Path, other: Path) -> list[str]:
    """Return the names of the files in which two jobs differ."""
    first, second = results(one), results(other)
    return sorted({*first} ^ {*second}) + [name for name in first if name in second and first[name] != second[name]]


def compared(one: Path, other: Path, out: Path) -> list[str]:
    """Return `differences`, found by a fork: reading Parquet starts threads, which a later fork would lack."""
    answer = out / "differences.json"

    def work() -> int:
        answer.write_text(json.dumps(differences(one, other)))
        return 0

    if ended(in_fork(work, out / "log")):
        raise SystemExit(f"The comparison failed; see {out / 'log'}")
    return list(json.loads(answer.read_text()))


# --- all of it --------------------------------------------------------------------------------------------------------


def made_once(out: Path, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that is made whole or not at all."""
    path, half = out / name, out / f"{name}-unfinished"
    if not path.exists():
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        make(half)
        half.rename(path)
    return path


def kinds(out: Path, published: Path | None) -> list[Kind]:
    """Return the kinds of job; what they start from is made first."""

    def make_run(seed: int) -> Callable[[Path], None]:
        words = ["run", "digits", *TINY, f"seed={seed}", "derive.count=1", "derive.pool=1", "train.epochs=2"]
        return lambda folder: void(do([*words, "--out", str(folder / "runs")], folder))

    def make_table(folder: Path) -> None:
        void(
            ended(in_fork(lambda: 0 if small_table(folder / "table", out / "three-nodes.toml") else 1, folder / "log"))
        )

    first, second = (made_once(out, f"made-{seed}", make_run(seed)) for seed in (1, 2))
    one, other = run_folder(first), run_folder(second)
    assert one is not None and other is not None
    tiny = made_once(out, "made-table", make_table) / "table"
    net = out / "net.py"
    net.write_text(NET)
    found = [
        Kind("a complete run", 0.40, complete_run, stage),
        Kind("an attack on a run", 0.14, attack(one), lambda folder: "attack"),
        Kind("an ensemble of two runs", 0.14, ensemble(one, other), stage),
        Kind("training of a model of one's own", 0.08, own_training(net), stage),
        Kind("certificates of a model of one's own", 0.08, own_certificates(net), lambda folder: "certify"),
        Kind("tables: import, record, merge", 0.06, table(one, other, published), lambda folder: "table"),
        Kind("simulated searches", 0.10, simulated(tiny), lambda folder: "search"),
    ]
    return found


def void(_: Any) -> None:
    """Do nothing with a result."""


def main() -> None:
    """Kill, compare, and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    parser.add_argument("--published", type=Path, help="the folder with the files of NAS-RobBench-201")
    parser.add_argument("--only", default="", metavar="WORD", help="the kinds of job whose names have this in them")
    given = parser.parse_args()
    out = (given.out / f"seed-{given.seed}-kills-{given.kills}").resolve()
    os.environ.update(OMP_NUM_THREADS="1", ROBUST_NAS_HOME=str(out / "home"))
    import_everything()
    rows: list[dict[str, Any]] = []
    everything = kinds(out, given.published and given.published.resolve())
    for kind in [kind for kind in everything if given.only in kind.name]:
        quota, instance = round(given.kills * kind.share), 0
        whole, life = undisturbed(kind, out)
        while quota > 0:
            place = out / f"{kind.name.replace(' ', '-').replace(':', '')}-{instance}"
            record = place.with_suffix(".json")
            if not record.exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                draw = random.Random(f"{given.seed} {kind.name} {instance}")
                with home(place):
                    happened = disturbed(kind, place, draw, min(quota, draw.randint(3, 10)), life)
                odd = compared(whole, place, out)
                record.write_text(json.dumps({"kills": happened, "differences": odd}))
                print(f"{kind.name} {instance}: {len(happened)} kills, {odd or 'equal'}", flush=True)
            told = json.loads(record.read_text())
            if not told["kills"]:  # it ended before it could be killed
                told["kills"] = []
                life = (life[0] / 2, max(4, life[1] // 2))
            if not told["differences"]:
                shutil.rmtree(place, ignore_errors=True)
            rows += [{**row, "instance": instance, "equal": not told["differences"]} for row in told["kills"]]
            quota, instance = quota - len(told["kills"]), instance + 1
    text = as_table(rows)
    (out / "kills.md").write_text(text)
    print(text)


def import_everything() -> None:
    """Import what the jobs use, without starting a thread."""
    import optuna  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.special  # noqa: F401
    import torch
    import torch.utils.data

    from robust_nas.tables import transfer  # noqa: F401

    torch.set_num_threads(1)


@contextlib.contextmanager
def home(place: Path) -> Iterator[None]:
    """Let published tables be in a job's folder."""
    before = os.environ["ROBUST_NAS_HOME"]
    os.environ["ROBUST_NAS_HOME"] = str(place / "home")
    yield
    os.environ["ROBUST_NAS_HOME"] = before


def undisturbed(kind: Kind, out: Path) -> tuple[Path, tuple[float, int]]:
    """Return the folder of a job that was left alone, and its seconds and file operations."""

    def make(folder: Path) -> None:
        started, operations = time.monotonic(), 0
        with home(folder):
            while commands := kind.commands(folder):
                operations += do(commands[0], folder)
        folder.with_suffix(".life").write_text(json.dumps([time.monotonic() - started, operations]))

    name = f"whole-{kind.name.replace(' ', '-').replace(':', '')}"
    whole = made_once(out, name, make)
    seconds, operations = json.loads((out / f"{name}-unfinished.life").read_text())
    return whole, (seconds, operations)


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the kills by kind of job, and where they fell, as a table in Markdown."""
    lines = [
        "| kind of job | jobs | kills | by | where they fell | other answers | equal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == name]
        jobs = {row["instance"]: row["equal"] for row in own}
        by, places = (
            ", ".join(f"{count} {value}" for value, count in Counter(row[key] for row in own).most_common())
            for key in ("signal", "at")
        )
        faults = Counter(row["fault"] for row in own if row["fault"])
        odd = ", ".join(f"{count} {value}" for value, count in faults.items()) or "none"
        lines.append(
            f"| {name} | {len(jobs)} | {len(own)} | {by} | {places} | {odd} | {sum(jobs.values())} of {len(jobs)} |"
        )
    equal = {(row["kind"], row["instance"]): row["equal"] for row in rows}
    total = f"| all | {len(equal)} | {len(rows)} | | | | {sum(equal.values())} of {len(equal)} |"
    return "\n".join([*lines, total, ""])


if __name__ == "__main__":
    main()
