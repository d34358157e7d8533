"""`robust-nas attack`: a run's trained models by its recipe, or any models by the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robust_nas.cli import slow
from robust_nas.cli.arguments import DATA, DATA_ROOT, MODELS, NORMALISE, OUT, OUTPUTS, given, parted
from robust_nas.cli.ending import SAME, going_on
from robust_nas.cli.job import finish, progress, resumed
from robust_nas.core.commands import argument, command
from robust_nas.core.errors import InputError


@command(
    MODELS,
    DATA,
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
        "--epsilons", metavar="LIST", help="radii of the curve, with the threat's own: 0,2/255,8/255 (multiples of it)"
    ),
    argument(
        "--steps",
        metavar="LIST",
        help="numbers of steps, such as 10,100,2000: accuracy over the steps of one long PGD (not measured)",
    ),
    argument("--distances", metavar="NAME", help="attack that looks for the nearest adversarial examples, such as fab"),
    argument("--images", type=int, help="test images to attack, the first ones (all)"),
    NORMALISE,
    OUTPUTS,
    argument(
        "--no-checks",
        action="store_const",
        const=False,
        dest="checks",
        help="without the checks for gradient masking, which cost most of a small attack; the report says so",
    ),
    argument("--budget", action="store_true", help="before it starts, print the expected cost"),
    OUT,
    examples=[
        "robust-nas attack runs/RUN --budget",
        "robust-nas attack my_net.py:Net@weights.pt --data digits --threat linf:0.1 --images 100",
    ],
)
def attack(models: Sequence[str], budget: bool, out: Path, **options: Any) -> None:
    """Attack the trained models of a run by its recipe, or any models by the options."""
    chosen = given(options)
    if len(models) == 1 and not chosen and slow.run_folder.is_run(models[0]):
        finish(resumed(Path(models[0])), slow.pipeline.attack_after_costs if budget else slow.pipeline.attack)
        return
    names, overrides = parted(models)
    if not names:
        raise InputError("'robust-nas attack' takes a run folder or a model, such as package.module:attribute.")
    with going_on(SAME):
        settings = slow.attack_models.from_words(names, overrides, **chosen)
        folder = slow.attack_models.run(settings, out, progress(), sys.argv[1:], budget=budget)
    results = slow.results
    slow.answer.answer(lambda: results.of_attacked(folder), lambda: results.facts_of_attacked(folder))
