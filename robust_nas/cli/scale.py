"""The commands of `robust-nas scale`: studies of depth and width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robust_nas.cli import slow
from robust_nas.cli.arguments import DATA_ROOT, OVERRIDES, given
from robust_nas.core.commands import Commands, argument

app = Commands("robust-nas scale", "Train networks of many depths and widths adversarially, and see what size pays.")

GRID = (
    OVERRIDES,
    argument("--depths", metavar="LIST", required=True, help="layers with weights, such as 20,38,74,146"),
    argument("--widths", metavar="LIST", help="multipliers of channels, such as 1,2; of each stage: 1-1-1.5-2 (1)"),
    argument(
        "--net",
        metavar="NAME",
        help="line of networks: resnet, preact-resnet, cifar-resnet, wrn (cifar-resnet up to 64 pixels, else resnet)",
    ),
    argument("--options", metavar="TEXT", help="the rest of the networks' strings, such as 'norm=group:8 se=relu'"),
    argument("--data", metavar="NAME", required=True, help="a data set with a recipe, or a folder of class folders"),
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
    *GRID,
    examples=["robust-nas scale plan --depths 20,38,74,146 --widths 1,2 --data cifar10 --train pgd_at --seeds 3"],
)
def plan(overrides: Sequence[str], **options: Any) -> None:
    """Say what each network of a grid costs, and what fits into memory, before anything is trained."""
    grid = slow.scaling.from_words(overrides, **given(options))
    slow.answer.answer(lambda: str(grid), grid)
