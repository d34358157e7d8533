"""The commands of `robust-nas table`. They import neither torch nor pandas, so that they answer in a moment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robust_nas.cli import slow
from robust_nas.core.commands import Commands, argument, print_answer
from robust_nas.core.errors import InputError
from robust_nas.core.text import visible

if TYPE_CHECKING:
    from robust_nas.tables.answers import Answer

app = Commands("robust-nas table", "Ask a table of robust accuracies, or bring one here.")

TABLE = argument("table", metavar="TABLE", help="a published table, such as nas-robbench-201, or a folder: runs/table")
WORDS = argument("words", nargs="*", default=(), metavar="COLUMN=VALUE", help="such as dataset=cifar10 attack=pgd")
LABEL = argument(
    "words",
    nargs="*",
    default=(),
    metavar="COLUMN=VALUE",
    help="and a column's label: pgd@8/255 dataset=cifar10, or 'flops<50'",
)
JSON = argument("--json", action="store_true", help="print JSON, with fractions and every column")
CSV = argument("--csv", action="store_true", help="print CSV, with fractions and every column")


@app.command(
    argument("table", metavar="TABLE", help="a published table or a folder"),
    examples=["robust-nas table info nas-robbench-201"],
)
def info(table: str) -> None:
    """Describe a table: its source, its making, its columns and its caveats."""
    if table in slow.cards.names() or table.endswith(".toml"):
        card = slow.cards.load(table)
        slow.answer.answer(card.describe, card)
    else:
        found = slow.answers.overview(slow.tables.load(table))
        slow.answer.answer(found.text, found.facts)


@app.command(
    argument("table", metavar="TABLE", help="a published table"), examples=["robust-nas table fetch nas-robbench-201"]
)
def fetch(table: str) -> None:
    """Download a published table from its authors, check it, and convert it; goes on where it was cut off."""
    place = slow.transfer.fetch(table)
    slow.answer.answer(f"The table is at {place}.", {"table": place})


@app.command(
    argument("--source", type=Path, required=True, metavar="FOLDER", help="the folder with the published files"),
    argument("--format", help="their format; 'robust-nas list formats'"),
    argument("--name", help="the name of their table; 'robust-nas list tables'"),
    argument("--no-check", action="store_true", help="do not compare the files with the published sha256"),
    name="import",
    examples=["robust-nas table import --name nas-robbench-201 --source FOLDER"],
)
def import_(source: Path, format: str | None, name: str | None, no_check: bool) -> None:
    """Convert local copies of a published table's files."""
    place = slow.transfer.import_published(source, format=format, name=name, check=not no_check)
    slow.answer.answer(f"The table is at {place}.", {"table": place})


@app.command(
    TABLE,
    argument("architecture", metavar="ARCHITECTURE", help="the string or digits form, or the published number"),
    LABEL,
    JSON,
    CSV,
    examples=[
        "robust-nas table query nas-robbench-201 323133",
        "robust-nas table query nas-robbench-201 323133 pgd@8/255 dataset=cifar10",
    ],
)
def query(table: str, architecture: str, words: Sequence[str], json: bool, csv: bool) -> None:
    """Print a table's entry of an architecture, or of the equivalent one that was measured."""
    _print(slow.answers.query(slow.tables.load(table), architecture, words), json, csv)


@app.command(
    TABLE,
    LABEL,
    argument("-n", "--count", type=int, default=10, help="architectures (10)"),
    JSON,
    CSV,
    examples=["robust-nas table top nas-robbench-201 pgd@8/255 dataset=cifar10"],
)
def top(table: str, words: Sequence[str], count: int, json: bool, csv: bool) -> None:
    """Print the most accurate architectures in one column."""
    if count < 1:
        raise InputError(f"--count must be at least 1, but got {count}.")
    _print(slow.answers.top(slow.tables.load(table), words, count), json, csv)


@app.command(
    TABLE,
    argument(
        "words", nargs="*", default=(), metavar="LABEL|COLUMN=VALUE", help="clean pgd@8/255 flops dataset=cifar10"
    ),
    JSON,
    CSV,
    examples=["robust-nas table pareto nas-robbench-201 clean pgd@8/255 dataset=cifar10"],
)
def pareto(table: str, words: Sequence[str], json: bool, csv: bool) -> None:
    """Print the architectures that no other beats in every one of several columns, such as clean and pgd@8/255."""
    _print(slow.answers.pareto(slow.tables.load(table), words), json, csv)


@app.command(
    TABLE,
    argument("words", nargs="+", metavar="ARCHITECTURE|LABEL|COLUMN=VALUE", help="two architectures or more"),
    JSON,
    CSV,
    examples=["robust-nas table compare nas-robbench-201 323133 333333 dataset=cifar10"],
)
def compare(table: str, words: Sequence[str], json: bool, csv: bool) -> None:
    """Test whether architectures differ by more than chance."""
    asked = slow.tables.load(table)
    labels = {column.label for column in asked.columns}
    architectures = [word for word in words if not ("=" in word or "@" in word or word in labels)]
    _print(slow.answers.compare(asked, architectures, [word for word in words if word not in architectures]), json, csv)


@app.command(
    TABLE,
    LABEL,
    argument("--plots", type=Path, metavar="FOLDER", help="draw them too: accuracies, correlations, main effects"),
    argument("--json", action="store_true", help="print JSON, with fractions"),
    examples=["robust-nas table stats nas-robbench-201 dataset=cifar10 --plots plots"],
)
def stats(table: str, words: Sequence[str], plots: Path | None, json: bool) -> None:
    """Print the columns' distributions, correlations and noise, and the effects of operations."""
    asked = slow.tables.load(table)
    print_answer(visible(slow.answers.stats(asked, words, as_json=json)))
    if plots is not None:
        criteria, labels = slow.answers.parse(words, labels=1)
        drawn = slow.table_plots.write_plots(asked, plots, *labels, **criteria)
        print(f"{len(drawn)} plots are in {plots}.", file=sys.stderr)


@app.command(
    TABLE,
    argument("--out", type=Path, required=True, metavar="FILE", help="the page, FILE.html"),
    examples=["robust-nas table explore nas-robbench-201 --out explore.html"],
)
def explore(table: str, out: Path) -> None:
    """Write one page to explore a table; it needs no network."""
    if out.suffix != ".html":
        raise InputError(f"The page is written as FILE.html, but got '{out}'; change its ending.")
    page = slow.explorer.write_explorer(slow.tables.load(table), out)
    slow.answer.answer(f"The page is {page}; open it in a browser.", {"page": page})


@app.command(
    TABLE,
    argument("out", type=Path, metavar="FILE", help="FILE.parquet, FILE.csv or FILE.json"),
    WORDS,
    examples=["robust-nas table export nas-robbench-201 rows.csv dataset=cifar10"],
)
def export(table: str, out: Path, words: Sequence[str]) -> None:
    """Write a table's rows, or those with some values, to a file."""
    rows = slow.tables.load(table).rows(**slow.answers.rows_asked(words))
    slow.transfer.export(rows, out)
    slow.answer.answer(f"{len(rows)} rows are in {out}.", {"file": out, "rows": len(rows)})


@app.command(
    argument("sources", type=Path, nargs="+", metavar="TABLE", help="folders of tables of one's own runs"),
    argument("--into", type=Path, required=True, metavar="FOLDER", help="the folder of the united table"),
    examples=["robust-nas table merge runs/table other-runs/table --into united"],
)
def merge(sources: Sequence[Path], into: Path) -> None:
    """Unite the tables of one's own runs, such as those of several machines."""
    written, total = slow.transfer.merge(sources, into)
    text = f"{written} networks were written to {into}, which has {total} now."
    slow.answer.answer(text, {"table": into, "written": written, "networks": total})


def _print(answer: Answer, json: bool, csv: bool) -> None:
    if json and csv:
        raise InputError("An answer is printed as JSON or as CSV, but got --json and --csv; give one of them.")
    print_answer(answer.json() if json else answer.csv() if csv else visible(answer.text()))
