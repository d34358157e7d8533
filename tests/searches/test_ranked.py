import itertools
import math
import random
from collections import Counter

import pytest

from robust_nas import spaces
from robust_nas.architectures.cell import OPERATIONS, Architecture
from robust_nas.derivation import distinct
from robust_nas.searches import SearchResult
from robust_nas.searches.given import Given

SPACE = spaces.load("nasbench201")
SMALL = spaces.load("darts", num_nodes=2, operations=("none", "skip_connect", "max_pool_3x3"))


def _result(seed: int, edges: int = 6) -> SearchResult:
    draw = random.Random(seed)
    rows = []
    for _ in range(edges):
        row = [draw.random() for _ in OPERATIONS]
        rows.append([value / sum(row) for value in row])
    return SearchResult(SPACE, rows, None, {})


@pytest.mark.parametrize("seed", range(3))
def test_architectures_come_in_the_order_of_brute_force(seed):
    result = _result(seed)
    brute = sorted(
        (
            -sum(math.log(row[choice]) for row, choice in zip(result.probabilities, choices, strict=True))
            for choices in itertools.product(range(5), repeat=6)
        ),
    )
    found = list(itertools.islice(result.ranked(), 15625))
    assert [log_posterior for _, log_posterior in found] == pytest.approx([-cost for cost in brute], abs=1e-9)
    assert len({architecture for architecture, _ in found}) == 15625


def test_the_best_is_the_argmax_of_every_edge():
    result = _result(5)
    expected = tuple(OPERATIONS[row.index(max(row))] for row in result.probabilities)
    assert result.best == Architecture(expected)


def test_the_pool_has_one_architecture_per_class_and_none_that_is_constant():
    # `none` and `skip_connect` everywhere likely: many equivalent and many constant architectures at the top.
    row = [0.4, 0.39, 0.11, 0.06, 0.04]
    pool = distinct(SearchResult(SPACE, [row] * 6, None, {}), 25)
    assert len(pool) == 25
    assert len({candidate.architecture.canonical for candidate in pool}) == 25
    # Networks are built without what does not lead from the input to the output.
    assert len({candidate.architecture.pruned for candidate in pool}) == 25
    assert all(candidate.architecture.is_connected for candidate in pool)
    posteriors = [candidate.log_posterior for candidate in pool]
    assert posteriors == sorted(posteriors, reverse=True)


def _of_darts(seed: int) -> SearchResult:
    draw = random.Random(seed)
    rows = [[draw.random() for _ in SMALL.operations] for _ in SMALL.edges]
    return SearchResult(SMALL, [[value / sum(row) for value in row] for row in rows], None, {})


@pytest.mark.parametrize("seed", range(3))
def test_genotypes_come_in_the_order_of_the_products_of_their_edges_weights(seed):
    result = _of_darts(seed)

    def product(genotype):
        places = enumerate(SMALL.indices_of(genotype))
        return math.prod(result.probabilities[edge][place] for edge, place in places if place is not None)

    everything = {SMALL.decided(values) for values in itertools.product(*SMALL.decisions.values())}
    found = list(result.ranked())
    assert {genotype for genotype, _ in found} == everything and len(found) == len(everything) == 2304
    total = sum(product(genotype) for genotype in everything)
    brute = sorted((math.log(product(genotype) / total) for genotype in everything), reverse=True)
    assert [logarithm for _, logarithm in found] == pytest.approx(brute)
    for genotype, logarithm in found[:20]:
        assert math.log(product(genotype) / total) == pytest.approx(logarithm)
        assert result.log_probability(genotype) == pytest.approx(logarithm)


def test_drawn_genotypes_have_their_probabilities():
    result = _of_darts(0)
    drawn = list(itertools.islice(result.drawn(seed=1), 8000))
    part = SMALL.posterior(result.probabilities)[0]
    of_first_node = Counter(SMALL.decisions_of(genotype)[:3] for genotype, _ in drawn)
    for values, probability in part.items():
        assert of_first_node[values] / 8000 == pytest.approx(probability, abs=0.02)


def test_a_given_genotype_is_all_that_is_believed_in():
    space = spaces.load("darts")
    text = str(space.decided([values[-1] for values in space.decisions.values()]))
    found = Given(architecture=text).search(space, None, None, None)  # type: ignore[arg-type]
    assert not found.is_undecided
    assert [str(candidate.architecture) for candidate in distinct(found, 3)] == [text]
    assert found.log_probability(found.best) == 0
