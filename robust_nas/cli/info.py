"""`robust-nas list` and `robust-nas info`, which print what `listing` finds."""

from __future__ import annotations

from robust_nas.core.commands import argument, command
from robust_nas.core.text import visible


@command(argument("what", metavar="KIND", help="spaces, attacks, trainings, searches, tables, ..."))
def list_(what: str) -> None:
    """List what there is of a kind."""
    from robust_nas.cli import listing

    for name in listing.names(what):
        print(name)


@command(argument("thing", metavar="THING", help="an architecture, a run folder, a component or a table"))
def info(thing: str) -> None:
    """Say what an architecture, a run folder, a component or a table is."""
    from robust_nas.cli import listing

    print(visible(listing.describe(thing)))
