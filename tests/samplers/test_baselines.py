"""Random search, local search and evolution against brute force and closed forms."""

from __future__ import annotations

import itertools
import math
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from robust_nas import samplers
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.samplers._cells import neighbours
from robust_nas.samplers.evolution import Evolution
from robust_nas.samplers.local import Local
from robust_nas.samplers.random import Random
from robust_nas.spaces.cell import CellSpace
from robust_nas.studies import simulation

if TYPE_CHECKING:
    from robust_nas.tables import Table

SPACE = CellSpace(name="three nodes", num_nodes=3, operations=("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3"))


def landscape(architecture: Architecture) -> float:
    """Return a value without structure: there are many local optima."""
    return random.Random(architecture.canonical).random()


def expected_maximum(values: np.ndarray, draws: int) -> float:
    """Return the mean of the largest of `draws` different values: order statistics of sampling without replacement."""
    ordered, total = np.sort(values), math.comb(len(values), draws)
    return sum(math.comb(rank, draws - 1) / total * value for rank, value in enumerate(ordered))


def test_the_expected_maximum_is_that_of_all_subsets() -> None:
    values = np.array([0.1, 0.5, 0.2, 0.9])
    subsets = [max(subset) for subset in itertools.combinations(values, 2)]
    assert expected_maximum(values, 2) == pytest.approx(sum(subsets) / len(subsets))


def test_random_search_finds_what_sampling_without_replacement_finds(robbench: Table) -> None:
    # Without zero and skip no two of the 729 architectures are equivalent, so that all are equally likely.
    space = CellSpace(name="no skip", num_nodes=4, operations=("nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"))
    cells = list(Architecture.enumerate(4, space.operations))
    values = robbench.query_many([str(cell) for cell in cells], "pgd@8/255", dataset="cifar10")
    by_class = {cell.canonical: (float(value),) for cell, value in zip(cells, values, strict=True)}
    assert len(by_class) == 729
    places = simulation.simulate(space, by_class, Random(), 50, range(600))
    best = np.maximum.accumulate(values[places], axis=1)
    for queries in (1, 5, 25, 50):
        error = best[:, queries - 1].std() / math.sqrt(len(best))
        assert abs(best[:, queries - 1].mean() - expected_maximum(values, queries)) < 4 * error


@pytest.mark.parametrize("improvement", ["first", "best"])
def test_local_search_stops_exactly_at_local_optima(improvement: str) -> None:
    climb = Local(improvement=improvement).start(SPACE, 1, 0)
    stops, before = set(), None
    for _ in range(3000):
        architecture = climb.ask()
        climb.tell(architecture, [landscape(architecture)])
        if climb.current is None:
            assert before is not None
            stops.add(before[1])
        elif before is not None:
            assert climb.current[0] >= before[0]
        before = climb.current
    optima = {
        cell
        for cell in Architecture.enumerate(3, SPACE.operations)
        if all(landscape(cell) >= landscape(other) for other in neighbours(SPACE, cell))
    }
    assert stops == optima


def test_best_improvement_moves_to_the_best_neighbour() -> None:
    climb = Local(improvement="best").start(SPACE, 1, 3)
    start = climb.ask()
    climb.tell(start, [landscape(start)])
    near = neighbours(SPACE, start)
    for _ in near:
        architecture = climb.ask()
        climb.tell(architecture, [landscape(architecture)])
    best = max(near, key=landscape)
    expected = (landscape(best), best) if landscape(best) > landscape(start) else None
    assert climb.current == expected


def test_evolution_finds_the_optimum_of_a_space_that_can_be_enumerated() -> None:
    best = max(map(landscape, Architecture.enumerate(3, SPACE.operations)))
    population = Evolution(population_size=10, sample_size=5).start(SPACE, 1, 0)
    values = []
    for _ in range(400):
        architecture = population.ask()
        values.append(landscape(architecture))
        population.tell(architecture, values[-1:])
    assert max(values) == best


def test_evolution_mutates_the_best_of_its_sample_until_that_has_aged() -> None:
    space = CellSpace(name="four nodes", num_nodes=4, operations=SPACE.operations)
    population = Evolution(population_size=3, sample_size=3).start(space, 1, 0)
    champion = Architecture.parse("333333")
    for architecture, value in ((champion, 1.0), (population.ask(), 0.0), (population.ask(), 0.0)):
        population.tell(architecture, [value])
    children = []
    for _ in range(3):
        child = population.ask()
        children.append(child)
        population.tell(child, [0.5])
    assert children[0] in neighbours(space, champion)  # the champion is the oldest, and dies now
    assert all(child in neighbours(space, children[0]) for child in children[1:])


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match="sample_size must be from 1 to population_size"):
        Evolution(population_size=5, sample_size=6)
    with pytest.raises(InputError, match="population_size must be at least 2"):
        samplers.get("nsga2")(population_size=1)
    with pytest.raises(InputError, match="length_scale must be positive"):
        samplers.get("predictor")(length_scale=0.0)
