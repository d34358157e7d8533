"""`robust-nas list` and `robust-nas info`, which print the answers of `listing`."""

from __future__ import annotations

from pathlib import Path

from robust_nas.cli import slow
from robust_nas.core.commands import argument, command
from robust_nas.core.errors import InputError
from robust_nas.core.text import visible


@command(
    argument(
        "what", nargs="?", metavar="KIND", help="runs, recipes, spaces, attacks, tables, ...; none, for all kinds"
    ),
    argument("--out", type=Path, metavar="FOLDER", help="with runs: the folder of the run folders (runs)"),
)
def list_(what: str | None, out: Path | None) -> None:
    """List the runs there are, or the components of a kind."""
    if out is not None and what != "runs":
        raise InputError(f"--out is for 'robust-nas list runs', but got {what or 'no kind'}; leave it out.")
    if what is None:
        print(slow.listing.kinds())
    elif what == "runs":
        folder = out or Path("runs")
        print(visible(slow.listing.of_runs(folder, slow.run_list.list_runs(folder))))
    else:
        for name in slow.listing.names(what):
            print(name)


@command(argument("thing", metavar="THING", help="an architecture, a run folder, a component or a table"))
def info(thing: str) -> None:
    """Describe an architecture, a run folder, a component or a table."""
    print(visible(slow.listing.describe(thing)))
