"""Situations of public bug reports on comparable tools, set up anew against robust_nas.

    python benchmarks/situations run                          # all of them, a line each; a few minutes on one core
    python benchmarks/situations run overlapping CRLF         # those with one of these words in their name
    python benchmarks/situations run --out after.json         # and what happened, in a file
    python benchmarks/situations table after.json             # by kind, as Markdown
    python benchmarks/situations table before.json after.json # two states beside each other
    python benchmarks/situations list                         # every situation with its report, as Markdown

Each situation is one that people reported of another tool: `owner/repository#number` is the thread. What is taken from
it is the situation alone. It holds where the answer is right, by the same thing computed plainly, a closed form or
another library, or where it is refused in one sentence that says what is wrong. PYTHONPATH=CHECKOUT in front of the
command measures another state of the package. Written for one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from checks import SITUATIONS, Situation, short

import robust_nas as rn

FILES = (
    *("models", "pixels", "labels", "attacks", "bounds", "smoothing"),
    *("spaces", "studies", "folders", "training", "export", "files"),
)
"""The files of situations, a kind each, in the order in which they are measured."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a situation.

    Args:
        kind: the situation's.
        name: the situation's.
        report: the situation's.
        failed: what happened, if it does not hold.
        seconds: what it took.
    """

    kind: str
    name: str
    report: str
    failed: str
    seconds: float


def measure(chosen: Situation) -> Outcome:
    """Set a situation up in an empty folder, and return what came of it."""
    started, failed = time.monotonic(), ""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder, _here(Path(folder)):
        try:
            chosen.check(Path(folder))
        except AssertionError as error:
            failed = str(error) or "an assertion of the package"
        except (Exception, SystemExit) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = (
                "" if isinstance(error, rn.InputError) else f"{type(error).__name__} in {Path(place.filename).name}: "
            )
            failed = f"{kind}{error}"
    return Outcome(chosen.kind, chosen.name, chosen.report, short(failed), time.monotonic() - started)


@contextlib.contextmanager
def _here(folder: Path) -> Iterator[None]:
    """Be in a folder, with the package's own files in it too."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with contextlib.chdir(folder), mock.patch.dict(os.environ, ROBUST_NAS_HOME=str(folder / "home")):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def run(words: Sequence[str], out: Path | None) -> None:
    """Measure the situations that have one of these words in their names, or all."""
    chosen = [each for each in SITUATIONS if not words or any(word.lower() in each.name.lower() for word in words)]
    outcomes = []
    for each in chosen:
        outcome = measure(each)
        outcomes.append(outcome)
        print(f"{'holds' if not outcome.failed else 'FAILS'} {outcome.seconds:5.1f} s  {outcome.name}", flush=True)
        if outcome.failed:
            print(f"        {outcome.report}: {outcome.failed}", flush=True)
    print(f"{sum(not outcome.failed for outcome in outcomes)} of {len(outcomes)} hold.")
    if out is not None:
        out.write_text(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=1), encoding="utf-8")


def table(files: Sequence[Path]) -> None:
    """Print what is in files of outcomes by kind, a column for each file, and what failed in any."""
    states = {path.stem: [Outcome(**row) for row in json.loads(path.read_text(encoding="utf-8"))] for path in files}
    last = [*states.values()][-1]
    print(f"| kind | tried | {' | '.join(f'hold, {name}' for name in states)} |")
    print(f"|---|---|{'---|' * len(states)}")
    kinds = list(dict.fromkeys(outcome.kind for outcome in last))
    held = {name: Counter(each.kind for each in found if not each.failed) for name, found in states.items()}
    for kind in kinds:
        cells = " | ".join(str(held[name][kind]) for name in states)
        print(f"| {kind} | {sum(outcome.kind == kind for outcome in last)} | {cells} |")
    print(f"| all | {len(last)} | {' | '.join(str(sum(held[name].values())) for name in states)} |")
    rows = {name: {outcome.name: outcome.failed for outcome in found} for name, found in states.items()}
    failing = [outcome for outcome in last if any(found.get(outcome.name) for found in rows.values())]
    if failing:
        print(f"\n| situation | report | {' | '.join(f'what happened, {name}' for name in states)} |")
        print(f"|---|---|{'---|' * len(states)}")
    for outcome in failing:
        said = (found.get(outcome.name, "not tried") or "holds" for found in rows.values())
        cells = " | ".join(text.replace("|", "\\|") for text in said)
        print(f"| {outcome.name} | {outcome.report} | {cells} |")


def listed() -> None:
    """Print every situation with the address of its report."""
    print("| kind | situation | report |\n|---|---|---|")
    for each in SITUATIONS:
        print(f"| {each.kind} | {each.name} | [{each.report}]({each.address}) |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run", help="measure situations")
    running.add_argument("words", nargs="*", help="parts of their names; all of them, if none is given")
    running.add_argument("--out", type=Path, help="a file for the outcomes")
    verbs.add_parser("table", help="print outcomes as Markdown").add_argument("files", nargs="+", type=Path)
    verbs.add_parser("list", help="print the situations as Markdown")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in FILES:
        importlib.import_module(name)
    if given.verb == "run":
        run(given.words, given.out)
    elif given.verb == "table":
        table(given.files)
    else:
        listed()


if __name__ == "__main__":
    main()
