"""`robust-nas list` and `robust-nas info`, which print the answers of `listing`."""

from __future__ import annotations

from pathlib import Path

from robust_nas.cli import slow
from robust_nas.core.commands import argument, command
from robust_nas.core.errors import InputError


@command(
    argument(
        "what", nargs="?", metavar="KIND", help="runs, recipes, spaces, attacks, tables, ...; none, for all kinds"
    ),
    argument("--out", type=Path, metavar="FOLDER", help="with runs: the folder of the run folders (runs)"),
    examples=["robust-nas list runs", "robust-nas list attacks"],
)
def list_(what: str | None, out: Path | None) -> None:
    """List the runs there are, or the components of a kind."""
    if out is not None and what != "runs":
        raise InputError(f"--out is for 'robust-nas list runs', but got {what or 'no kind'}; leave it out.")
    listing = slow.listing
    if what is None:
        slow.answer.answer(listing.kinds, listing.names_by_kind)
    elif what == "runs":
        folder = out or Path("runs")
        rows = slow.run_list.list_runs(folder)
        slow.answer.answer(lambda: listing.of_runs(folder, rows), rows)
    else:
        names = listing.names(what)
        slow.answer.answer("\n".join(names), names)


@command(
    argument("thing", metavar="THING", help="an architecture, a run folder, a component or a table"),
    examples=["robust-nas info pgd", "robust-nas info runs/RUN"],
)
def info(thing: str) -> None:
    """Describe an architecture, a run folder, a component or a table."""
    slow.answer.answer(lambda: slow.listing.describe(thing), lambda: slow.listing.facts(thing))
