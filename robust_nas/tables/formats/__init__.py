"""Formats of published tables' files; `formats.get("nas-robbench-201-web")` finds one.

One file is one format: a frozen, keyword-only dataclass with `read`. A format knows the place of the numbers; the
table's card has their meaning. On the command line a name has hyphens, where the file's has underscores.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from robust_nas.core.registry import Group, Named
from robust_nas.tables.cards import Card

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Published:
    """A published table, as it is read.

    Args:
        index: the digits forms of all architectures, in the source's own numbering, from 0 on.
        measures: one table for each quantity that was measured (data set, attack, epsilon or severity, seed), with one
            row for each class of equal architectures that has a value, in the order of the published index. Made as
            they are asked for, and once.
        left_out: the source's names of what it has and its card does not explain, so that it is not read.
    """

    index: tuple[str, ...]
    measures: Iterable[pa.Table]
    left_out: tuple[str, ...] = ()


@runtime_checkable
class Format(Protocol):
    """A format of published tables."""

    def read(self, folder: Path, card: Card) -> Published:
        """Read the files of `card`'s table from `folder`.

        Raises:
            InputError: if a file is missing or damaged, or its classes of equal architectures are not ours; the last
                two also while the measures are being taken.
        """


_GROUP = Group(__name__, "Format", "read")


def names() -> list[str]:
    """Return the names of all formats, with hyphens, sorted."""
    return sorted(name.replace("_", "-") for name in _GROUP.names())


def get(name: str) -> type[Any]:
    """Return the format called `name`, with hyphens or underscores; a dotted name is imported as it is.

    Raises:
        InputError: if there is no such format.
    """
    return component(Named(name), "The name of a format")


def component(name: str, where: str) -> type[Any]:
    """Return a format as `get` does; a dotted name that a card has only if `registry.check_code` lets it pass."""
    return _GROUP.component(name if "." in name else name.replace("-", "_"), where)
