"""The published classes of equal architectures, checked against our own, and their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from robust_nas.architectures.cell import OPERATIONS, Architecture
from robust_nas.core.errors import InputError
from robust_nas.tables._schema import measured

_NOISE = 1e-7
_NUM_ARCHITECTURES = len(OPERATIONS) ** 6


@dataclass(frozen=True)
class Classes:
    """The architectures of NAS-Bench-201 and which of them a source counts as equal.

    Args:
        index: the digits forms, in the source's numbering.
        members: by the number of a class's representative, which is its first, that one's string form; in the order
            of the numbers.
    """

    index: tuple[str, ...]
    members: Mapping[int, str]

    @classmethod
    def of(cls, index: Sequence[str], representatives: Sequence[int], source: str) -> Classes:
        """Check a source's numbering and its classes.

        Args:
            index: the architecture of each number, as digits.
            representatives: the number of the architecture that stands for each number's class.
            source: the source's name in errors.

        Raises:
            InputError: if the numbering is not of the whole space, or a class is not the one that we find.
        """
        if len(index) != _NUM_ARCHITECTURES or len(set(index)) != len(index) or len(representatives) != len(index):
            raise InputError(
                f"{source} must number the {_NUM_ARCHITECTURES} architectures of NAS-Bench-201, but it has "
                f"{len(set(index))} different ones in {len(index)} places; it is damaged, get it again."
            )
        first: dict[str, int] = {}
        for number, (digits, representative) in enumerate(zip(index, representatives, strict=True)):
            own = first.setdefault(Architecture.parse(digits).canonical, number)
            if representative != own:
                raise InputError(
                    f"{source} gives {digits} (number {number}) the row of number {representative}, but number {own} "
                    "is the first that computes the same function; it is damaged, get it again."
                )
        return cls(tuple(index), {number: str(Architecture.parse(index[number])) for number in first.values()})

    def table(self, constant: Mapping[str, Any], accuracies: Mapping[int, Any], source: str) -> pa.Table:
        """Return the rows of one measured quantity; classes without a value have no row.

        Sources give accuracies as float32 does, with noise in the eighth digit that would tell equal ones apart. Where
        it is known over how many images they are, and all are counts of these but for that noise, they become exact.

        Args:
            constant: the values that all rows have in common.
            accuracies: by the representative's number.
            source: the source's name in errors.

        Raises:
            InputError: if a number is no representative, or an accuracy is none.
        """
        for number, accuracy in accuracies.items():
            if number not in self.members or not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:
                raise InputError(
                    f"{source} has the accuracy {accuracy!r} for number {number}, which is not a fraction for one of "
                    "its architectures; it is damaged, get it again."
                )
        numbers = [number for number in self.members if number in accuracies]
        given = [float(accuracies[number]) for number in numbers]
        trials = (constant["num_images"] or 0) * (constant["num_seeds"] or 0)
        exact = [round(accuracy * trials) / trials for accuracy in given] if trials else given
        is_noise = all(abs(one - other) <= _NOISE for one, other in zip(given, exact, strict=True))
        return measured(
            constant,
            architecture=[self.members[number] for number in numbers],
            accuracy=exact if is_noise else given,
        )
