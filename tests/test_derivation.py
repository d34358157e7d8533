import dataclasses
import itertools
import math
from collections import Counter

import pytest
import torch

from robust_nas import datasets, derivation, records, spaces
from robust_nas.architectures.cell import Architecture
from robust_nas.attacks.fgsm import FGSM
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.derivation import Candidate, Derivation, most_diverse, transfer_rate
from robust_nas.records.derivation import Transferred
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.searches import SearchResult
from robust_nas.threat import ThreatModel

THREAT = ThreatModel(epsilon=0.02)
ROWS = [
    [0.1, 0.2, 0.3, 0.4, 0.0],
    [0.2] * 5,
    [0.0, 0.5, 0.0, 0.5, 0.0],
    [0.2] * 5,
    [0.1, 0.1, 0.1, 0.1, 0.6],
    [0.2] * 5,
]


@pytest.fixture(scope="module")
def data():
    digits = datasets.load("digits")
    return dataclasses.replace(digits, train=digits.train[:128], validation=digits.validation[:64], test=None)


@pytest.fixture(scope="module")
def found(data):
    space = spaces.load("nasbench201", channels=4, cells_per_stage=1, stages=1)
    with seeded(0):
        return space, SearchResult(space, ROWS, space.supernet(data), {})


def _derive(found, data, **options):
    space, result = found
    plan = Derivation(attack=FGSM(), calibration_batches=1, **options)
    stage = Stage("derive", 0, World(), Progress(quiet=True))
    return derivation.derive(result, space, data, THREAT, plan, stage)


def test_drawn_architectures_have_the_posteriors_frequencies_and_log_probabilities(found):
    _, result = found
    drawn = list(itertools.islice(result.drawn(seed=3), 4000))
    for edge, row in enumerate(ROWS):
        counts = Counter(architecture.operations[edge] for architecture, _ in drawn)
        assert [counts[name] / 4000 for name in result.space.operations] == pytest.approx(row, abs=0.03)
    architecture, logarithm = drawn[0]
    rows = zip(ROWS, architecture.operations, strict=True)
    assert logarithm == pytest.approx(sum(math.log(row[result.space.operations.index(name)]) for row, name in rows))
    assert logarithm == result.log_probability(architecture)


def test_samples_are_ranked_by_accuracy_under_attack_whatever_their_probability(found, data):
    ranked = _derive(found, data, method="samples", pool=8, count=2)
    robust = [(one.validation_robust, one.log_posterior) for one in ranked]
    assert robust == sorted(robust, reverse=True)
    assert len({one.architecture.pruned.function for one in ranked}) == 8
    assert all(one.log_posterior > -50 for one in ranked)


def test_the_argmax_is_chosen_first_and_the_others_ranked(found, data):
    first, *others = _derive(found, data, pool=6)
    assert first.architecture == next(a for a, _ in found[1].ranked() if a.is_connected)
    robust = [one.validation_robust for one in others]
    assert robust == sorted(robust, reverse=True)


def test_ranking_looks_at_as_many_validation_images_as_it_is_told(found, data):
    (one, *_) = _derive(found, data, pool=4, count=1, num_images=7)
    assert (one.validation_robust * 7) % 1 == pytest.approx(0, abs=1e-6)
    shorter = dataclasses.replace(data, validation=data.validation[:7])
    assert _derive(found, shorter, pool=4, count=1) == _derive(found, data, pool=4, count=1, num_images=7)


def test_perturbation_keeps_the_operation_without_which_the_supernet_is_worst(data, monkeypatch):
    # The supernet is made to be as good as what is left of the operations of one architecture.
    wanted = Architecture.parse("321434")
    space = spaces.load("nasbench201", channels=4, cells_per_stage=1, stages=1)
    rows = [space.operations.index(name) for name in wanted.operations]
    result = SearchResult(space, [[0.2] * 5] * 6, space.supernet(data), {})

    class Evaluated:
        def __init__(self, network):
            there = [float(network.mixture[edge, place] > 0) for edge, place in enumerate(rows)]
            self.robust_accuracy = self.clean_accuracy = sum(there) / 6

    monkeypatch.setattr(derivation, "evaluate", lambda network, *_, **__: Evaluated(network))
    first, *_ = _derive((space, result), data, method="perturbation", pool=1, count=1)
    assert first.architecture == wanted


def test_an_operation_that_alone_carries_the_input_is_kept_though_nothing_can_be_attacked_without_it(data):
    space = spaces.load("nasbench201", channels=4, cells_per_stage=1, stages=1)
    only = torch.zeros(6, 5)
    only[:, 0] = 0.5
    only[3, :] = torch.tensor([0.1, 0.0, 0.0, 0.9, 0.0])  # the direct edge has the one convolution
    only[:3, 0] = only[4:, 0] = 1.0
    result = SearchResult(space, only.tolist(), space.supernet(data), {})
    first, *_ = _derive((space, result), data, method="perturbation", pool=1, count=1)
    assert first.architecture.operations[3] == "nor_conv_3x3"


def test_a_number_of_images_below_one_is_refused():
    with pytest.raises(InputError, match=r"derive\.num_images must be at least 1, but got 0"):
        Derivation(num_images=0)


def test_where_nothing_was_learned_architectures_are_drawn_and_the_best_one_is_first(found, data):
    space, result = found
    uniform = SearchResult(space, [[0.2] * 5] * 6, result.supernet, {})
    chosen = _derive((space, uniform), data, pool=4)
    assert chosen == _derive((space, uniform), data, pool=4, method="samples")
    robust = [candidate.validation_robust for candidate in chosen]
    assert robust == sorted(robust, reverse=True)
    assert uniform.is_undecided and not result.is_undecided
    assert not SearchResult(space, [[1.0, 0.0, 0.0, 0.0, 0.0]] * 6, None, {}).is_undecided


def _ranked(robust, rates):
    # Rates are given as (examples, fooled) of row to column.
    cells = [Architecture.parse(digits) for digits in ("321434", "323133", "333333", "111111")[: len(robust)]]
    return [
        Candidate(
            cell,
            0.0,
            validation_robust=robust[row],
            transfer={
                str(cells[c]): Transferred(examples=rates[row][c][0], fooled=rates[row][c][1])
                for c in range(len(cells))
                if c != row
            },
        )
        for row, cell in enumerate(cells)
    ]


def test_the_rate_of_a_pair_is_the_mean_over_both_directions_that_have_examples():
    rates = [[None, (10, 5), (0, 0)], [(4, 1), None, (0, 0)], [(8, 2), (0, 0), None]]
    first, second, third = _ranked([0.5, 0.5, 0.5], rates)
    assert transfer_rate(first, second) == transfer_rate(second, first) == pytest.approx((5 / 10 + 1 / 4) / 2)
    assert transfer_rate(first, third) == 2 / 8
    assert transfer_rate(second, third) == 0


def test_the_next_candidate_weighs_accuracy_against_the_mean_transfer_with_those_before():
    # Of ten examples, so many transfer.
    share = {(0, 1): 9, (0, 2): 5, (0, 3): 4, (2, 3): 10, (1, 2): 0, (1, 3): 0}
    rates = [[(10, share.get((min(a, b), max(a, b)), 0)) for b in range(4)] for a in range(4)]
    ranked = _ranked([0.50, 0.48, 0.40, 0.35], rates)

    def order(count, diversity):
        return [ranked.index(one) for one in most_diverse(ranked, count, diversity)]

    # At 1/10: 0.48 - 0.09 = 0.39, 0.40 - 0.05 = 0.35, 0.35 - 0.04 = 0.31.
    assert order(2, 0.1) == [0, 1, 2, 3]
    # At 1: 0.48 - 0.9, 0.40 - 0.5 = -0.10, 0.35 - 0.4 = -0.05; then 0.48 - 0.9 / 2 = 0.03 and 0.40 - (0.5 + 1) / 2.
    assert order(2, 1.0) == [0, 3, 1, 2]
    assert order(3, 1.0) == [0, 3, 1, 2]
    # At 1/4: 0.48 - 0.225 = 0.255, 0.40 - 0.125 = 0.275, 0.35 - 0.1 = 0.25.
    assert order(2, 0.25) == [0, 2, 1, 3]
    assert order(1, 1.0) == order(4, 0.0) == [0, 1, 2, 3]


def test_a_pair_that_is_chosen_for_diversity_is_the_best_of_all_pairs_with_the_first(found, data):
    plain = _derive(found, data, pool=6, count=2, method="samples")
    chosen = _derive(found, data, pool=6, count=2, method="samples", diversity=0.5)
    first, second, *others = chosen
    assert first.architecture == plain[0].architecture
    assert {one.architecture for one in chosen} == {one.architecture for one in plain}

    def worth(one):
        return one.validation_robust - 0.5 * transfer_rate(first, one)

    assert all(worth(second) >= worth(one) for one in others)
    robust = [one.validation_robust for one in others]
    assert robust == sorted(robust, reverse=True)


def test_without_diversity_nothing_more_is_measured_and_the_record_says_nothing_of_it(found, data, monkeypatch):
    monkeypatch.setattr(derivation, "transfers", lambda *_: pytest.fail("measured"))
    candidates = _derive(found, data, pool=3, count=2)
    record = derivation.to_record(candidates, Derivation(count=2, pool=3), 64, 1.0)
    assert all("transfer" not in candidate for candidate in records.plain(record)["candidates"])


def test_the_record_has_the_counts_of_all_pairs_and_the_mean_rate_with_the_chosen(found, data):
    plan = Derivation(count=2, pool=3, diversity=0.5)
    candidates = _derive(found, data, pool=3, count=2, diversity=0.5)
    first, second, third = derivation.to_record(candidates, plan, 64, 1.0).candidates
    assert set(first.transfer) == {second.architecture, third.architecture}
    assert first.transfer_rate == second.transfer_rate == transfer_rate(*candidates[:2])
    both = [transfer_rate(candidates[2], one) for one in candidates[:2]]
    assert third.transfer_rate == pytest.approx(sum(both) / 2)


def test_diversity_is_refused_where_there_are_no_weights_to_attack_and_where_it_is_no_number(found, data):
    space, result = found
    with pytest.raises(InputError, match="leaves no supernet"):
        _derive((space, dataclasses.replace(result, supernet=None)), data, diversity=0.5)
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(InputError, match=r"derive\.diversity must be a number from 0 on"):
            Derivation(diversity=wrong)
    with pytest.raises(InputError, match=r"networks beside the first, but derive\.count is 1"):
        Derivation(diversity=0.5, count=1)
