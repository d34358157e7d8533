"""What samplers share: random architectures, neighbours, sizes, and a space's classes."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Container
from typing import TYPE_CHECKING

from robust_nas.architecture import Architecture
from robust_nas.errors import InputError
from robust_nas.seeds import seed_at

if TYPE_CHECKING:
    from robust_nas.spaces import Space

MAX_ENUMERATED = 100_000
"""The most architectures of a space whose classes are enumerated."""


def draw(space: Space, generator: random.Random) -> Architecture:
    """Return an architecture with an independent, uniform operation on every edge."""
    return Architecture(tuple(generator.choice(space.operations) for _ in space.edges))


def start_draw(space: Space, seed: int, index: int) -> Architecture:
    """Return the `index`-th of a search's random architectures.

    They depend on nothing else, so that our own samplers begin alike: equal seeds make pairs. Optuna's draw their own.
    """
    return draw(space, random.Random(seed_at(seed, "start", index)))


def neighbours(space: Space, architecture: Architecture) -> list[Architecture]:
    """Return the architectures that differ in the operation on one edge."""
    found = []
    for edge, own in enumerate(architecture.operations):
        for other in space.operations:
            if other != own:
                found.append(
                    Architecture((*architecture.operations[:edge], other, *architecture.operations[edge + 1 :]))
                )
    return found


def num_weights(architecture: Architecture) -> int:
    """Return a cell's convolution weights, in units of those of a 1x1 convolution."""
    size = {"nor_conv_1x1": 1, "nor_conv_3x3": 9}
    return sum(size.get(name, 0) for name in architecture.pruned.operations)


def num_architectures(space: Space) -> int:
    """Return how many architectures the space has, equivalent ones counted each."""
    return len(space.operations) ** len(space.edges)


def classes(space: Space) -> tuple[Architecture, ...]:
    """Return one architecture of every class, the first in the order of enumeration.

    Raises:
        InputError: if the space has more than `MAX_ENUMERATED` architectures.
    """
    if num_architectures(space) > MAX_ENUMERATED:
        raise InputError(
            f"Only the classes of spaces with at most {MAX_ENUMERATED} architectures are enumerated, but {space.name} "
            f"has {num_architectures(space)}; use a sampler that does not enumerate, such as evolution."
        )
    return _classes(space.operations, len(space.edges))


@functools.cache
def _classes(operations: tuple[str, ...], num_edges: int) -> tuple[Architecture, ...]:
    found: dict[str, Architecture] = {}
    for choice in itertools.product(operations, repeat=num_edges):
        architecture = Architecture(choice)
        found.setdefault(architecture.canonical, architecture)
    return tuple(found.values())


def draw_unmeasured(space: Space, measured: Container[str], generator: random.Random) -> Architecture | None:
    """Return an architecture of a class that is not in `measured`, or None if all classes of a small space are."""
    if num_architectures(space) <= MAX_ENUMERATED:
        left = [architecture for architecture in classes(space) if architecture.canonical not in measured]
        return generator.choice(left) if left else None
    while (architecture := draw(space, generator)).canonical in measured:
        pass
    return architecture
