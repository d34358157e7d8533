"""Samplers: the next architecture to measure, from the architectures measured so far (ask and tell).

One file is one sampler: a frozen, keyword-only dataclass with `start`. `samplers.get("evolution")`. A sampler knows
neither tables nor training: the measurement of an architecture, a table's row or a short training, is the caller's
(`queries`, or `Questions` where several are measured at once).

A query is one measured class of architectures (`Architecture.canonical`). An architecture that is equivalent to a
measured one is answered from memory and costs nothing. A sampler that asks for `PATIENCE` known ones in a row has
nothing new to say: it is told the values of a random unmeasured class instead, which does count.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from random import Random  # not the module: `samplers.random` would take its name
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from robust_nas.architectures import AnyArchitecture
from robust_nas.core.errors import InputError
from robust_nas.core.registry import Group, offered
from robust_nas.core.seeds import seed_at
from robust_nas.samplers._cells import classes, draw, draw_unmeasured, num_weights

if TYPE_CHECKING:
    from robust_nas.samplers._optuna import Study as Study
    from robust_nas.spaces import Space

__all__ = ["PATIENCE", "Proposer", "Questions", "Sampler", "classes", "draw", "get", "names", "num_weights", "queries"]

PATIENCE = 100
"""After so many known architectures in a row, a random unmeasured one is measured."""


class Proposer(Protocol):
    """A search under way."""

    def ask(self) -> AnyArchitecture:
        """Return the architecture to measure next; it may be one whose values are known, or one that is being measured.

        Several may be asked before the first one's values are told.
        """

    def tell(self, architecture: AnyArchitecture, values: Sequence[float]) -> None:
        """Take note of an architecture's values, one per objective, the higher the better; it need not be one asked."""


@runtime_checkable
class Sampler(Protocol):
    """A sampler: it proposes architectures and hears their values."""

    def start(self, space: Space, num_objectives: int, seed: int) -> Proposer:
        """Begin a search of `space`. Equal seeds and equal values give equal questions.

        Raises:
            InputError: if the sampler cannot handle so many objectives, or such a large space.
        """


def queries(
    sampler: Sampler,
    space: Space,
    measure: Callable[[AnyArchitecture], Sequence[float]],
    *,
    num_objectives: int = 1,
    seed: int = 0,
) -> Iterator[tuple[AnyArchitecture, Sequence[float]]]:
    """Yield each measured architecture with its values, until all classes of the space are measured.

    The caller takes as many as its budget allows: nothing is measured that is not taken.

    Args:
        sampler: the sampler.
        space: the space that it chooses in.
        measure: returns an architecture's values, one per objective, the higher the better.
        num_objectives: number of these values.
        seed: the search's seed.
    """
    questions = Questions(sampler, space, num_objectives, seed)
    while (architecture := questions.ask()) is not None:
        values = measure(architecture)
        questions.answer(values)
        yield architecture, values


class Questions:
    """A sampler's questions, every class of architectures once; several may be open, answered in their order.

    Args:
        sampler: the sampler.
        space: the space that it chooses in.
        num_objectives: number of values in an answer.
        seed: the search's seed.
    """

    def __init__(self, sampler: Sampler, space: Space, num_objectives: int = 1, seed: int = 0) -> None:
        self.proposer = sampler.start(space, num_objectives, seed)
        self._space, self._seed = space, seed
        self._known: dict[str, Sequence[float]] = {}
        self._open: deque[AnyArchitecture] = deque()
        self._twin: AnyArchitecture | None = None  # of an open one: its values are not known yet

    def ask(self) -> AnyArchitecture | None:
        """Return the next architecture to measure.

        None, if all classes are measured or open; and where the sampler repeats an open question, until that is
        answered: it would go on repeating it.
        """
        pending = {architecture.canonical for architecture in self._open}
        repeats = 0
        while True:
            architecture = self.proposer.ask() if self._twin is None else self._twin
            self._twin = architecture if architecture.canonical in pending else None
            if self._twin is not None:
                return None
            if architecture.canonical in self._known:
                self.proposer.tell(architecture, self._known[architecture.canonical])
                repeats += 1
                if repeats < PATIENCE:
                    continue
                taken = {*self._known, *pending}
                fresh = draw_unmeasured(self._space, taken, Random(seed_at(self._seed, "unmeasured", len(taken))))
                if fresh is None:
                    return None
                architecture = fresh
            self._open.append(architecture)
            return architecture

    def answer(self, values: Sequence[float]) -> None:
        """Tell the sampler the values of the oldest open question's architecture.

        Raises:
            InputError: for NaN, which is neither better nor worse than anything.
        """
        architecture = self._open.popleft()
        if any(math.isnan(value) for value in values):
            raise InputError(
                f"A sampler needs values that can be compared, but {architecture} is worth "
                f"{', '.join(map(str, values))}; measure a NaN as the least value there is."
            )
        self._known[architecture.canonical] = values
        self.proposer.tell(architecture, values)


_GROUP = Group(__name__, "Sampler", "start")
get, names = _GROUP.get, _GROUP.names

__getattr__ = offered(
    __name__,
    {
        "Study": "_optuna",
    },
)
