"""`robust-nas list` and `robust-nas info`, which print the answers of `listing`."""

from __future__ import annotations

from robust_nas.cli import slow
from robust_nas.core.commands import argument, command
from robust_nas.core.text import visible


@command(
    argument("what", metavar="KIND", help="spaces, attacks, trainings, searches, tables, ..."),
    examples=["robust-nas list attacks"],
)
def list_(what: str) -> None:
    """List the components of a kind."""
    for name in slow.listing.names(what):
        print(name)


@command(
    argument("thing", metavar="THING", help="an architecture, a run folder, a component or a table"),
    examples=["robust-nas info pgd", "robust-nas info runs/RUN"],
)
def info(thing: str) -> None:
    """Describe an architecture, a run folder, a component or a table."""
    print(visible(slow.listing.describe(thing)))
