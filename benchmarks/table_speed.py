"""How fast the table answers, beside reading the published JSON and looking numbers up in its dictionary.

    robust-nas table import --name nas-robbench-201 --source FOLDER      # or: robust-nas table fetch nas-robbench-201
    python benchmarks/table_speed.py FOLDER                              # the folder with the published files

Every pair is run in turns and the ratio is the median over the turns, so that a machine whose speed drifts does not
decide it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from robust_nas import tables
from robust_nas.architectures.cell import Architecture

NAME = "nas-robbench-201"
COLUMN: dict[str, Any] = {"dataset": "cifar10", "attack": "pgd", "epsilon": "8/255"}
LOOKUPS = 1_000_000


def read_published(folder: Path) -> dict[str, Any]:
    """Parse the published table, as its page does."""
    text = (folder / "NAS-RobBench-201_html.json").read_text()
    found: dict[str, Any] = json.loads(text[text.index("{") :])
    return found


def look_up(published: dict[str, Any], names: list[str], column: int) -> list[float]:
    """Look up accuracies in the published dictionary, one after the other: an entry is a row, or the name of one."""
    found = []
    for name in names:
        row = published[name]
        if isinstance(row, str):
            row = published[row]
        found.append(row[column])
    return found


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def process(words: list[str]) -> tuple[float, float]:
    """Return the seconds and the peak MB of a process of this interpreter."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def report(what: str, pairs: list[tuple[float, float]]) -> None:
    """Print the median ratio of the first to the second, and the medians."""
    ratios = [first / second for first, second in pairs]
    first, second = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(
        f"{what}: {statistics.median(ratios):.3g} (from {min(ratios):.3g} to {max(ratios):.3g}); "
        f"{1e3 * first:.4g} ms and {1e3 * second:.4g} ms"
    )


def main() -> None:
    """Print the ratios."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-") or not tables.place(NAME).is_file():
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    question = ["-m", "robust_nas", "table", "query", NAME, "323133"]
    peer = ["-c", "import pyarrow.parquet"]
    runs = [(process(question), process(peer)) for _ in range(16)][1:]
    report("a query process / import pyarrow.parquet", [(ours[0], theirs[0]) for ours, theirs in runs])
    print(f"peak memory of a query process: {max(ours[1] for ours, _ in runs):.0f} MB")

    def first_answer() -> float:
        return tables.load(NAME).query("323133", **COLUMN).mean

    turns = 15
    first_answer()
    report(
        "opening the table / parsing the published JSON",
        [(seconds(lambda: tables.load(NAME)), seconds(lambda: read_published(folder))) for _ in range(turns)],
    )
    report(
        "opening the table and a first query / parsing the published JSON",
        [(seconds(first_answer), seconds(lambda: read_published(folder))) for _ in range(turns)],
    )

    table = tables.load(NAME)
    strings = [str(cell) for cell in Architecture.enumerate()]

    def query_all() -> None:
        for string in strings:
            table.query(string, **COLUMN)

    unseen = 1e6 * seconds(query_all) / len(strings)
    seen = 1e6 * statistics.median(seconds(query_all) for _ in range(5)) / len(strings)
    print(f"one warm query: {seen:.1f} microseconds, {unseen:.1f} for a string that was not asked for before")

    published = read_published(folder)
    column = published[""].index("cifar10#val_pgd_8_acc")
    numbers = np.random.default_rng(0).integers(0, len(table.index), LOOKUPS)
    names = [str(number) for number in numbers]
    # The published file has the noise of float32.
    assert np.abs(table.query_many(numbers, **COLUMN) - look_up(published, names, column)).max() < 1e-7
    report(
        f"looking up {LOOKUPS:,} numbers in the published dictionary / query_many",
        [
            (seconds(lambda: look_up(published, names, column)), seconds(lambda: table.query_many(numbers, **COLUMN)))
            for _ in range(turns)
        ],
    )


if __name__ == "__main__":
    main()
