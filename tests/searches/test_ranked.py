import itertools
import math
import random

import pytest

from robust_nas.architecture import OPERATIONS, Architecture
from robust_nas.derivation import distinct
from robust_nas.searches import SearchResult


def _result(seed: int, edges: int = 6) -> SearchResult:
    draw = random.Random(seed)
    rows = []
    for _ in range(edges):
        row = [draw.random() for _ in OPERATIONS]
        rows.append([value / sum(row) for value in row])
    return SearchResult(OPERATIONS, rows, None, {})


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
    pool = distinct(SearchResult(OPERATIONS, [row] * 6, None, {}), 25)
    assert len(pool) == 25
    assert len({candidate.architecture.canonical for candidate in pool}) == 25
    # Networks are built without what does not lead from the input to the output.
    assert len({candidate.architecture.pruned for candidate in pool}) == 25
    assert all(candidate.architecture.is_connected for candidate in pool)
    posteriors = [candidate.log_posterior for candidate in pool]
    assert posteriors == sorted(posteriors, reverse=True)
