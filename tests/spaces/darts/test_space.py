import itertools
import math
import random

import pytest

from robust_nas import spaces
from robust_nas.architectures.genotype import Genotype
from robust_nas.core.errors import InputError

SMALL = spaces.load("darts", num_nodes=2, operations=("none", "skip_connect", "max_pool_3x3"))


def test_the_declared_spaces_are_those_of_the_papers():
    darts, seven = spaces.load("darts"), spaces.load("darts-7")
    assert (len(darts.operations), len(seven.operations), len(darts.edges)) == (8, 7, 28)
    assert darts.operations[0] == "none" and seven.operations == darts.operations[1:]
    assert (darts.channels, darts.num_cells, darts.num_nodes) == (16, 8, 4)
    assert spaces.described(spaces.describe(darts)) == darts


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_cells": 2}, "space.num_cells must be at least 3, but got 2"),
        ({"skeleton": "mnist"}, "skeleton"),
        ({"operations": ("none", "skip_connect")}, "two besides none or more"),
        ({"operations": ("skip_connect", "nor_conv_3x3")}, "but got nor_conv_3x3"),
        ({"final_channels": 1}, "space.final_channels must be at least 2"),
    ],
)
def test_what_is_wrong_with_a_declaration_is_named(options, sentence):
    with pytest.raises(InputError) as error:
        spaces.load("darts", **options)
    assert sentence in str(error.value)


def test_a_genotype_that_is_of_another_space_is_named():
    text = str(Genotype(2 * (("skip_connect", 0), ("sep_conv_3x3", 1)), 2 * (("skip_connect", 0), ("skip_connect", 1))))
    with pytest.raises(InputError, match="has the operation 'sep_conv_3x3', but darts has skip_connect, max_pool_3x3"):
        SMALL.parse(text)
    with pytest.raises(InputError, match=r"has 4 nodes in each cell, but '.*' has 2"):
        spaces.load("darts").parse(text)


def test_decisions_make_a_genotype_and_are_read_off_it_again():
    space, generator = spaces.load("darts"), random.Random(0)
    assert len(space.decisions) == 2 * 4 * 3
    for _ in range(50):
        values = tuple(generator.choice(options) for options in space.decisions.values())
        genotype = space.decided(values)
        assert space.decisions_of(genotype) == values
        assert space.parse(str(genotype)) == genotype
        used = [place for place in space.indices_of(genotype) if place is not None]
        assert len(used) == 16 and 0 not in used


def test_all_genotypes_of_a_small_space_are_made_of_its_decisions():
    # One pair of sources and then three; two operations on each of the two edges: (4 * 12) ** 2.
    made = {SMALL.decided(values) for values in itertools.product(*SMALL.decisions.values())}
    assert len(made) == (2**2 * 3 * 2**2) ** 2


def _rows(space, seed=0):
    generator = random.Random(seed)
    rows = [[generator.random() for _ in space.operations] for _ in space.edges]
    return [[value / sum(row) for value in row] for row in rows]


def _derived(space, rows):
    """DARTS, section 2.4, by sorting: of each node's edges, the two of the largest weight besides none."""
    chosen, edge = [], 0
    for target in [*range(2, 2 + space.num_nodes)] * 2:
        strength = {}
        for source in range(target):
            weights = dict(zip(space.operations, rows[edge + source], strict=True))
            weights.pop("none", None)
            name = max(weights, key=weights.get)
            strength[source] = weights[name], name
        best = sorted(sorted(strength, key=lambda source: strength[source][0])[-2:])
        chosen += [(strength[source][1], source) for source in best]
        edge += target
    half = len(chosen) // 2
    return Genotype(tuple(chosen[:half]), tuple(chosen[half:]))


@pytest.mark.parametrize("name", ["darts", "darts-7"])
def test_the_most_probable_genotype_is_the_derived_one(name):
    space = spaces.load(name)
    for seed in range(5):
        rows = _rows(space, seed)
        best = [max(part, key=part.get) for part in space.posterior(rows)]
        assert space.decided(tuple(itertools.chain.from_iterable(best))) == _derived(space, rows)


def test_a_belief_is_a_probability_for_every_node():
    for part in spaces.load("darts").posterior(_rows(spaces.load("darts"))):
        assert sum(part.values()) == pytest.approx(1)
    sizes = [len(part) for part in spaces.load("darts").posterior(_rows(spaces.load("darts")))]
    assert sizes == 2 * [math.comb(sources, 2) * 49 for sources in (2, 3, 4, 5)]


def test_a_node_that_is_left_with_none_is_named():
    rows = [[1.0, 0.0, 0.0], *_rows(SMALL)[1:]]
    with pytest.raises(InputError, match="fewer than two edges into node 2 of the normal cell"):
        SMALL.posterior(rows)


def test_a_choice_on_all_edges_is_connected_unless_a_cell_has_no_input():
    none, skip = 0, 1
    assert not SMALL.is_connected([none] * 10)
    assert SMALL.is_connected([skip] * 10)
    # An only edge of each cell: from the second input to the first node, and from the first node on.
    assert SMALL.is_connected([none, skip, *[none] * 3, skip, *[none] * 4])
    # A node that hears of another only, which hears of nothing.
    assert not SMALL.is_connected([none] * 4 + [skip] + [skip] * 5)
