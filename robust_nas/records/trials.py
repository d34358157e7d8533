"""The files of an open trial: the architecture that is to be measured, and its values."""

from __future__ import annotations

from dataclasses import dataclass

from robust_nas.records import Record


@dataclass(frozen=True, kw_only=True)
class Asked(Record):
    """An architecture that is to be measured."""

    architecture: str


@dataclass(frozen=True, kw_only=True)
class MeasuredTrial(Asked):
    """An architecture and its measurements."""

    values: tuple[float, ...]
