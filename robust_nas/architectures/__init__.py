"""Architectures as text and numbers, free of torch.

A kind of architecture is one module here, with one class that inherits `AnyArchitecture`: it recognises its own text,
and reads it. `parse` finds them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from robust_nas.core.errors import InputError
from robust_nas.core.registry import Group
from robust_nas.core.text import escape


class AnyArchitecture(ABC):
    """An architecture of any kind of space; hashable, and equal to those with the same string.

    The defaults are those of an architecture of which no more is known than its string.
    """

    form: ClassVar[str]
    """The form of the text of its kind."""

    @abstractmethod
    def __str__(self) -> str:
        """Return the string form, which its space reads."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}.parse({str(self)!r})"

    def _repr_html_(self) -> str:
        return f"<code>{escape(str(self))}</code>"

    @classmethod
    @abstractmethod
    def recognises(cls, text: str) -> bool:
        """Whether a text is of this kind by its look; it may be malformed all the same."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> AnyArchitecture:
        """Read a text of this kind.

        Raises:
            InputError: naming what is wrong with it.
        """

    @classmethod
    def parse_with(cls, text: str, operations: Sequence[str]) -> AnyArchitecture:
        """Read a text where operations are these, in the order of their digits; only cells have digits."""
        return cls.parse(text)

    @property
    def canonical(self) -> str:
        """The computed function: equal for architectures that are one to a query-based search."""
        return str(self)

    @property
    def family(self) -> str:
        """The function class of its networks: equal for architectures whose trainings differ by chance alone."""
        return self.canonical

    @property
    def is_connected(self) -> bool:
        """Whether the output depends on the input."""
        return True

    @property
    def own_space(self) -> dict[str, Any] | None:
        """The table of the space of this architecture alone; None where its string does not say all of a network."""
        return None

    @property
    def parts(self) -> dict[str, str]:
        """The facts that a report lists by name, beside its string."""
        return {}

    def short(self, operations: Sequence[str]) -> str:
        """Return the shortest form where operations are these."""
        return str(self)

    def describe(self) -> str:
        """Return its forms and what it is made of, as lines."""
        return f"string     {self}"


_KINDS = Group(__name__, "AnyArchitecture", "recognises")


def kind_of(text: str) -> type[AnyArchitecture] | None:
    """Return the kind of architecture that a text is of by its look; None if it is of none of ours."""
    kinds: list[type[AnyArchitecture]] = list(map(_KINDS.get, _KINDS.names()))
    return next((kind for kind in kinds if kind.recognises(text)), None)


def parse(text: str, operations: Sequence[str] | None = None) -> AnyArchitecture:
    """Read an architecture of any kind.

    A number alone is the digits form of a cell; of a network with one layer, only its space knows that it is channels.

    Args:
        text: the string of an architecture, or the digits form of a cell.
        operations: what the edges of a cell can be, in the order of their digits; NAS-Bench-201's, if not given.

    Raises:
        InputError: if it is of no kind, or malformed.
    """
    kind = kind_of(text)
    if kind is None:
        forms = "; ".join(_KINDS.get(name).form for name in _KINDS.names())
        raise InputError(f"'{text}' is no architecture. One is written in one of these forms: {forms}.")
    return kind.parse(text) if operations is None else kind.parse_with(text, operations)
