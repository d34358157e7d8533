"""The commands of `robust-nas scale`: studies of depth and width."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robust_nas.cli import slow
from robust_nas.cli.arguments import DATA_ROOT, OUT, OVERRIDES, given, parted
from robust_nas.cli.ending import going_on
from robust_nas.cli.job import progress
from robust_nas.core.commands import Commands, argument
from robust_nas.core.errors import InputError

app = Commands("robust-nas scale", "Train networks of many depths and widths adversarially, and see what size pays.")

GRID = (
    argument("--depths", metavar="LIST", help="layers with weights, such as 20,38,74,146"),
    argument("--widths", metavar="LIST", help="multipliers of channels, such as 1,2; of each stage: 1-1-1.5-2 (1)"),
    argument(
        "--net",
        metavar="NAME",
        help="line of networks: resnet, preact-resnet, cifar-resnet, wrn (cifar-resnet up to 64 pixels, else resnet)",
    ),
    argument("--options", metavar="TEXT", help="the rest of the networks' strings, such as 'norm=group:8 se=relu'"),
    argument("--data", metavar="NAME", help="a data set with a recipe, or a folder of class folders"),
    DATA_ROOT,
    argument("--train", metavar="METHOD", help="training method, such as pgd_at (the recipe's)"),
    argument("--threat", metavar="NORM:EPSILON", help="such as linf:8/255 (the recipe's)"),
    argument("--seeds", metavar="N|LIST", help="number of seeds, or the seeds: 0,1,2 (1)"),
    argument("--norms", metavar="LIST", help="varies train.norm: plain, mixture, separate"),
    argument("--clean-images", metavar="LIST", help="varies train.method.clean_images: 0,0.5,1"),
    argument("--epochs", metavar="LIST", help="varies train.epochs: 5,10,20"),
    argument("--vary", action="append", metavar="KEY=LIST", help="varies a setting: train.awp=0,0.01; repeatable"),
    argument("--yes", action="store_true", help="more than 10,000 cells are meant"),
)
"""The arguments of a grid: those of `scaling.from_words`."""


@app.command(
    OVERRIDES,
    *GRID,
    argument("--size", type=int, metavar="PIXELS", help="a side of the images; with the next two, no data is read"),
    argument("--classes", type=int, metavar="N", help="classes"),
    argument("--num-images", type=int, metavar="N", help="images to train on"),
    argument("--memory", type=float, metavar="GIB", help="memory that there is (this device's)"),
    argument("--seconds", type=float, help="to be spent on timing, about (5)"),
    argument(
        "--no-attacks", dest="attacks", action="store_false", default=None, help="leave out the attacks on test images"
    ),
    examples=[
        "robust-nas scale plan --depths 20,38,74,146 --widths 1,2 --data cifar10 --train pgd_at --seeds 3",
        "robust-nas scale plan --net resnet --depths 152,638 --data intriguing-imagenet --size 224 --classes 1000 "
        "--num-images 1280167",
    ],
)
def plan(overrides: Sequence[str], **options: Any) -> None:
    """Say what each network of a grid costs, and what fits into memory, before anything is trained."""
    chosen = given(options)
    missing = [f"--{name}" for name in ("data", "depths") if name not in chosen]
    if missing:
        raise InputError(f"A grid needs {' and '.join(missing)}, such as --depths 20,38,74 --data cifar10.")
    own = {name: chosen.pop(name) for name in PLAN if name in chosen}
    grid = slow.scaling.from_words(overrides, **chosen, size=own.get("size"))
    found = slow.scaling.plan(grid, **own, progress=progress())
    slow.answer.answer(found.text, found)


PLAN = ("size", "classes", "num_images", "memory", "seconds", "attacks")
"""The arguments of `scaling.plan` that are none of a grid."""


@app.command(
    argument(
        "words", nargs="*", metavar="STUDY|KEY=VALUE", help="a study to go on with, or to make; settings of all cells"
    ),
    *GRID,
    argument("--certify", action="store_true", default=None, help="certify the networks, too"),
    argument(
        "--workers", type=int, default=1, metavar="N", help="cells side by side, each in a process of its own (1)"
    ),
    argument("--memory", type=float, metavar="GIB", help="memory that each may take (all there is)"),
    argument("--retry", action="store_true", help="measure the cells again that did not finish"),
    OUT,
    examples=[
        "robust-nas scale run --depths 8,14,20,26 --widths 0.25,0.5 --data digits --seeds 3 --workers 2",
        "robust-nas scale run runs/scale-1a2b3c4d",
    ],
)
def run(words: Sequence[str], out: Path, workers: int, memory: float | None, retry: bool, **options: Any) -> None:
    """Train and attack every network of a grid, each in a run folder; a second process on the folder helps."""
    chosen, (names, overrides) = given(options), parted(words)
    if names[1:]:
        raise InputError(f"'robust-nas scale run' takes one study, but got {', '.join(names)}.")
    asked = {**chosen, "overrides": overrides} if chosen or overrides else {}
    typed = f"robust-nas {shlex.join(sys.argv[1:])}"
    study = slow.scaling.begun(Path(names[0]) if names else None, asked, out, typed)
    with going_on(f"Go on with: robust-nas scale run {study}"):
        slow.scaling.measure(study, progress(), workers=workers, memory=memory, retry=retry)
    _report(study, None)


@app.command(
    argument("study", type=Path, metavar="STUDY", help="the folder of a study"),
    argument("--budget", type=float, metavar="FLOPS", help="training FLOPs, for the best size within them: 1e15"),
    examples=["robust-nas scale report runs/scale-1a2b3c4d"],
)
def report(study: Path, budget: float | None) -> None:
    """Fit robust and clean error over size and cost, and write the study's page."""
    _report(study, budget)


def _report(study: Path, budget: float | None) -> None:
    text, facts, _ = slow.scaling.report(study, budget)
    slow.answer.answer(text, facts)
