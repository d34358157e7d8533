"""The number of threads on the CPU: measured, as no rule knows it.

Two threads wait for each other at every operation. Where a network is small, or other work is on the machine, the
waiting takes longer than the second thread saves: by how much, a few steps say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robust_nas.records.run import Session

STEPS = 5
"""Steps whose mean counts, after one that does not."""

LONG = 2.0
"""Seconds after which no further step is taken with a number of threads: of long ones, few say enough."""

_CHOSEN: dict[tuple[int, Hashable], Mapping[int, float]] = {}


def wait_passively() -> None:
    """Let threads sleep while they wait, and not turn in circles on a core that other work could have.

    It is for a program, not for a call in somebody's: OpenMP reads it when torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def settle(step: Callable[[], object], key: Hashable) -> Mapping[int, float]:
    """Give torch the number of threads with which a step is fastest, and return the seconds of each that was tried.

    Tried are 1, 2, 4, ... up to the number that torch has, so that a smaller number of somebody's own is a limit. In
    one process, equal steps get the same number again. With one thread, nothing is tried.

    Args:
        key: equal for steps that do the same.
    """
    import torch

    most = torch.get_num_threads()
    if most == 1:
        return {}
    if (most, key) not in _CHOSEN:
        _CHOSEN[most, key] = measured(step, most, torch.set_num_threads)
    torch.set_num_threads(fastest(_CHOSEN[most, key]))
    return _CHOSEN[most, key]


def recorded(sessions: Sequence[Session]) -> int | None:
    """Return the number of threads with which a folder was begun, on as many cores; None if it was not.

    What is gone on with has it again: another number would give other last digits.
    """
    return min(sessions[0].threads, os.cpu_count() or 1) if sessions else None


def measured(
    step: Callable[[], object],
    most: int,
    set_threads: Callable[[int], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Return the seconds of a step by number of threads, from one on until more of them are slower.

    Args:
        most: the largest number.
        set_threads: sets the number.
        clock: the time in seconds.
    """
    found: dict[int, float] = {}
    count = 1
    while count <= most:
        set_threads(count)
        found[count] = _seconds(step, clock)
        if found[count] > 1.5 * min(found.values()):
            break
        count = most if count < most < 2 * count else 2 * count
    return found


def fastest(seconds: Mapping[int, float]) -> int:
    """Return the number of threads that took least; of those within a twentieth of it, the smallest."""
    return min(count for count, each in seconds.items() if each <= 1.05 * min(seconds.values()))


def _seconds(step: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the mean duration: the slow steps of a busy machine count too."""
    times = [clock()]
    while len(times) < 2 + STEPS and times[-1] - times[0] <= LONG:
        step()
        times.append(clock())
    first = 1 if len(times) > 2 else 0
    return (times[-1] - times[first]) / (len(times) - 1 - first)


def sentence(seconds: Mapping[int, float]) -> str:
    """Return what was measured in words."""
    times = ", ".join(f"{count}: {1000 * each:.3g} ms" for count, each in seconds.items())
    return f"threads: {fastest(seconds)} (a step by number of threads: {times}; threads=N sets it)"
