# ruff: noqa: E501, RUF001 (the bad inputs are tables, a line each, some in other scripts)
"""Bad inputs, one by one: is each refused in one sentence, soon, with nothing half-written?

    python benchmarks/bad_inputs.py run --out bad_inputs.json [--kind "command line" ...] [--only WORD] [--sample 40]
    python benchmarks/bad_inputs.py table bad_inputs.json [--before earlier.json]

`run` makes a small run, an attack folder, an ensemble, a table and a folder of images, and gives every input to a copy of
them in a process of its own. An input holds if the command ends with 2 and says one sentence (a Python call: raises
InputError), in time, without a traceback, and leaves every file as it was. To measure another checkout, put it first on
PYTHONPATH. `--sample` draws at most so many inputs of each kind, the same ones each time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS, PATIENCE, GIB = 12, 120, 10
"""The limits of an input: processor time, time, and address space, of which torch itself has a part."""

ALLOWED = re.compile(r"(^|/)(\.lock|environment\.json)$|__pycache__")
"""Files that a command may touch before it refuses: its lock, and the record of who looked at a run."""

TINY = [
    *("space.channels=2", "space.stages=1", "search.epochs=2", "search.batch_size=512", "derive.count=2"),
    *("derive.pool=3", "train.epochs=2", "train.batch_size=256", "train.method.attack.steps=1", "workers=1"),
    *("train.selection_attack=fgsm", "evaluation.attacks=['fgsm']", "evaluation.strongest=['pgd']"),
    *("evaluation.curve_epsilons=[0.05]", "evaluation.num_images=20", "evaluation.masking_images=8"),
    *("certification.num_images=4", "certification.epsilons=[0.00001, 0.01]", "certification.bound=interval"),
]
ATTACK = ["attack", "net.py:Net", "--data", "digits", "--threat", "linf:0.1", "--attack", "fgsm", "--images", "10"]
NET = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
def two_logits():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
def other_images():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
def needs(argument):
    return Net()
def raises():
    raise RuntimeError("no weights here")
def returns_text():
    return "a network"
def image_out():
    return nn.Conv2d(1, 3, 3)
number = 3
"""


@dataclass(frozen=True)
class Case:
    """One bad input.

    Args:
        kind: what it is a mistake in.
        name: what is wrong.
        words: the command's words; or Python code, as a text.
        change: what makes the files around it bad, in a folder that has the good ones.
        may_work: whether an answer is right as well as a refusal.
    """

    kind: str
    name: str
    words: list[str] | str
    change: Callable[[Path], object] = lambda _: None
    may_work: bool = False


# The good files -------------------------------------------------------------------------------------------------------


def command(words: list[str]) -> int:
    """Run robust-nas in this process and return its exit code."""
    from robust_nas import cli

    sys.argv = ["robust-nas", *words]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0) if isinstance(end.code, int | None) else 1
    return 0


def catalogued(catalogue: str, name: str) -> Path:
    """A file of a catalogue, in this checkout or in one that has it at the top of the package."""
    try:
        from robust_nas.core.catalogue import files
    except ImportError:
        files = importlib.import_module("robust_nas.catalogue").files
    return files(catalogue)[name]


def prepare(base: Path) -> None:
    """Make the good files: RUN, attacked, ensemble, runs/table, images, net.py, weights, a space, a recipe, a card."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    with contextlib.chdir(base), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Path("net.py").write_text(NET)
        assert command(["run", "digits", *TINY]) == 0
        (run,) = Path("runs").glob("*-digits-*")
        run.rename("RUN")
        smooth = "smoothing[sigma=0.25,num_samples=20,num_selection_samples=4]"
        if command(["certify", "RUN", "--method", smooth, "--images", "4", "--epsilon", "0.25"]):
            assert command(["certify", "RUN", "--method", "smoothing[sigma=0.25,num_samples=20]", "--images", "4"]) == 0
        shutil.copytree("RUN/ensemble", "ensemble")
        started = ["search", "digits", *TINY, "search.epochs=1", "--out", "begun"]
        assert command(started) == 0
        (run,) = Path("begun").glob("*-digits-*")
        run.rename("BEGUN")
        assert command([*ATTACK, "--out", "out"]) == 0
        (attacked,) = Path("out").glob("attack-*")
        attacked.rename("attacked")
        for split in ("train", "validation", "test"):
            for place, name in enumerate(("cat", "dog")):
                folder = Path("images", split, name)
                folder.mkdir(parents=True)
                for number in range(6):
                    pixels = np.random.default_rng([place, number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.png")
        state = {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}
        save_file(state, "net.safetensors")
        torch.save(state, "net.pt")
        shutil.copy(catalogued("search_spaces", "nasbench201"), "space.toml")
        shutil.copy(catalogued("recipes", "digits"), "recipe.toml")
        shutil.copy(catalogued("tables", "nas-robbench-201"), "card.toml")
        for left in ("out", "begun"):
            shutil.rmtree(left)


# Ways to spoil them ---------------------------------------------------------------------------------------------------


def put(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Replace a file's content."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def edit(name: str, change: Callable[[Any], object]) -> Callable[[Path], object]:
    """Change what a JSON file says."""

    def apply(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return apply


def swap(name: str, old: str, new: str) -> Callable[[Path], object]:
    """Replace some text of a file; it must be there."""

    def apply(folder: Path) -> None:
        text = (folder / name).read_text()
        assert re.search(old, text), (name, old)
        (folder / name).write_text(re.sub(old, lambda _: new, text, count=1))

    return apply


def cut(name: str, share: float = 0.5) -> Callable[[Path], object]:
    """Cut a file off."""
    return lambda folder: (folder / name).write_bytes((data := (folder / name).read_bytes())[: int(len(data) * share)])


def flip(name: str) -> Callable[[Path], object]:
    """Change a byte at the end of a file."""

    def apply(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-5] ^= 0xFF
        (folder / name).write_bytes(data)

    return apply


def as_folder(name: str) -> Callable[[Path], object]:
    """Put a folder where a file should be."""

    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return apply


def as_loop(name: str) -> Callable[[Path], object]:
    """Put a link to itself where a file should be."""

    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to((folder / name).name)

    return apply


def without(name: str) -> Callable[[Path], object]:
    """Remove a file or a folder."""

    def apply(folder: Path) -> None:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return apply


def renamed(name: str, new: bytes) -> Callable[[Path], object]:
    """Give a file or a folder another name, which may be no text."""
    return lambda folder: os.rename(os.fsencode(folder / name), os.fsencode(folder) + b"/" + new)


def each(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    """Do several changes."""
    return lambda folder: [change(folder) for change in changes]


def part(change: Callable[[Any], Any], metadata: dict[str, str] | None = None) -> Callable[[Path], object]:
    """Change the rows, a pyarrow table, of a part of runs/table; its version is kept, unless other metadata are given."""

    def apply(folder: Path) -> None:
        import pyarrow.parquet as pq

        path = min((folder / "runs" / "table").glob("part-*"))
        table = pq.read_table(path)
        pq.write_table(change(table).replace_schema_metadata(metadata or table.schema.metadata), path)

    return apply


def column(name: str, values: Callable[[list[Any]], list[Any]], kind: str | None = None) -> Callable[[Path], object]:
    """Change a column of a part of runs/table, and its type."""

    def change(table: Any) -> Any:
        import pyarrow as pa

        place = table.schema.get_field_index(name)
        array = pa.array(values(table[name].to_pylist()), type=getattr(pa, kind)() if kind else None)
        return table.set_column(place, name, array)

    return part(change)


def outcomes(name: str) -> Callable[[Path], object]:
    """Replace a Parquet file by one of other columns."""

    def apply(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"a": [1, 2]}), folder / name)

    return apply


def weights(name: str, **tensors: tuple[int, ...]) -> Callable[[Path], object]:
    """Write a safetensors file with tensors of other shapes."""

    def apply(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        state = {key.replace("_", ".", 1): torch.zeros(shape) for key, shape in tensors.items()}
        save_file(state, folder / name)

    return apply


# The bad inputs -------------------------------------------------------------------------------------------------------

DIGITS = "9" * 400
DEEP = "[" * 3000 + "]" * 3000


def recipes() -> Iterator[Case]:
    """Recipes and overrides."""
    for override in (
        *("train.epochs=three", "train.epochs=-1", "train.epochs=0", "train.epochs=1.5", "train.epochs=true"),
        *("train.epochs=nan", f"train.epochs={DIGITS}", "train.epochs=1e400", "train.epochs=[3]", "train.epochs="),
        *("train.learning_rate=inf", "train.learning_rate=nan", "train.learning_rate=-0.1", "train.learning_rate=''"),
        *("train.learning_rate=1e400", "train.learning_rate=true", f"train.learning_rate={DIGITS}"),
        *("train.batch_size=0", "train.batch_size=1_000_000_000", "train.weight_decay=-1", "train.weight_decay=inf"),
        *("train=3", "train.method=3", "train.method={}", "train.method={name=3}", "train.method.name=''"),
        *("train.method.attack.steps=-1", "train.method.attack.step_size=nan", "train.label_smoothing=2"),
        *("threat.epsilon=0", "threat.epsilon=-0.1", "threat.epsilon=nan", "threat.epsilon=inf", "threat.epsilon=8/0"),
        *("threat.epsilon=8//255", "threat.epsilon=true", "threat.epsilon=[0.1]", "threat.norm=l3", "threat=linf:0.1"),
        *(f"threat.epsilon={DIGITS}", f"threat.epsilon={DIGITS}/255", f"threat.epsilon=1/{DIGITS}", "threat.epsilon=٣"),
        *("space.channels=0", "space.channels=-8", "space.channels=1000000", f"space.channels={DIGITS}"),
        *("space.num_nodes=1", "space.num_nodes=40", "space.num_nodes=100000", "space.stages=30", "space.stages=0"),
        *("space.cells_per_stage=100000000", "space.operations=[]", "space.operations=['none', 'none']"),
        *("space.operations=[1, 2]", "space.operations='none'", "space=3", "space=[]", "space.kind=cellular"),
        *("search.name=", "search.name=3", "search.epochs=0", "search.batch_size=-3"),
        *("search.learning_rate=-inf", "search.kept_operations=[0, 0]", "search.kept_operations=[9, 9]"),
        *("search.partial_channels=[3, 1]", "search.partial_channels=[0, 0]"),
        *("derive.count=0", "derive.count=1000000", "derive.pool=-1", "derive.method=guess", "derive.diversity=nan"),
        *("evaluation.attacks=pgd", "evaluation.attacks=[]", "evaluation.attacks=[3]", "evaluation.attacks=['pgd','pgd']"),
        *("evaluation.curve_epsilons=[nan]", "evaluation.curve_epsilons=[-1]", "evaluation.num_images=0"),
        *("evaluation.batch_size=0", "evaluation.batch_size=1.0", "evaluation.num_images=true"),
        *("certification.epsilons=[]", "certification.epsilons=[0]", "certification.epsilons=[nan]"),
        *("certification.bound=guess", "certification.num_images=-1", "certification.bound={name='auto',memory=-1}"),
        *("ensemble.rule=guess", "ensemble.epsilon=nan", "ensemble.epsilon=-1", "ensemble.num_images=0"),
        *("seed=x", f"seed={DIGITS}", "seed=1.5", "seed=true", "workers=0", "workers=-3", "threads=0"),
        *("threads=-1", "workers=1000000000000", "device=gpu", "device=cuda:99", "version=3", "version='2'", "version=true"),
        *("name=''", "name=a/b", "name=..", "name='a\\nb'", f"name={'x' * 300}", "name=3", "name=\"a\\u0000b\""),
        *("data=digitss", "data={}", "data.size=0", "data.validation_size=-1", "data.validation_size=100000", "=3", "train"),
        *("train.epochs.x=3", "a=b", "..=3", "train..epochs=3", f"x{'.x' * 2000}=1", f"train.knots={DEEP}"),
        *("train.knots=[{epoch=0}]", "train.knots=[1]", "train.method={name='pgd_at', name='trades'}"),
    ):  # fmt: skip
        yield Case("recipes and overrides", override[:60], ["run", "digits", "train.epochs=1", override])
    good = catalogued("recipes", "digits").read_text()
    for name, text in {
        "empty": "",
        "not TOML": "{ a: 1 }",
        "no sections": "version = 2\n",
        "a section that is a number": re.sub(r"(?m)^data = .*$", "data = 3", good)
        if "\ndata =" in good
        else "data = 3",
        "a key given twice": good + "\n[train]\n[train]\n",
        "an unknown section": good + "\n[trian]\nepochs = 3\n",
        "nested thousands deep": f"version = 2\nx = {DEEP}\n",
        "dotted thousands deep": f"x{'.x' * 5000} = 1\n",
        "an integer of 400 digits": f"seed = {DIGITS}\n" + good,
        "an integer of 5,000 digits": f"seed = {'9' * 5000}\n" + good,
        "a UTF-16 file": good.encode("utf-16"),
        "a latin-1 file": (good + "\n# caf\xe9\n").encode("latin-1"),
        "binary": bytes(range(256)),
        "null bytes": b"\0" * 100,
        "an unknown version": good.replace("version = 2", "version = 99"),
    }.items():
        yield Case("recipes and overrides", f"a recipe: {name}", ["run", "recipe.toml"], put("recipe.toml", text))
    bom = b"\xef\xbb\xbf" + good.encode()
    yield Case(
        "recipes and overrides", "a recipe: with a BOM", ["run", "recipe.toml", "seed=x"], put("recipe.toml", bom)
    )
    yield Case("recipes and overrides", "a recipe: a folder", ["run", "recipe.toml"], as_folder("recipe.toml"))
    yield Case("recipes and overrides", "a recipe: a link to itself", ["run", "recipe.toml"], as_loop("recipe.toml"))
    yield Case("recipes and overrides", "a recipe: a missing file", ["run", "other.toml"])
    name = b"rec\xffipe.toml"
    yield Case("recipes and overrides", "a recipe: a name that is no text, bad", ["run", os.fsdecode(name), "seed=x"],
               renamed("recipe.toml", name))  # fmt: skip


def words() -> Iterator[Case]:
    """Command-line arguments of every verb."""
    cut_off = os.fsdecode(b"no\xffsuch")
    for line in (
        ["run"], ["run", ""], ["run", "--resume"], ["run", "--resume", ""], ["run", "--resume", "net.py"],
        ["run", "--resume", "images"], ["run", "--resume", "attacked"], ["run", "--resume", "ensemble"],
        ["run", "RUN"], ["run", "--resume", "RUN", "seed=5"], ["run", "--resume", "RUN", "train.epochs=9"],
        ["run", "net.py"], ["run", "/dev/null"], ["run", cut_off], ["run", "x" * 5000], ["run", "digits", "--out", "net.py"],
        ["run", "digits", "--out", "/proc/x"], ["run", "digits", "--data-root", "net.py", "data=mnist"],
        ["run", "digits", "--out", "/dev/full"], ["run", "a\nb"], ["run", "digits", "digits"], ["run", "../images-not-there"],
        ["search", "nasbench201"], ["search", "nasbench201", "--data", "nothing"],
        ["search", "nasbench201", "--data", "../imgs"], ["search", "nasbench201", "--data", "digits", "--threat", "linf"],
        ["search", "nasbench201", "--data", "digits", "--threat", "linf:"], ["search", "darts-8", "--data", "digits"],
        ["search", "nasbench201", "--data", "digits", "--threat", "linf:-1"], ["search", "nasbench201", "--data", ""],
        ["search", "nasbench201", "--data", "digits", "--relaxation", "hard"], ["search", "RUN", "--data", "digits"],
        ["search", "nasbench201", "--data", "digits", "--threat", f"linf:{DIGITS}"], ["search", "digits", "search=.x"],
        ["search", "--on", "table:runs/table"], ["search", "--on", "table:runs/table", "--objective", "pgd"],
        ["search", "--on", "runs/table", "--objective", "clean"], ["search", "--on", "", "--objective", "clean"],
        ["search", "--on", "table:runs/table", "--objective", "clean", "--budget", "-1"],
        ["search", "--on", "table:runs/table", "--objective", "clean", "--seeds", "0"],
        ["search", "--on", "table:runs/table", "--objective", "clean", "--sampler", "../x"],
        ["search", "--on", "table:runs/table", "--objective", "clean", "--budget", DIGITS],
        ["work"], ["work", "RUN"], ["work", "net.py"], ["derive", "images"], ["train", "attacked"], ["train", ""],
        ["attack"], ["attack", "RUN", "--threat", "linf:0.1", "--threat", "linf:0.1"], ["attack", "--data", "digits"],
        ["attack", "RUN", "--threat", "linf:nan"], ["attack", "RUN", "--threat", "linf:inf"],
        ["attack", "RUN", "--attack", "pgd["], ["attack", "RUN", "--attack", "pgd[steps=x]"],
        ["attack", "RUN", "--attack", f"pgd[steps={DIGITS}]"], ["attack", "RUN", "--attack", ""],
        ["attack", "RUN", "--attack", "pgd[steps=1,steps=2]"], ["attack", "RUN", "--attack", "pgd[loss={{{]"],
        ["attack", "RUN", "--images", "0"], ["attack", "RUN", "--images", "-5"], ["attack", "RUN", "--images", "x"],
        ["attack", "RUN", "--images", DIGITS], ["attack", "RUN", "--images", "٣"], ["attack", "RUN", "--images", "1.5"],
        ["attack", "RUN", "--epsilons", ""], ["attack", "RUN", "--epsilons", "0.1,,0.2"],
        ["attack", "RUN", "--epsilons", "0.1,nan"], ["attack", "RUN", "--epsilons", "9"], ["attack", "RUN", "--distances", "pgd"],
        ["attack", "RUN", "--data", "../imgs"], ["attack", "RUN", "--data", "./imgs"], ["attack", "RUN", "--data", "RUN"],
        ["attack", "RUN", "--normalise", "imagenet"], ["attack", "RUN", "--normalise", "0/0"],
        ["attack", "RUN", "--normalise", "nan,1"], ["attack", "RUN", "--outputs", "scores"],
        ["certify", "RUN", "--epsilon", "0"], ["certify", "RUN", "--epsilon", "nan"], ["certify", "RUN", "--epsilon", "9"],
        ["certify", "RUN", "--method", "guess"], ["certify", "RUN", "--method", "crown[x=1]"],
        ["certify", "RUN", "--method", "smoothing"], ["certify", "RUN", "--method", "smoothing[sigma=0]"],
        ["certify", "RUN", "--method", "smoothing[sigma=inf]"], ["certify", "RUN", "--memory", "-1", "--method", "crown"],
        ["certify", "RUN", "--memory", "nan", "--method", "crown"], ["certify", "RUN", "--images", "0"],
        ["certify", "RUN", "--epsilon", DIGITS], ["certify", "BEGUN"], ["certify", "attacked"],
        ["ensemble", "build"], ["ensemble", "build", "--from"], ["ensemble", "build", "--from", "RUN", "RUN"],
        ["ensemble", "build", "--from", "BEGUN"], ["ensemble", "build", "--from", "images"],
        ["ensemble", "build", "--from", "RUN", "--epsilon", "nan"], ["ensemble", "build", "--from", "RUN", "--members", "0"],
        ["ensemble", "build", "--from", "RUN", "--images", "-1"], ["ensemble", "build", "--from", "RUN", "train.epochs=3"],
        ["ensemble", "BEGUN"], ["report", "images"], ["report", ""], ["report", "net.py"], ["record", "images"],
        ["record", "BEGUN"], ["export", "RUN", "--epsilon", "0"], ["export", "RUN", "--images", "0"],
        ["export", "RUN", "--timeout", "-1"], ["export", "RUN", "--out", "net.py"], ["export", "ensemble"],
        ["export", "ensemble", "--data", "nothing"], ["export", "BEGUN"], ["list"], ["list", "x"], ["list", ""],
        ["info"], ["info", ""], ["info", "RUNS"], ["info", "net.py"], ["info", "x" * 5000], ["info", cut_off], ["info", "a\0b"],
        ["table", "top", "runs/table", "pgd@0.1"], ["table", "top", "runs/table", "clean", "--count", "-1"],
        ["table", "top", "runs/table", "clean", "dataset=cifar10"], ["table", "top", "runs/table", "clean", "datset=digits"],
        ["table", "top", "runs/table", "clean", "seed=x"], ["table", "top", "runs/table", "clean", f"seed={DIGITS}"],
        ["table", "top", "runs/table", "clean", "seed=--3"], ["table", "top", "runs/table", "clean", "seed=٣"],
        ["table", "top", "runs/table", "clean", "seed=²"], ["table", "top", "runs/table", "clean", "epsilon=x"],
        ["table", "top", "runs/table", "clean", "is_mean=maybe"], ["table", "top", "runs/table", "clean", "started=now"],
        ["table", "top", "runs/table", "clean", "started=2026-01-01"], ["table", "top", "images", "clean"],
        ["table", "top", "RUN", "clean"], ["table", "top", "net.py", "clean"], ["table", "query", "runs/table", "999999"],
        ["table", "query", "runs/table", ""], ["table", "query", "runs/table", DIGITS], ["table", "query", "runs/table", "²²²²²²"],
        ["table", "query", "runs/table", "323133", "clean", "fgsm@0.2", "--json", "--csv"], ["table", "pareto", "runs/table"],
        ["table", "pareto", "runs/table", "clean", "clean"], ["table", "compare", "runs/table", "323133"],
        ["table", "stats", "runs/table", "nothing"], ["table", "explore", "runs/table", "--out", "page.txt"],
        ["table", "explore", "runs/table", "--out", "images"], ["table", "export", "runs/table", "rows.xls"],
        ["table", "export", "runs/table", "net.py/rows.csv"], ["table", "export", "runs/table", "rows.csv", "a=b"],
        ["table", "merge", "runs/table"], ["table", "merge", "images", "--into", "both"],
        ["table", "merge", "runs/table", "--into", "net.py"], ["table", "merge", "nowhere", "--into", "both"],
        ["table", "import", "--source", "images"], ["table", "import", "--source", "nowhere", "--name", "nas-robbench-201"],
        ["table", "import", "--source", "net.py", "--name", "nas-robbench-201"], ["table", "fetch", "nothing"],
        ["table", "info", "other.toml"], ["table", "info", "../x"], ["proxies", "rank", "runs/table"],
        ["proxies", "rank", "runs/table", "clean", "--data", "digits", "--proxy", "guess"],
        ["proxies", "rank", "runs/table", "clean", "--data", "digits", "--architectures", "1"],
        ["proxies", "rank", "runs/table", "clean", "--data", "digits", "--seeds", "0"],
        ["proxies", "rank", "runs/table", "clean", "--data", "digits", "--batch-size", "-1"], ["--epochs=3"], ["run", "--bogus"],
    ):  # fmt: skip
        yield Case("command line", " ".join(line)[:70], line)


STAGE_FILES = ("search", "derive", "train", "evaluation", "certification", "ensemble", "record", "environment")


def run_folders() -> Iterator[Case]:
    """Files of a run folder that are well-formed and of another shape, damaged, or no files."""
    kind = "files of a run"
    for stage in STAGE_FILES:
        file = f"RUN/{stage}.json"
        shapes = {"null": "null", "a list": "[]", "an empty object": "{}", "a number": "3"}
        for shape, text in shapes.items():
            yield Case(kind, f"{stage}.json is {shape} (report)", ["report", "RUN"], put(file, text))
        for verb in ("info",) if stage in ("train", "evaluation", "certification") else ():
            for shape, text in shapes.items():
                yield Case(kind, f"{stage}.json is {shape} ({verb})", [verb, "RUN"], put(file, text))
        damages = {"empty": put(file, ""), "cut off": cut(file), "no text": put(file, b"\xff\xfe\x00"),
                   "a folder": as_folder(file), "a link to itself": as_loop(file),
                   "nested thousands deep": put(file, DEEP), "a number of 5,000 digits": put(file, "9" * 5000)}  # fmt: skip
        for damage, change in damages.items():
            if stage in ("evaluation", "train") or damage in ("empty", "a folder"):
                yield Case(kind, f"{stage}.json is {damage}", ["report", "RUN"], change)

    def model(change: Callable[[Any], object]) -> Callable[[Any], object]:
        return lambda value: change(value["models"]["model-0"])

    def first(change: Callable[[Any], object]) -> Callable[[Any], object]:
        return lambda value: change(value["models"][0])

    inside: dict[str, dict[str, Callable[[Any], object]]] = {
        "evaluation": {
            "models are a list": lambda v: v.update(models=[1]),
            "a model is null": lambda v: v["models"].update({"model-0": None}),
            "a model without clean": model(lambda m: m.pop("clean")),
            "an accuracy is a word": model(lambda m: m["clean"].update(accuracy="high")),
            "an accuracy is NaN": model(lambda m: m["clean"].update(accuracy=float("nan"))),
            "an accuracy is 7": model(lambda m: m["clean"].update(accuracy=7)),
            "an accuracy is true": model(lambda m: m["clean"].update(accuracy=True)),
            "attacks are an object": model(lambda m: m.update(attacks={})),
            "an attack without a radius": model(lambda m: m["attacks"][0].pop("epsilon")),
            "a radius is a list": model(lambda m: m["attacks"][0].update(epsilon=[1])),
            "a radius is infinite": model(lambda m: m["attacks"][0].update(epsilon=float("inf"))),
            "the worst case is a list": model(lambda m: m.update(worst_case=[])),
            "a check without its name": model(lambda m: m["masking"][0].pop("check")),
            "a curve of numbers": model(lambda m: m.update(curve=[0.1, 0.2])),
            "a confusion of words": model(lambda m: m.update(confusion="many")),
            "a confusion that is ragged": model(lambda m: m.update(confusion=[[1], [1, 2]])),
            "distances are an object": model(lambda m: m.update(distortions={})),
            "classes are a number": lambda v: v.update(classes=3),
            "classes are numbers": lambda v: v.update(classes=[1, 2, 3]),
            "the number of images is a word": lambda v: v.update(num_images="many"),
            "other epochs are a list": lambda v: v.update(other_epochs=[1]),
        },
        "train": {
            "models are an object": lambda v: v.update(models={}),
            "a model is a number": lambda v: v.update(models=[3]),
            "a model without a name": first(lambda m: m.pop("name")),
            "a name is a number": first(lambda m: m.update(name=3)),
            "two models of one name": lambda v: v["models"].append(v["models"][0]),
            "an architecture is a number": first(lambda m: m.update(architecture=323133)),
            "an architecture is no architecture": first(lambda m: m.update(architecture="|a~0|")),
            "the validation is a list": first(lambda m: m.update(validation=[0.5])),
            "an epoch is a word": first(lambda m: m.update(best_epoch="last")),
            "parameters are a word": first(lambda m: m.update(parameters="many")),
        },
        "search": {
            "no edges": lambda v: (v.pop("edges", None), v.pop("edge_names", None)),
            "operations are a number": lambda v: v.update(operations=3),
            "a trajectory of numbers": lambda v: v.update(trajectory=[1, 2]),
            "a row without its epoch": lambda v: v["trajectory"][0].pop("epoch"),
            "the mixture is a word": lambda v: v["trajectory"][0].update(concentration="x", mixture="x"),
            "probabilities are words": lambda v: v.update(probabilities=[["a", "b"]]),
            "a space of another kind": lambda v: v.update(space=3),
            "collapses are words": lambda v: v.update(collapses=["epoch 3"]),
        },
        "derive": {
            "candidates are a number": lambda v: v.update(candidates=3),
            "a candidate without its posterior": lambda v: v["candidates"][0].pop("log_posterior"),
            "chosen are numbers": lambda v: v.update(chosen=[1, 2]),
            "spaces are numbers": lambda v: v.update(spaces=[1, 2]),
            "the time is a word": lambda v: v.update(seconds="long"),
        },
        "certification": {
            "models are a list": lambda v: v.update(models=[1]),
            "a result without its accuracy": lambda v: v["models"]["model-0"][0].pop("certified"),
            "an accuracy is NaN": lambda v: v["models"]["model-0"][0].update(certified=float("nan")),
            "a radius is a word": lambda v: v["models"]["model-0"][0].update(epsilon="big"),
            "results are an object": lambda v: v["models"].update({"model-0": {}}),
            "left out are a list": lambda v: v.update(left_out=[1]),
        },
        "ensemble": {
            "more weights than members": lambda v: v["weights"].append(1.0),
            "weights are NaN": lambda v: v.update(weights=[float("nan")] * 2),
            "weights are words": lambda v: v.update(weights=["a", "b"]),
            "all weights are 0": lambda v: v.update(weights=[0.0] * len(v["weights"])),
            "members are a number": lambda v: v.update(members=3),
            "no members": lambda v: v.pop("members"),
        },
        "record": {"rows are a word": lambda v: v.update(rows="many")},
        "environment": {
            "packages are a list": lambda v: v.update(packages=[1]),
            "arguments are a number": lambda v: v.update(arguments=3),
        },
    }  # fmt: skip
    for stage, changes in inside.items():
        for name, change in changes.items():
            yield Case(kind, f"{stage}.json: {name}", ["report", "RUN"], edit(f"RUN/{stage}.json", change))
    # What stages read, of other files and for other commands.
    for name, line, change, *may_work in (
        ("derive.json: chosen are numbers", ["info", "BEGUN"], put("BEGUN/derive.json", '{"chosen": 3}')),
        ("search.json is an empty object", ["info", "BEGUN"], put("BEGUN/search.json", "{}")),
        ("search.json: rows of other lengths", ["derive", "BEGUN"],
         edit("BEGUN/search.json", lambda v: v.update(probabilities=[[0.5, 0.5]]))),
        ("search.json: probabilities are NaN", ["derive", "BEGUN"],
         edit("BEGUN/search.json", lambda v: v.update(probabilities=[[float("nan")] * 5] * 6))),
        ("search.json: the supernet's form is a number", ["derive", "BEGUN"],
         edit("BEGUN/search.json", lambda v: v.update(supernet=3))),
        ("search.json is null", ["derive", "BEGUN"], put("BEGUN/search.json", "null")),
        ("derive.json is a list", ["train", "BEGUN"], put("BEGUN/derive.json", "[]")),
        ("train.json is an empty object", ["attack", "RUN"], put("RUN/train.json", "{}")),
        ("train.json: no validation", ["attack", "RUN"], edit("RUN/train.json", first(lambda m: m.pop("validation")))),
        ("train.json: another model's name", ["attack", "RUN"], edit("RUN/train.json", first(lambda m: m.update(name="x")))),
        ("evaluation.json is a list", ["attack", "RUN"], put("RUN/evaluation.json", "[]")),
        ("evaluation.json: models are a list", ["record", "RUN"],
         each(without("RUN/record.json"), edit("RUN/evaluation.json", lambda v: v.update(models=[])))),
        ("environment.json is an empty object", ["record", "RUN"],
         each(without("RUN/record.json"), put("RUN/environment.json", "{}"))),
        ("environment.json: the start is no time", ["record", "RUN"],
         each(without("RUN/record.json"), edit("RUN/environment.json", lambda v: v.update(started="yesterday")))),
        ("certification.json is a number", ["certify", "RUN"], put("RUN/certification.json", "3")),
        ("certification.json: models are a list", ["record", "RUN"],
         each(without("RUN/record.json"), edit("RUN/certification.json", lambda v: v.update(models=[])))),
        ("ensemble.json is a list", ["ensemble", "RUN"], put("RUN/ensemble.json", "[]")),
        ("train.json: models are words", ["ensemble", "build", "--from", "RUN"], put("RUN/train.json", '{"models": ["a"]}')),
        ("smoothed certification is a list", ["report", "RUN"],
         lambda folder: next(folder.glob("RUN/certify-*/certification.json")).write_text("[]")),
        ("smoothed certification without sigma", ["report", "RUN"],
         lambda folder: edit(str(next(folder.glob("RUN/certify-*/certification.json")).relative_to(folder)),
                             lambda v: v.pop("sigma"))(folder)),
        ("metrics.jsonl: rows without a stage", ["report", "RUN"], put("RUN/metrics.jsonl", '{"a": 1}\n')),
        ("metrics.jsonl: rows are lists", ["report", "RUN"], put("RUN/metrics.jsonl", "[1]\n")),
        ("metrics.jsonl: a step is a word", ["report", "RUN"], put("RUN/metrics.jsonl", '{"stage":"train-0","step":"x"}\n')),
        ("metrics.jsonl: no text", ["report", "RUN"], put("RUN/metrics.jsonl", b"\xff\xfe\n")),
        ("metrics.jsonl is a folder", ["report", "RUN"], as_folder("RUN/metrics.jsonl")),
        ("metrics.jsonl: an accuracy is a word", ["report", "RUN"],
         put("RUN/metrics.jsonl", '{"stage":"train-0","step":1,"validation_clean":"x","validation_robust":0.1}\n')),
        ("config.toml is empty", ["report", "RUN"], put("RUN/config.toml", "")),
        ("config.toml is empty (info)", ["info", "RUN"], put("RUN/config.toml", ""), True),
        ("config.toml is a folder", ["report", "RUN"], as_folder("RUN/config.toml")),
        ("config.toml is no text", ["report", "RUN"], put("RUN/config.toml", b"\xff\xfe")),
        ("config.toml: no threat", ["report", "RUN"], swap("RUN/config.toml", r"\[threat\][^\[]*", "")),
        ("config.toml: a threat of another shape", ["report", "RUN"], swap("RUN/config.toml", r"\[threat\][^\[]*", "")),
        ("config.toml: a seed is a word", ["report", "RUN"], swap("RUN/config.toml", r"seed = \d+", 'seed = "x"')),
        ("config.toml: nested thousands deep", ["report", "RUN"], swap("RUN/config.toml", r"seed = \d+", f"seed = {DEEP}")),
        ("config.toml: another number of nodes", ["attack", "RUN", "--threat", "linf:0.1"],
         swap("RUN/config.toml", r"num_nodes = \d+", "num_nodes = 5")),
        ("config.toml: no space", ["attack", "RUN", "--threat", "linf:0.1"],
         swap("RUN/config.toml", r"(?ms)^\[space\]\n.*?^(?=\[\w)", "")),
        ("config.toml: no data set", ["record", "RUN"],
         each(without("RUN/record.json"), swap("RUN/config.toml", r"(?ms)^\[data\]\n.*?^(?=\[\w)", ""))),
        ("evaluation.parquet of other columns", ["report", "RUN"], outcomes("RUN/evaluation.parquet"), True),
        ("certificates.parquet of other columns", ["report", "RUN"], outcomes("RUN/certificates.parquet")),
        ("evaluation.parquet is cut off", ["report", "RUN"], cut("RUN/evaluation.parquet")),
        ("evaluation.parquet of other columns, added to", ["attack", "RUN"],
         each(outcomes("RUN/evaluation.parquet"), edit("RUN/evaluation.json", lambda v: v["models"].pop("model-1")))),
        ("certificates.parquet of other columns, added to", ["certify", "RUN"],
         each(outcomes("RUN/certificates.parquet"), edit("RUN/certification.json", lambda v: v["models"].pop("model-1")))),
        ("certify beside, of other columns", ["certify", "RUN", "--method", "smoothing[sigma=0.25,num_samples=20]", "--images", "4"],
         lambda folder: outcomes(str(next(folder.glob("RUN/certify-*/certificates.parquet")).relative_to(folder)))(folder)),
        ("examples of other shape", ["report", "RUN"],
         lambda folder: weights(str(next(folder.glob("RUN/checkpoints/examples*")).relative_to(folder)), a_b=(2,))(folder)),
        ("a state of other steps", ["run", "--resume", "BEGUN"],
         lambda folder: weights("BEGUN/checkpoints/train-0.state.safetensors", a_b=(2,))(folder)),
        ("checkpoints is a file", ["attack", "RUN", "--threat", "linf:0.1", "--images", "4"],
         each(without("RUN/checkpoints"), put("RUN/checkpoints", ""))),
        ("a run whose name is no text", ["report", os.fsdecode(b"R\xffN")], renamed("RUN", b"R\xffN"), True),
        ("a run whose name is no text, bad", ["report", os.fsdecode(b"R\xffN")],
         each(put("RUN/train.json", "[]"), renamed("RUN", b"R\xffN"))),
        ("a run whose name is no text, attacked", ["attack", os.fsdecode(b"R\xffN"), "--threat", "linf:0.1", "--images", "4", "--attack", "fgsm"],
         renamed("RUN", b"R\xffN"), True),
        ("no permission", ["report", "RUN"], lambda folder: (folder / "RUN/train.json").chmod(0)),
        ("no permission for config.toml", ["info", "RUN"], lambda folder: (folder / "RUN/config.toml").chmod(0), True),
        ("no permission for the folder", ["report", "RUN"], lambda folder: (folder / "RUN").chmod(0o500), True),
    ):  # fmt: skip
        yield Case(kind, f"{name} ({line[0]})", line, change, bool(may_work))


def attack_folders() -> Iterator[Case]:
    """Folders of `robust-nas attack`."""
    kind = "attack folders"
    file, settings = "attacked/evaluation.json", "attacked/attack.toml"
    for verb in ("info", "report"):
        for shape, change in {
            "evaluation.json is null": put(file, "null"),
            "evaluation.json is a list": put(file, "[]"),
            "evaluation.json is an empty object": put(file, "{}"),
            "evaluation.json: a model is a number": edit(file, lambda v: v["models"].update(Net=3)),
            "evaluation.json: no notes, no checks": edit(
                file, lambda v: (v["models"]["Net"].pop("masking"), v["models"]["Net"].update(masking=[{}]))
            ),
            "evaluation.json: an accuracy is NaN": edit(
                file, lambda v: v["models"]["Net"]["clean"].update(accuracy=float("nan"))
            ),
            "attack.toml is empty": put(settings, ""),
            "attack.toml is no TOML": put(settings, "{}"),
            "attack.toml is no text": put(settings, b"\xff\xfe"),
            "attack.toml: models are a number": swap(settings, r"(?s)models = \[.*?\]", "models = 3"),
            "attack.toml: nested thousands deep": swap(settings, r"seed = \d+", f"seed = {DEEP}"),
        }.items():
            yield Case(kind, f"{shape} ({verb})", [verb, "attacked"], change)
    for name, change in {
        "attack.toml is a folder": as_folder(settings),
        "evaluation.json is a folder": as_folder(file),
        "evaluation.json is a link to itself": as_loop(file),
        "environment.json is a list": put("attacked/environment.json", "[]"),
        "evaluation.json is missing": without(file),
        "evaluation.json is cut off": cut(file),
        "attack.toml: the seed is a list": swap(settings, r"seed = \d+", "seed = [1]"),
        "attack.toml: no data set": each(swap(settings, r"\[data\][^\[]*", ""), edit(file, lambda v: v.pop("data"))),
    }.items():
        yield Case(kind, f"{name} (report)", ["report", "attacked"], change)


def tables() -> Iterator[Case]:
    """Tables, cards and parts of tables."""
    kind = "tables, cards, parts"
    top = ["table", "top", "runs/table", "clean"]

    def part_file(folder: Path) -> Path:
        return min((folder / "runs/table").glob("part-*"))

    for name, change in {
        "a part is empty": lambda folder: part_file(folder).write_bytes(b""),
        "a part is cut off": lambda folder: cut(str(part_file(folder).relative_to(folder)))(folder),
        "a part is text": lambda folder: part_file(folder).write_bytes(b"accuracy,1"),
        "a part is a folder": lambda folder: as_folder(str(part_file(folder).relative_to(folder)))(folder),
        "a part is a link to itself": lambda folder: as_loop(str(part_file(folder).relative_to(folder)))(folder),
        "a part of other columns": lambda folder: outcomes(str(part_file(folder).relative_to(folder)))(folder),
        "accuracies are words": column("accuracy", lambda v: ["high"] * len(v), "string"),
        "accuracies are whole numbers": column("accuracy", lambda v: [1] * len(v), "int64"),
        "accuracies are NaN": column("accuracy", lambda v: [float("nan")] * len(v), "float64"),
        "accuracies are infinite": column("accuracy", lambda v: [float("inf")] * len(v), "float64"),
        "accuracies are 7": column("accuracy", lambda v: [7.0] * len(v), "float64"),
        "accuracies are missing": column("accuracy", lambda v: [None] * len(v), "float64"),
        "accuracies are lists": part(
            lambda t: t.set_column(t.schema.get_field_index("accuracy"), "accuracy", [[[1.0]] * len(t)])
        ),
        "radii are words": column("epsilon", lambda v: ["big"] * len(v), "string"),
        "radii are NaN": column("epsilon", lambda v: [float("nan")] * len(v), "float64"),
        "seeds are words": column("seed", lambda v: ["x"] * len(v), "string"),
        "seeds are fractions": column("seed", lambda v: [0.5] * len(v), "float64"),
        "numbers of images are negative": column("num_images", lambda v: [-1] * len(v), "int64"),
        "canonical forms are numbers": column("canonical", lambda v: list(range(len(v))), "int64"),
        "architectures are missing": column("architecture", lambda v: [None] * len(v), "string"),
        "is_mean is a word": column("is_mean", lambda v: ["no"] * len(v), "string"),
        "the version is no number": part(lambda t: t, {"robust_nas.table.version": "one"}),
    }.items():
        yield Case(kind, name, top, change)
    yield Case(kind, "accuracies are words (info)", ["info", "runs/table"],
               column("accuracy", lambda v: ["high"] * len(v), "string"))  # fmt: skip
    yield Case(kind, "accuracies are words (merge)", ["table", "merge", "runs/table", "--into", "both"],
               column("accuracy", lambda v: ["high"] * len(v), "string"))  # fmt: skip
    yield Case(kind, "a table whose name is no text, bad", ["table", "top", os.fsdecode(b"t\xff"), "nothing"],
               renamed("runs/table", b"t\xff"))  # fmt: skip
    for name, change in {
        "a card is empty": put("card.toml", ""),
        "a card is no TOML": put("card.toml", "{"),
        "a card is no text": put("card.toml", b"\xff"),
        "a card: nested thousands deep": put("card.toml", f"x = {DEEP}"),
        "a card is a folder": as_folder("card.toml"),
        "a card: a link to itself": as_loop("card.toml"),
        "a card: rows are a number": swap("card.toml", r"\[rows\]", "rows = 3\n[other]"),
        "a card: a radius is a word": swap("card.toml", r'epsilon = "[^"]*"', 'epsilon = "big"'),
        "a card: a radius has 400 digits": swap("card.toml", r'epsilon = "[^"]*"', f"epsilon = {DIGITS}"),
        "a card: a file in another folder": swap("card.toml", r'name = "', 'name = "../'),
        "a card: a sha256 is short": swap("card.toml", r'sha256 = "[^"]*"', 'sha256 = "abc"'),
        "a card: caveats are words": swap("card.toml", r"(?s)caveats = \[.*?\]\n", 'caveats = "none"\n'),
        "a card: a title is a number": swap("card.toml", r'title = "[^"]*"', "title = 3"),
    }.items():
        yield Case(kind, name, ["table", "info", "card.toml"], change)


def weights_files() -> Iterator[Case]:
    """Weights, of a network of one's own and of a run."""
    kind = "weights files"
    own = ["attack", "net.py:Net@net.safetensors", *ATTACK[2:]]
    file = "net.safetensors"
    for name, change in {
        "empty": put(file, ""),
        "text": put(file, "weights"),
        "cut off": cut(file),
        "a header of 2^63 bytes": put(file, b"\xff" * 8 + b"{}"),
        "a header that is no JSON": put(file, b"\x02\0\0\0\0\0\0\0[[" + b"\0" * 100),
        "a header nested thousands deep": put(file, (2 * 3000).to_bytes(8, "little") + DEEP.encode()),
        "a folder": as_folder(file),
        "a link to itself": as_loop(file),
        "missing": without(file),
        "tensors of other shapes": weights(file, **{"1_weight": (3, 3), "1_bias": (10,)}),
        "another tensor": weights(file, **{"1_weight": (10, 64), "1_bias": (10,), "2_bias": (1,)}),
        "a tensor less": weights(file, **{"1_weight": (10, 64)}),
        "no tensors": weights(file),
    }.items():
        yield Case(kind, name, own, change)
    nan = "import torch, safetensors.torch as s\ns.save_file({'1.weight': torch.full((10, 64), float('nan')), '1.bias': torch.zeros(10)}, 'net.safetensors')"
    yield Case(kind, "NaN", own, lambda folder: exec(nan.replace("'net.safe", f"'{folder}/net.safe")))
    yield Case(kind, "pickled", ["attack", "net.py:Net@net.pt", *ATTACK[2:]])
    yield Case(kind, "of no run", ["attack", "net.safetensors", *ATTACK[2:]])
    yield Case(
        kind,
        "a name that is no text, missing",
        ["attack", "net.py:Net@" + os.fsdecode(b"n\xff.safetensors"), *ATTACK[2:]],
    )
    yield Case(kind, "a name that is no text", ["attack", "net.py:Net@" + os.fsdecode(b"n\xff.safetensors"), *ATTACK[2:]],
               renamed(file, b"n\xff.safetensors"), True)  # fmt: skip
    run = ["attack", "RUN", "--threat", "linf:0.1", "--images", "4", "--attack", "fgsm"]
    model = "RUN/checkpoints/model-0.safetensors"
    for name, change in {
        "of a run, a changed bit": flip(model),
        "of a run, cut off": cut(model),
        "of a run, of another network": lambda folder: shutil.copy(folder / file, folder / model),
        "of a run, a folder": as_folder(model),
        "of a run, another's": lambda folder: shutil.copy(
            folder / "RUN/checkpoints/supernet.safetensors", folder / model
        ),
    }.items():
        yield Case(kind, name, run, change)
    yield Case(
        kind,
        "of a run, the last epoch's without the model",
        ["attack", "RUN/checkpoints/supernet.safetensors", *run[2:]],
    )


def models() -> Iterator[Case]:
    """Names of models."""
    for spec in (
        "net.py", "net.py:", ":Net", "net.py:Nett", "net.py:number", "net.py:needs", "net.py:raises", "net.py:returns_text",
        "net.py:two_logits", "net.py:other_images", "net.py:image_out", "other.py:Net", "net:Net.x", "no.such.module:x",
        "torchvision:resnet", "torchvision:resnet18@NOTHING", "torchvision:resnet18?num_classes=x", "torchvision:",
        "torchvision:resnet18?num_classes=0", f"torchvision:resnet18?num_classes={DIGITS}", "net.py:Net@", "images:Net",
        "os:getcwd", "net.py:__class__", "images", "net.py:Net@net.py", "", "  ", "a" * 5000, "syntax.py:Net", "null.py:Net",
    ):  # fmt: skip
        spoil = each(put("syntax.py", "def"), put("null.py", b"\0\xff"))
        yield Case("model specs", spec[:60] or "nothing", ["attack", spec, *ATTACK[2:]], spoil)
    yield Case("model specs", "a file named like a module", ["attack", "net.py:Net", "net.py:Net", *ATTACK[2:]])


def data_folders() -> Iterator[Case]:
    """Folders of images."""
    kind = "data folders"
    line = [
        "run",
        "images",
        *TINY[:-3],
        "data.size=8",
        "train.batch_size=2",
        "search.batch_size=2",
        "derive.batch_size=2",
    ]
    first = "images/train/cat/0.png"
    for name, change in {
        "an image is empty": put(first, ""),
        "an image is text": put(first, "a cat"),
        "an image is cut off": cut(first, 0.9),
        "an image is a folder with a broken one": each(as_folder(first), put(f"{first}/1.png", "a cat")),
        "an image is a link to itself": as_loop(first),
        "a class is empty": each(without("images/train/cat"), lambda folder: (folder / "images/train/cat").mkdir()),
        "one class": each(*(without(f"images/{split}/dog") for split in ("train", "validation", "test"))),
        "no classes": each(without("images"), lambda folder: (folder / "images").mkdir()),
        "a class that only the test split has": lambda folder: shutil.copytree(
            folder / "images/test/cat", folder / "images/test/owl"
        ),
        "no test split": without("images/test"),
        "images without classes": lambda folder: (
            shutil.copy(folder / first, folder / "images/train/0.png"),
            shutil.rmtree(folder / "images/train/cat"),
            shutil.rmtree(folder / "images/train/dog"),
        ),
        "a FIFO among the images": lambda folder: os.mkfifo(folder / "images/train/cat/x.png"),
        "an archive for a folder": each(without("images"), put("images", b"PK\x03\x04")),
        "a class that is no folder": each(without("images/train/cat"), put("images/train/cat", "")),
        "classes are links to their parents": each(
            without("images/train/cat"), lambda folder: (folder / "images/train/cat").symlink_to("..")
        ),
    }.items():
        yield Case(kind, name, line, change)
    for override in ("data.size=0", "data.size=-3", "data.size=100000000", "data.size=x", f"data.size={DIGITS}",
                     "data.root=nowhere", "data.root=net.py", "data.root=3", "data.root=''", "data.validation_size=-1"):  # fmt: skip
        yield Case(kind, override[:40], [*line, override])


def calls() -> Iterator[Case]:
    """Python calls with wrong types and values."""
    for code in (
        "rn.ThreatModel(norm='l3')", "rn.ThreatModel(norm=2)", "rn.ThreatModel(norm=['linf'])", "rn.ThreatModel(epsilon=None)",
        "rn.ThreatModel(epsilon=True)", "rn.ThreatModel(epsilon='x')", "rn.ThreatModel(epsilon=float('nan'))",
        "rn.ThreatModel(epsilon=10**400)", "rn.ThreatModel(epsilon=torch.tensor([0.1, 0.2]))", "rn.ThreatModel.parse('linf')",
        "rn.ThreatModel.parse(3)", "rn.ThreatModel.parse(None)", "threat.around(images * 3)", "threat.around(labels)",
        "threat.around('x')", "threat.around(images * float('nan'))", "threat.with_epsilon(None)",
        "rn.evaluate(net, images)", "rn.evaluate(net)", "rn.evaluate('net', images, labels, threat)",
        "rn.evaluate(type(net), images, labels, threat)", "rn.evaluate(net, images.numpy(), labels, threat)",
        "rn.evaluate(net, images, labels.float(), threat)", "rn.evaluate(net, images[:0], labels[:0], threat)",
        "rn.evaluate(net, images, labels + 100, threat)", "rn.evaluate(net, images, labels - 3, threat)",
        "rn.evaluate(net, images * 255, labels, threat)", "rn.evaluate(net, images[0], labels, threat)",
        "rn.evaluate(net, images, labels[:3], threat)", "rn.evaluate(net, images, labels, 0.1)",
        "rn.evaluate(net, images, labels, 'linf:0.1')", "rn.evaluate(net, images, labels, [])", "rn.evaluate(net, images, labels, None)",
        "rn.evaluate(net, images, labels, threat, attacks='pgd')", "rn.evaluate(net, images, labels, threat, attacks=[])",
        "rn.evaluate(net, images, labels, threat, attacks=[3])", "rn.evaluate(net, images, labels, threat, attacks=None)",
        "rn.evaluate(net, images, labels, threat, attacks=['pdg'])", "rn.evaluate(net, images, labels, threat, batch_size=0)",
        "rn.evaluate(net, images, labels, threat, batch_size='x')", "rn.evaluate(net, images, labels, threat, seed='x')",
        "rn.evaluate(net, images, labels, threat, batch_size=2.5)", "rn.evaluate(net, images, labels, threat, attacks=[rn.attacks.get('pgd')])",
        "rn.evaluate(net, images, labels, threat, folder=3)", "rn.evaluate(net, images, labels, threat, folder='net.py')",
        "rn.evaluate(net, images, labels, threat, folder='out', name=3)", "rn.evaluate(net, images.to(torch.complex64), labels, threat)",
        "rn.evaluate(net, images * float('nan'), labels, threat)", "rn.evaluate(other, images, labels, threat)",
        "rn.evaluate(nan_net, images, labels, threat)", "rn.certify(net, images, threat)", "rn.certify(net, data.test[:4], 0.1)",
        "rn.certify(net, data.test[:4], threat, bound='x')", "rn.certify(net, data.test[:4], threat, bound=3)",
        "rn.certify(net, data.test[:4], threat, epsilons=0.1)", "rn.certify(net, data.test[:4], threat, epsilons=[])",
        "rn.certify(net, data.test[:4], threat, epsilons=['x'])", "rn.certify(net, data.test[:4], threat, epsilons=[float('nan')])",
        "rn.certify(net, data.test[:4], threat, batch_size=0)", "rn.certify(net, data.test[:0], threat)",
        "rn.certify('net', data.test[:4], threat)", "rn.certify(other, data.test[:4], threat)", "rn.certify(nan_net, data.test[:4], threat)",
        "rn.smooth(net, sigma=0)", "rn.smooth(net, sigma='x')", "rn.smooth(net, sigma=None)", "rn.smooth('net', sigma=0.1)",
        "rn.smooth(net, sigma=float('inf'))", "rn.smooth(net, sigma=0.1, samples=3)", "rn.smooth(net, sigma=0.1, num_samples=10**400)",
        "rn.smooth(net, sigma=0.1, num_samples=20).predict(images * 255)", "rn.smooth(net, sigma=0.1, num_samples=20).predict('x')",
        "rn.smooth(net, sigma=0.1, num_samples=20).certify(images)", "rn.datasets.load('digit')", "rn.datasets.load(3)",
        "rn.datasets.load('digits', size=3)", "rn.datasets.load('digits', validation_size=-1)", "rn.datasets.load('')",
        "rn.datasets.load('folder')", "rn.datasets.load('folder', root=3)", "rn.datasets.load('folder', root='net.py')",
        "rn.spaces.load('x')", "rn.spaces.load(3)", "rn.spaces.load('nasbench201', channels='x')", "rn.spaces.load('nasbench201', channel=3)",
        "rn.spaces.load('nasbench201', channels=10**400)", "rn.spaces.load('nasbench201', num_nodes=40)", "rn.spaces.load(None)",
        "rn.search('x', data, threat)", "rn.search(3, data, threat)", "rn.search('nasbench201', 'digits', threat)",
        "rn.search('nasbench201', data, 'linf:0.1')", "rn.search('nasbench201', data, threat, method='x')",
        "rn.search('nasbench201', data, threat, method=3)", "rn.search('nasbench201', data, threat, epoch=3)",
        "rn.search('nasbench201', data, threat, epochs='x')", "rn.search('nasbench201', data, threat, epochs=0)",
        "rn.search('nasbench201', data, threat, epochs=1, seed='x')", "rn.train('323133', 'digits', threat)", "rn.train(3, data, threat)",
        "rn.train('32313', data, threat)", "rn.train('323133', data, 0.1)", "rn.train('323133', data, threat, method='x')",
        "rn.train('323133', data, threat, method=3)", "rn.train('323133', data, threat, method={})", "rn.train('323133', data, threat, epoch=3)",
        "rn.train('323133', data, threat, epochs=-1)", "rn.train('323133', data, threat, recipe='x')", "rn.train('323133', data, threat, recipe=3)",
        "rn.train('323133', data, threat, frozen_members=net)", "rn.train('323133', data, threat, frozen_members=3)", "rn.train(type(net), data, threat)",
        "rn.train(other, data, threat)", "rn.train('323133', data, threat, learning_rate=float('inf'))", "rn.train('323133', data, threat, space='x')",
        "rn.train('323133', data, threat, space=3)", "rn.derive(3, 'nasbench201', data, threat)", "rn.build_ensemble(net, data.validation, threat)",
        "rn.build_ensemble([], data.validation, threat)", "rn.build_ensemble([net, 3], data.validation, threat)",
        "rn.build_ensemble([net], images, threat)", "rn.build_ensemble([net], data.validation[:4], threat, rule='x')",
        "rn.build_ensemble([net], data.validation[:4], threat, rule=3)", "rn.build_ensemble([net], data.validation[:4], threat, bound=3)",
        "rn.build_ensemble([net], data.validation[:4], threat, members=0)", "rn.build_ensemble([net, other], data.validation[:4], threat)",
        "rn.build_ensemble([net], data.validation[:0], threat)", "rn.Ensemble([])", "rn.Ensemble([net], [0.0])", "rn.Ensemble([net], [1, 2])",
        "rn.Ensemble([net], [float('nan')])", "rn.Ensemble([net], ['x'])", "rn.Ensemble(net)", "rn.Ensemble([3])", "rn.Ensemble([net], [1.0], [0.0])",
        "rn.Ensemble([net]).predict(images * 255)", "rn.Ensemble([net]).predict('x')", "rn.Ensemble([net]).save('net.py')",
        "rn.Ensemble.load('nowhere')", "rn.Ensemble.load(3)", "rn.Ensemble.load('ensemble', members=[net])", "rn.Ensemble.load('ensemble', members=3)",
        "rn.load_run('nowhere')", "rn.load_run(3)", "rn.load_run('BEGUN')", "rn.load_run('RUN').read('nothing.json')", "rn.load_run('RUN').read(3)",
        "rn.run('x')", "rn.run(3)", "rn.run('digits', 'seed=x')", "rn.run('digits', 3)", "rn.write_report('nowhere')", "rn.write_report(3)",
        "rn.tables.load('nowhere')", "rn.tables.load(3)", "rn.tables.load('runs/table').query('x')", "rn.tables.load('runs/table').query(10**400)",
        "rn.tables.load('runs/table').top(0, 'clean')", "rn.tables.load('runs/table').top('x', 'clean')", "rn.tables.load('runs/table').top(3, 'x')",
        "rn.tables.load('runs/table').top(3, epsilon='x')", "rn.tables.load('runs/table').top(3, colum='x')", "rn.tables.load('runs/table').query(None)",
        "rn.Architecture.parse('x')", "rn.Architecture.parse(3)", "rn.Architecture.parse('')", "rn.Architecture.parse('9' * 400)",
        "rn.Genotype.parse('x')", "rn.Genotype.parse(3)", "rn.Architecture(())", "rn.Architecture(('x', 'x'))", "rn.attacks.get('x')", "rn.attacks.get(3)",
        "rn.attacks.get('pgd')(steps=-1)", "rn.attacks.get('pgd')(step_size=float('nan'))", "rn.proxies.get('x')", "rn.proxies.get(None)",
        "rn.samplers.get('')", "rn.trainings.get('x')" if False else "rn.training.get('x')", "rn.load_models('net.py:Nett', device='cpu')",
        "rn.load_models(3, device='cpu')", "rn.load_models('net.py:Net', device='cpv')", "rn.load_models('net.py:Net', device=None) and 1 / 0" if False
        else "rn.load_models('', device='cpu')", "rn.intake.prepared(net, outputs='x')", "rn.intake.prepared(net, normalise='x')",
        "rn.intake.prepared(net, normalise=3)", "rn.evaluation.wilson_interval(3, 0)", "rn.export_onnx(net, 'x.onnx', image_shape=3)",
        "rn.export_onnx('net', 'x.onnx', image_shape=(1, 8, 8))",
    ):  # fmt: skip
        yield Case("Python calls", code, code)


def ensembles() -> Iterator[Case]:
    """Saved ensembles."""
    file, line = (
        "ensemble/config.json",
        ["attack", "ensemble", "--data", "digits", "--threat", "linf:0.1", "--attack", "fgsm", "--images", "4"],
    )

    def member(change: Callable[[Any], object]) -> Callable[[Path], object]:
        return edit(file, lambda value: change(value["members"][0]))

    for name, change in {
        "config.json is null": put(file, "null"),
        "config.json is a list": put(file, "[]"),
        "config.json is an empty object": put(file, "{}"),
        "config.json: version 99": edit(file, lambda v: v.update(version=99)),
        "config.json: members are a number": edit(file, lambda v: v.update(members=3)),
        "config.json: members are numbers": edit(file, lambda v: v.update(members=[3])),
        "config.json: no members": edit(file, lambda v: v.update(members=[], weights=[], scales=[])),
        "config.json: a member less": edit(file, lambda v: v["members"].append(v["members"][0])),
        "config.json: weights are words": edit(file, lambda v: v.update(weights=["x"])),
        "config.json: weights are NaN": edit(file, lambda v: v.update(weights=[float("nan")] * len(v["weights"]))),
        "config.json: scales are 0": edit(file, lambda v: v.update(scales=[0.0] * len(v["scales"]))),
        "config.json: no sha256": edit(file, lambda v: v.pop("sha256")),
        "config.json: an image is a word": member(lambda m: m["data"].update(image_shape="big")),
        "config.json: an image of 10^9 channels": member(lambda m: m["data"].update(image_shape=[10**9, 8, 8])),
        "config.json: an image of negative size": member(lambda m: m["data"].update(image_shape=[-1, 8, 8])),
        "config.json: classes are a number": member(lambda m: m["data"].update(classes=3)),
        "config.json: no classes": member(lambda m: m["data"].update(classes=[])),
        "config.json: an architecture is a number": member(lambda m: m.update(architecture=3)),
        "config.json: an architecture is none": member(lambda m: m.update(architecture="x")),
        "config.json: a space is a list": member(lambda m: m.update(space=[])),
        "config.json: a space of 10^9 channels": member(lambda m: m["space"].update(channels=10**9)),
        "config.json: a space of an unknown kind": member(lambda m: m["space"].update(kind="x")),
        "config.json is cut off": cut(file),
        "config.json is a folder": as_folder(file),
        "config.json: nested thousands deep": put(file, DEEP),
        "weights are missing": without("ensemble/model.safetensors"),
        "weights are another's": lambda folder: shutil.copy(
            folder / "net.safetensors", folder / "ensemble/model.safetensors"
        ),
        "weights are a folder": as_folder("ensemble/model.safetensors"),
    }.items():
        yield Case("saved ensembles", name, line, change)


def architectures() -> Iterator[Case]:
    """Architectures: strings, digits, genotypes, residual ones, sizes."""
    for text in (
        "~", "|~0|", "|none~1|", "|none~0|+|none~0|", "|none~1|+|none~0|none~1|", "|none~0|+|none~0|none~1|+", "|none~00|",
        "|none~-1|+|none~0|none~1|+|none~0|none~1|none~2|", "|nöne~0|+|none~0|none~1|+|none~0|none~1|none~2|", "9", "999999", "12345",
        "²³²³²³", "٣٢٣١٣٣", DIGITS, "0" * 100_000, "|none~0|" * 2000, "|none~٠|+|none~0|none~1|+|none~0|none~1|none~2|",
        "Genotype()", "Genotype(", "Genotype(normal=3)", "Genotype(normal=[], normal_concat=[], reduce=[], reduce_concat=[])",
        "Genotype(normal=[('x', 0)], normal_concat=[2], reduce=[], reduce_concat=[])", "Genotype(__import__('os').getcwd())",
        f"Genotype(normal={DEEP})", f"Genotype(normal={'(' * 200}{')' * 200})", "Genotype(normal=" + "-" * 20000 + "1)",
        "Genotype(normal=[('skip_connect', True)] * 8, normal_concat=range(2, 6), reduce=[], reduce_concat=[])",
        f"Genotype(normal={DIGITS * 20})", "depths=", "depths=0", "depths=x", "depths=1,1,1,1", f"depths={DIGITS}", "depths=-1,2", "depths=²",
        "1:x", "0:0:0:0:0", "8:-8:8:8:8", f"{DIGITS}:8:8:8:8", "8:8:8:8:8:8.5", "٨:٨:٨:٨:٨", "8:", ":8",
    ):  # fmt: skip
        yield Case("architectures", text[:60], ["info", text])
    for text in ("323133", "", "x", "9" * 400, "3231", "٣٢٣١٣٣", "Genotype()", "|none~0|"):
        line = ["run", "digits", *TINY[:2], "search=given", f"search.architecture='{text}'", "space.num_nodes=5"]
        yield Case("architectures", f"search.architecture={text[:30]}", line)


def spaces() -> Iterator[Case]:
    """Declarations of search spaces."""
    good = 'kind = "cell"\nnum_nodes = 4\noperations = ["none", "skip_connect", "nor_conv_3x3"]\nchannels = 4\n'
    line = ["run", "digits", "space=space.toml"]
    for name, text in {
        "empty": "", "no kind": good.replace("kind", "sort"), "an unknown kind": good.replace('"cell"', '"cel"'),
        "a kind that is a number": good.replace('"cell"', "3"), "a kind in another folder": good.replace('"cell"', '"../cell"'),
        "a private kind": good.replace('"cell"', '"_decided"'), "no operations": good.replace("operations", "operation"),
        "an unknown operation": good.replace('"none"', '"nor_conv_9x9"'), "operations given twice": good.replace('"none"', '"skip_connect"'),
        "40 nodes": good.replace("= 4\noper", "= 40\noper"), "a million nodes": good.replace("= 4\noper", "= 1000000\noper"),
        "a million channels": good.replace("channels = 4", "channels = 1000000"), "-1 channels": good.replace("channels = 4", "channels = -1"),
        "400 digits of channels": good.replace("channels = 4", f"channels = {DIGITS}"), "true channels": good.replace("channels = 4", "channels = true"),
        "channels that are words": good.replace("channels = 4", 'channels = "4"'), "channels that are infinite": good.replace("channels = 4", "channels = inf"),
        "an unknown key": good + "width = 3\n", "a key given twice": good + "channels = 3\n", "nested thousands deep": good + f"x = {DEEP}\n",
        "30 stages": good + "stages = 30\n", "no TOML": "{}", "no text": b"\xff\xfe", "a stride of 0": good + "stem_stride = 0\n",
        "operations that are numbers": good.replace('"none"', "3"),
    }.items():  # fmt: skip
        yield Case("space declarations", name, line, put("space.toml", text))
    yield Case("space declarations", "a folder", line, as_folder("space.toml"))
    yield Case("space declarations", "a link to itself", line, as_loop("space.toml"))
    yield Case("space declarations", "missing", line, without("space.toml"))
    darts = ["run", "digits", "search.epochs=1"]
    for override in ("space={name='darts',channels=1000000}", "space={name='darts',num_cells=0}", "space={name='darts',final_channels=-1}",
                     "space={name='darts',num_cells=1000000}", "space={name='robust-resnet-small',x=1}", "space={name='nasbench201-size',channels=[]}",
                     "space={name='nasbench201-size',channels=[0]}", "space={name='robust-resnet-small',depths=[[]]}"):  # fmt: skip
        yield Case("space declarations", override, [*darts, override])


# Giving them ----------------------------------------------------------------------------------------------------------

KINDS = (
    recipes, words, run_folders, attack_folders, tables, weights_files, models, data_folders, calls, ensembles,
    architectures, spaces,
)  # fmt: skip


def listing(folder: Path) -> dict[str, str]:
    """Return a digest of every file in a folder, links and other things by what they are."""
    found = {}
    for root, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            key = os.fsdecode(os.path.relpath(path, os.fsencode(folder)))
            if ALLOWED.search(key):
                continue
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    found[key] = hashlib.sha256(file.read()).hexdigest()
            else:
                found[key] = "folder" if os.path.isdir(path) else "other"
    return found


def python(code: str) -> int:
    """Run a Python call as a user would; return 2 for an InputError, whose sentence goes to stderr."""
    import torch
    from torch import nn

    import robust_nas as rn

    torch.manual_seed(0)
    data = rn.datasets.load("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    other = nn.Sequential(nn.Flatten(), nn.Linear(100, 10))
    nan_net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nan_net[1].weight.data.fill_(float("nan"))
    images, labels = data.test.images[:8], data.test.labels[:8]
    given = {"rn": rn, "torch": torch, "data": data, "net": net, "other": other, "nan_net": nan_net}
    given |= {"images": images, "labels": labels, "threat": rn.ThreatModel(epsilon=0.1)}
    try:
        exec(code, given)
    except rn.InputError as error:
        print(f"robust-nas: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def child(case: Case, folder: Path, out: Path) -> int:
    """Give a bad input to robust-nas in this process, whose output goes to files."""
    if os.getuid() == 0 and "permission" in case.name:
        os.setgid(65534)
        os.setuid(65534)
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (GIB << 30, GIB << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    spent = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (spent + SECONDS, spent + SECONDS + 5))
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 (for the rest of the process)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.path.insert(0, "")
    try:
        return python(case.words) if isinstance(case.words, str) else command(case.words)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()


def give(case: Case, base: Path, scratch: Path) -> dict[str, Any]:
    """Return the outcome of one bad input: why it did not hold, "" if it did, and the sentence."""
    folder = scratch / "work"
    shutil.copytree(base, folder, symlinks=True)
    case.change(folder)
    if "permission" in case.name and os.getuid() == 0:
        scratch.chmod(0o777)
        for root, folders, files in os.walk(folder):
            for name in (".", *folders, *files):
                os.chown(os.path.join(root, name), 65534, 65534, follow_symlinks=False)
    before, started = listing(folder), time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = child(case, folder, scratch)
        finally:
            os._exit(code & 0xFF)
    status: int | None = None
    while time.monotonic() - started < PATIENCE:
        done, waited = os.waitpid(pid, os.WNOHANG)
        if done:
            status = waited
            break
        time.sleep(0.005)
    else:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    seconds = time.monotonic() - started
    said = (scratch / "stderr").read_text(errors="backslashreplace") if (scratch / "stderr").exists() else ""
    sentences = [line for line in said.splitlines() if line.startswith("robust-nas: ")]
    after = listing(folder)
    changed = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    code = None if status is None else os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        status = None
    last = (said.strip().splitlines() or [""])[-1][:160]
    why = ""
    if status is None:
        why = f"no end after {SECONDS} s"
    elif "Traceback" in said:
        why = f"traceback: {last}"
    elif code == 0 and case.may_work:
        return {"kind": case.kind, "name": case.name, "why": "", "sentence": "", "seconds": round(seconds, 2)}
    elif code != 2:
        why = f"ended with {code}"
    elif len(sentences) != 1 or not re.fullmatch(r".{12,1500}[.?]", sentences[0].removeprefix("robust-nas: ")):
        why = f"{len(sentences)} sentences: {' / '.join(sentences)[:200]}"
    elif changed:
        why = f"changed {', '.join(changed[:3])}{' ...' if len(changed) > 3 else ''}"
    with contextlib.suppress(OSError):
        for root, folders, _ in os.walk(folder):
            for name in folders:
                with contextlib.suppress(OSError):
                    os.chmod(os.path.join(root, name), 0o700)
    return {
        "kind": case.kind, "name": case.name, "why": why, "sentence": (sentences or [last])[0], "seconds": round(seconds, 2),
    }  # fmt: skip


def drawn(cases: list[Case], sample: int | None) -> list[Case]:
    """At most so many of the cases, in their order: the same ones at each call."""
    if sample is None or len(cases) <= sample:
        return cases
    chosen = random.Random(0).sample(range(len(cases)), sample)
    return [cases[place] for place in sorted(chosen)]


def run(out: Path, kinds: list[str], only: str | None, sample: int | None) -> None:
    """Give the bad inputs, and write what became of them, kind by kind."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in ("RANK", "WORLD_SIZE", "ROBUST_NAS_TRACEBACK"):
        os.environ.pop(name, None)
    home = Path(tempfile.mkdtemp(prefix="bad-inputs-"))
    os.environ["ROBUST_NAS_HOME"] = str(home / "home")
    home.chmod(0o755)
    base = home / "base"
    base.mkdir()
    prepare(base)
    # Imported once, here: the children share them.
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import robust_nas
    from robust_nas.integrations import vnnlib  # noqa: F401
    from robust_nas.report import explorer, html  # noqa: F401

    print(f"robust-nas at {Path(robust_nas.__file__).parent}", file=sys.stderr)
    found = []
    for group in KINDS:
        cases = drawn(list(group()), sample)
        if kinds and cases[0].kind not in kinds:
            continue
        for case in cases:
            if only and only not in case.name:
                continue
            scratch = home / "case"
            scratch.mkdir()
            found.append(give(case, base, scratch))
            shutil.rmtree(scratch, ignore_errors=True)
            if found[-1]["why"]:
                print(f"{case.kind}: {case.name}: {found[-1]['why']}", flush=True)
            elif only:
                print(f"{case.kind}: {case.name}: {found[-1]['sentence']}", flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
    shutil.rmtree(home, ignore_errors=True)
    print(f"{sum(not item['why'] for item in found)} of {len(found)} held")


def table(path: Path, before: Path | None) -> None:
    """Print a table of the kinds of bad inputs, how many were tried and how many hold, and those that do not by name."""
    found = json.loads(path.read_text())
    earlier = {(item["kind"], item["name"]): item for item in json.loads(before.read_text())} if before else None
    print(f"| mistake in | tried |{' held before |' if earlier else ''} hold |")
    print(f"|---|---|{'---|' if earlier else ''}---|")
    for kind in [*dict.fromkeys(item["kind"] for item in found), ""]:
        own = [item for item in found if kind in ("", item["kind"])]
        held = sum(not item["why"] for item in own)
        old = f" {sum(not earlier[item['kind'], item['name']]['why'] for item in own)} |" if earlier else ""
        print(f"| {kind or 'all'} | {len(own)} |{old} {held} |")
    failing = [item for item in found if item["why"]]
    print("\nDo not hold:\n" if failing else "\nAll hold.")
    for item in failing:
        print(f"- {item['kind']}: {item['name']}: {item['why']}")


def main() -> None:
    """Read the words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    giving = verbs.add_parser("run")
    giving.add_argument("--out", type=Path, required=True)
    giving.add_argument("--kind", nargs="*", default=[])
    giving.add_argument("--only")
    giving.add_argument("--sample", type=int)
    printing = verbs.add_parser("table")
    printing.add_argument("path", type=Path)
    printing.add_argument("--before", type=Path)
    given = parser.parse_args()
    run(given.out.absolute(), given.kind, given.only, given.sample) if given.verb == "run" else table(
        given.path, given.before
    )


if __name__ == "__main__":
    main()
