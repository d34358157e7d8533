"""The commands of `robust-nas proxies`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robust_nas.cli import slow
from robust_nas.cli.arguments import DATA_ROOT, OUT, given
from robust_nas.cli.ending import SAME, going_on
from robust_nas.cli.job import progress
from robust_nas.core.commands import Commands, argument

app = Commands("robust-nas proxies", "Score untrained networks; 'robust-nas list proxies' lists the scores.")


@app.command(
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
    argument(
        "--architectures", dest="num_architectures", type=int, metavar="N", help="random classes of the table (300)"
    ),
    argument("--seeds", type=int, help="initialisations and batches (3)"),
    argument("--batch-size", type=int, metavar="N", help="images that a score sees (32)"),
    OUT,
    examples=["robust-nas proxies rank nas-robbench-201 pgd@8/255 dataset=cifar10 --data digits --proxy snip"],
)
def rank(table: str, words: Sequence[str], out: Path, **options: Any) -> None:
    """Score random architectures of a table, and print how well the scores rank them."""
    opened = slow.tables.load(table)
    columns, overrides = slow.ranking.asked(opened, words)
    with going_on(SAME):
        scoring = slow.ranking.from_words(opened, columns, overrides, **given(options))
        found = slow.ranking.run(opened, columns, scoring, out, progress())
    slow.answer.answer(lambda: slow.ranking.text(found), found)
