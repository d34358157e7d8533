"""The common parts of samplers: random architectures, neighbours, sizes, and a space's classes."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Container
from typing import TYPE_CHECKING

from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at

if TYPE_CHECKING:
    from robust_nas.spaces import Space

MAX_ENUMERATED = 100_000
"""The most architectures of a space whose classes are enumerated."""


def draw(space: Space, generator: random.Random) -> AnyArchitecture:
    """Return an architecture of independent, uniform decisions: in a cell space, an operation on every edge."""
    return space.decided([generator.choice(values) for values in space.decisions.values()])


def start_draw(space: Space, seed: int, index: int) -> AnyArchitecture:
    """Return the `index`-th of a search's random architectures.

    They depend on nothing else, so that our own samplers begin alike: equal seeds make pairs. Optuna's draw their own.
    """
    return draw(space, random.Random(seed_at(seed, "start", index)))


def neighbours(space: Space, architecture: AnyArchitecture) -> list[AnyArchitecture]:
    """Return the architectures that differ in one decision: in a cell space, in the operation on one edge."""
    own = space.decisions_of(architecture)
    return [
        space.decided((*own[:place], other, *own[place + 1 :]))
        for place, values in enumerate(space.decisions.values())
        for other in values
        if other != own[place]
    ]


def num_weights(architecture: Architecture) -> int:
    """Return a cell's convolution weights, in units of those of a 1x1 convolution."""
    size = {"nor_conv_1x1": 1, "nor_conv_3x3": 9}
    return sum(size.get(name, 0) for name in architecture.pruned.operations)


def num_architectures(space: Space) -> int:
    """Return the number of the space's architectures, equivalent ones counted each."""
    return math.prod(len(values) for values in space.decisions.values())


def classes(space: Space) -> tuple[AnyArchitecture, ...]:
    """Return one architecture of every class, the first in the order of enumeration.

    Raises:
        InputError: if the space has more than `MAX_ENUMERATED` architectures.
    """
    if num_architectures(space) > MAX_ENUMERATED:
        raise InputError(
            f"Only the classes of spaces with at most {MAX_ENUMERATED} architectures are enumerated, but {space.name} "
            f"has {num_architectures(space)}; use a sampler that does not enumerate, such as evolution."
        )
    return _classes(space)  # type: ignore[arg-type]  # spaces are frozen dataclasses


@functools.lru_cache(maxsize=8)
def _classes(space: Space) -> tuple[AnyArchitecture, ...]:
    found: dict[str, AnyArchitecture] = {}
    for values in itertools.product(*space.decisions.values()):
        architecture = space.decided(values)
        found.setdefault(architecture.canonical, architecture)
    return tuple(found.values())


def draw_unmeasured(space: Space, measured: Container[str], generator: random.Random) -> AnyArchitecture | None:
    """Return an architecture of a class that is not in `measured`, or None if all classes of a small space are."""
    if num_architectures(space) <= MAX_ENUMERATED:
        left = [architecture for architecture in classes(space) if architecture.canonical not in measured]
        return generator.choice(left) if left else None
    while (architecture := draw(space, generator)).canonical in measured:
        pass
    return architecture
