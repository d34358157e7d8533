"""The work of a job in units of several kinds, and the time that is left of it, from what has been measured."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TimeLeft:
    """The time that is left of a job.

    Args:
        seconds: of the kinds of work that have been measured.
        unknown: the kinds that are to come and have not been measured; in words, only as far as the colon in them.
        under_way: the kind that is at work, and the share of it that is done.
    """

    seconds: float
    unknown: tuple[str, ...] = ()
    under_way: tuple[str, float] | None = None

    def __str__(self) -> str:
        kind, share = self.under_way or ("", 0.0)
        return (f"{kind.partition(':')[0]} {share:.0%} done, " if kind else "") + self._left

    @property
    def _left(self) -> str:
        if not self.unknown:
            return f"about {duration(self.seconds)} left"
        known = f"{duration(self.seconds)} + " if self.seconds else ""
        families = dict.fromkeys(kind.partition(":")[0] for kind in self.unknown)
        return f"{known}? left (not measured yet: {', '.join(families)})"


@dataclass
class _Unit:
    """A unit at work.

    Args:
        kind: its kind.
        amount: how much of the kind it is.
        one_loop: whether a loop's share of its steps is the unit's.
        started: when.
        moved: when the last step ended.
        before: the share that was done before.
        share: the share that is done.
        is_resumed: whether a loop in it began in its middle.
    """

    kind: str
    amount: float
    one_loop: bool
    started: float
    moved: float
    before: float = 0.0
    share: float = 0.0
    is_resumed: bool = False

    @property
    def measured(self) -> float:
        """The amount that was done since it started, as far as a loop tells."""
        return self.amount * (self.share - self.before) if self.one_loop else 0.0


class Work:
    """A job's work by kind: how much there is, how much is done, and the seconds that it took.

    An amount of a kind takes as long as what has been measured of it; nothing is supposed of another kind.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._planned: dict[str, float] = {}
        self._done: dict[str, float] = {}
        self._measured: dict[str, tuple[float, float]] = {}  # amount, seconds
        self._unit: _Unit | None = None

    def plan(self, amounts: Mapping[str, float]) -> None:
        """Set the whole job's amounts, what is done included; later ones, when more is known, replace these."""
        self._planned = dict(amounts)

    @contextlib.contextmanager
    def unit(self, kind: str, amount: float = 1.0, *, one_loop: bool = False) -> Iterator[None]:
        """Do a unit of work in the block. One in which no step was taken was done before, and is not measured.

        Args:
            kind: with which others it is measured.
            amount: of it, such as the number of epochs.
            one_loop: whether it is one loop of steps that take about as long as each other.
        """
        now = self._clock()
        self._unit = unit = _Unit(kind, amount, one_loop, now, now)
        try:
            yield
        finally:
            self._unit = None
            self._done[kind] = self._done.get(kind, 0.0) + amount
            taken = unit.measured or (amount if unit.share and not unit.is_resumed and not one_loop else 0.0)
            if taken:
                amounts, seconds = self._measured.get(kind, (0.0, 0.0))
                self._measured[kind] = amounts + taken, seconds + self._clock() - unit.started

    def moved(self, began: int, count: int, total: int | None) -> None:
        """Note that a loop has done `count` of `total` steps, of which `began` were done before it."""
        if (unit := self._unit) is not None and total:
            unit.before, unit.share, unit.moved = began / total, count / total, self._clock()
            unit.is_resumed = unit.is_resumed or began > 0

    def left(self) -> TimeLeft | None:
        """Return the time that is left; None without a plan."""
        if not self._planned:
            return None
        seconds, unknown, unit, now = 0.0, [], self._unit, self._clock()
        for kind, planned in self._planned.items():
            ahead = max(planned - self._done.get(kind, 0.0), 0.0)
            amount, took = self._measured.get(kind, (0.0, 0.0))
            since = 0.0
            if unit is not None and unit.kind == kind:
                amount, took = amount + unit.measured, took + (unit.moved - unit.started if unit.measured else 0.0)
                # What the unit has taken since: since its last step, or, where steps tell nothing, from its start.
                since = now - (unit.moved if unit.one_loop else unit.started)
                this = unit.amount * (1 - unit.share if unit.one_loop else 1)
                ahead = max(ahead - unit.amount, 0.0)
            else:
                this = 0.0
            if not this and not ahead:
                continue
            if not amount:
                unknown.append(kind)
                continue
            rate = took / amount
            seconds += max(rate * this - since, 0.0) + rate * ahead
        return TimeLeft(seconds, tuple(unknown), self._under_way())

    def _under_way(self) -> tuple[str, float] | None:
        """Return the kind that is at work, and the share of it that is done."""
        unit = self._unit
        if unit is None or not self._planned.get(unit.kind):
            return None
        done = self._done.get(unit.kind, 0.0) + (unit.amount * unit.share if unit.one_loop else 0.0)
        return unit.kind, min(done / self._planned[unit.kind], 1.0)


def duration(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds, "0:03:10"."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
