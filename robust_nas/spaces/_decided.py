"""The base class of spaces of independent decisions, without a supernet of mixtures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from robust_nas.architectures import AnyArchitecture
from robust_nas.core.errors import InputError

A = TypeVar("A", bound=AnyArchitecture)


class Decisions(ABC):
    """A search believes something of each decision on its own: the rows of its probabilities are the decisions."""

    name: str

    @property
    @abstractmethod
    def decisions(self) -> dict[str, tuple[str, ...]]:
        """The parts of an architecture, by name, each with its possible values."""

    @abstractmethod
    def decisions_of(self, architecture: AnyArchitecture) -> tuple[str, ...]:
        """Return the values of `decisions` that make an architecture."""

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The decisions."""
        return self.decisions

    def indices_of(self, architecture: AnyArchitecture) -> list[int | None]:
        """Return the index of each decision's value among those that are possible."""
        chosen = zip(self.decisions.values(), self.decisions_of(architecture), strict=True)
        return [values.index(value) for values, value in chosen]

    def posterior(self, probabilities: Sequence[Sequence[float]]) -> list[Mapping[tuple[str, ...], float]]:
        """Return the probability of each value, decision by decision."""
        return [
            {(value,): p for value, p in zip(values, row, strict=True)}
            for values, row in zip(self.decisions.values(), probabilities, strict=True)
        ]

    def _check_number(self, text: str, parts: str, number: int, expected: int) -> None:
        """Raise InputError unless the architecture of `text` has as many parts (stages, layers) as expected."""
        if number != expected:
            raise InputError(f"An architecture of {self.name} has {expected} {parts}, but '{text}' has {number}.")

    def _checked(self, architecture: A) -> A:
        """Return an architecture.

        Raises:
            InputError: if a value, with whose decision it is, is not a possible one.
        """
        for (name, values), value in zip(self.decisions.items(), self.decisions_of(architecture), strict=True):
            if value not in values:
                raise InputError(
                    f"The {name} of an architecture of {self.name} is one of {', '.join(values)}, but '{architecture}' "
                    f"has {value}."
                )
        return architecture


def check_options(key: str, options: tuple[Any, ...]) -> None:
    """Raise InputError unless a declaration's `key` lists one or more different options."""
    if not options or len(set(options)) < len(options):
        raise InputError(f"space.{key} must list one or more different options, but got {list(options)}.")
