import itertools
import math
import random

import pytest
import torch

from robust_nas import datasets, spaces
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.models.complexity import count_multiply_adds, count_parameters
from robust_nas.relaxations.softmax import SoftmaxRelaxation
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.searches._resources import Resource
from robust_nas.searches.darts import DARTS
from robust_nas.threat import ThreatModel

CELLS = ["323133", "333333", "222444", "111111"]


@pytest.fixture(scope="module")
def space():
    return spaces.load("nasbench201", channels=4, cells_per_stage=2, stages=2)


def _one_hot(space, cell):
    return torch.nn.functional.one_hot(torch.tensor([int(digit) for digit in cell]), 5).float()


@pytest.mark.parametrize("cell", CELLS)
def test_the_expected_cost_of_a_single_architecture_is_its_networks(space, data, cell):
    network = space.network(space.parse(cell), data)
    for quantity, counted in {
        "parameters": count_parameters(network),
        "multiply_adds": count_multiply_adds(network, data.image_shape),
    }.items():
        cost = Resource(quantity=quantity, limit=1.0).cost(space, data, torch.device("cpu"))
        assert float(cost.of(_one_hot(space, cell))) == counted


def _darts(**options):
    return spaces.load("darts", channels=4, num_cells=4, num_nodes=2, **options)


@pytest.mark.parametrize("sizes", [{}, {"final_channels": 6, "final_cells": 5}])
@pytest.mark.parametrize("seed", range(3))
def test_the_cost_of_a_genotype_is_its_final_networks(data, seed, sizes):
    space, generator = _darts(**sizes), random.Random(seed)
    genotype = space.decided([generator.choice(values) for values in space.decisions.values()])
    network = space.network(genotype, data)
    for quantity, counted in {
        "parameters": count_parameters(network),
        "multiply_adds": count_multiply_adds(network, data.image_shape),
    }.items():
        cost = Resource(quantity=quantity, limit=1.0).cost(space, data, torch.device("cpu"))
        assert cost.of_one(genotype) == counted


def test_the_expected_cost_of_a_darts_mixture_is_the_mean_over_the_genotypes_it_believes_in(data):
    space = _darts(operations=("none", "skip_connect", "sep_conv_3x3"))
    mixture = torch.rand(10, 3, generator=torch.Generator().manual_seed(0)).softmax(-1).requires_grad_()
    cost = Resource(limit=1.0).cost(space, data, torch.device("cpu"))
    expected, total = 0.0, 0.0
    for choices in itertools.product(*(part.items() for part in space.posterior(mixture.tolist()))):
        probability = math.prod(p for _, p in choices)
        values = tuple(itertools.chain.from_iterable(values for values, _ in choices))
        expected += probability * cost.of_one(space.decided(values))
        total += probability
    assert total == pytest.approx(1)
    assert float(cost.of(mixture).detach()) == pytest.approx(expected, rel=1e-5)


def test_the_cheapest_genotype_is_found_among_all(data):
    space = _darts(operations=("max_pool_3x3", "sep_conv_3x3"))
    cost = Resource(limit=1.0).cost(space, data, torch.device("cpu"))
    least = min(cost.of_one(space.decided(values)) for values in itertools.product(*space.decisions.values()))
    Resource(limit=least, hard=True).cost(space, data, torch.device("cpu"))
    with pytest.raises(InputError, match=f"the least that a network of darts costs in parameters is {least:g}"):
        Resource(limit=least - 1, hard=True).cost(space, data, torch.device("cpu"))


def test_a_search_of_genotypes_keeps_to_a_hard_limit(data):
    space = _darts(operations=("skip_connect", "sep_conv_3x3"))
    cost = Resource(limit=1.0).cost(space, data, torch.device("cpu"))
    limit = 0.5 * (float(cost.of(torch.full((10, 2), 0.5))) + cost.fixed)
    search = DARTS(
        epochs=1, batch_size=16, validation_attack=PGD(steps=0), resource=Resource(limit=limit, weight=0.0, hard=True)
    )
    found = search.search(space, data, ThreatModel(epsilon=0.1), Stage("search", 0, World(), Progress(quiet=True)))
    assert found.record["trajectory"][-1]["expected_cost"] <= limit * (1 + 1e-6)


def test_the_expected_cost_of_a_mixture_is_the_mean_over_architectures(space, data):
    cost = Resource(limit=1.0).cost(space, data, torch.device("cpu"))
    one, other = (_one_hot(space, cell) for cell in ("333333", "111111"))
    assert float(cost.of(0.25 * one + 0.75 * other)) == pytest.approx(0.25 * cost.of(one) + 0.75 * cost.of(other))


def test_latency_is_measured_and_a_convolution_costs_more_than_nothing(space, data):
    cost = Resource(quantity="latency", limit=1.0).cost(space, data, torch.device("cpu"))
    convolution, none = cost.operations[:, 3], cost.operations[:, 0]
    assert bool((convolution > none).all()) and float(none.min()) > 0


def test_the_penalty_is_nothing_below_the_limit_and_the_excess_as_a_share_above(space, data):
    cost = Resource(limit=1.0).cost(space, data, torch.device("cpu"))
    full = float(cost.of(_one_hot(space, "333333")))
    assert float(Resource(limit=full, weight=3.0).penalty(cost, _one_hot(space, "333333"))) == 0
    assert float(Resource(limit=full / 2, weight=3.0).penalty(cost, _one_hot(space, "333333"))) == pytest.approx(3.0)


def test_a_hard_limit_is_kept_in_every_epoch_and_a_penalty_pulls_towards_it(space, data):
    cost = Resource(limit=1.0).cost(space, data, torch.device("cpu"))
    start = float(cost.of(torch.full((6, 5), 0.2)))
    limit = cost.fixed + 0.5 * (start - cost.fixed)
    quick = {"epochs": 2, "batch_size": 16, "validation_attack": PGD(steps=0), "alpha_learning_rate": 0.05}

    def expected(resource):
        stage = Stage("search", 0, World(), Progress(quiet=True))
        found = DARTS(**quick, resource=resource).search(space, data, ThreatModel(epsilon=0.1), stage)
        return [row["expected_cost"] for row in found.record["trajectory"]]

    hard = expected(Resource(limit=limit, weight=0.0, hard=True))
    assert all(cost <= limit * (1 + 1e-6) for cost in hard)
    soft, free = expected(Resource(limit=limit, weight=10.0)), expected(Resource(limit=1e12))
    assert soft[-1] < free[-1] - 0.01 * start


def test_a_soft_limit_that_is_not_met_is_said_with_what_was_asked_and_what_was_got(space, data, capsys):
    quick = {"epochs": 1, "batch_size": 16, "validation_attack": PGD(steps=0)}
    free = DARTS(**quick).search(space, data, ThreatModel(epsilon=0.1), Stage("search", 0, World(), Progress()))
    own = count_parameters(space.network(free.best, data))

    def outcome(limit):
        stage = Stage("search", 0, World(), Progress())
        search = DARTS(**quick, resource=Resource(limit=limit, weight=0.0))
        return search.search(space, data, ThreatModel(epsilon=0.1), stage).record["resource"]

    assert "resource" not in free.record and "note" not in outcome(1e9)
    assert "beware" not in capsys.readouterr().err
    found = outcome(own / 10)
    assert found["most_probable"] == own and found["limit"] == own / 10 and found["quantity"] == "parameters"
    printed = " ".join(capsys.readouterr().err.split())
    assert f"beware: search.resource.limit is {own / 10:g} parameters" in printed and f"network has {own:g}" in printed


def test_a_hard_limit_is_kept_while_alpha_is_frozen_after_operations_were_left_out(space, data):
    cost = Resource(limit=1.0).cost(space, data, torch.device("cpu"))
    # What is left of a uniform mixture of 5 is one of 2: without a step of alpha, its cost is another.
    limit = cost.fixed + 0.8 * (float(cost.of(torch.full((6, 5), 0.2))) - cost.fixed)
    search = DARTS(
        epochs=2,
        batch_size=16,
        validation_attack=PGD(steps=0),
        alpha_frozen=1.0,
        kept_operations=(5, 2),
        resource=Resource(limit=limit, hard=True),
    )
    found = search.search(space, data, ThreatModel(epsilon=0.1), Stage("search", 0, World(), Progress(quiet=True)))
    assert all(row["expected_cost"] <= limit * (1 + 1e-6) for row in found.record["trajectory"])


def test_a_limit_that_cannot_be_kept_ends_near_the_cheapest(space, data):
    cost = Resource(limit=1.0).cost(space, data, torch.device("cpu"))
    relaxation = SoftmaxRelaxation(6, 5, seed=0)
    before = float(cost.of(relaxation.mean()))
    Resource(limit=1.0, hard=True).keep(cost, relaxation)
    assert bool(relaxation.alpha.isfinite().all())
    assert float(cost.of(relaxation.mean())) < cost.fixed + 0.1 * (before - cost.fixed)


def test_a_hard_limit_below_every_network_is_refused(space, data):
    # No operation in any cell: what is left is the stem, the reduction and the classifier.
    least = count_parameters(space.network(space.parse("111111"), data))
    Resource(limit=least, hard=True).cost(space, data, torch.device("cpu"))
    with pytest.raises(InputError, match=f"the least that a network of nasbench201 costs in parameters is {least}"):
        Resource(limit=least - 1, hard=True).cost(space, data, torch.device("cpu"))


def test_costs_of_a_data_set_on_another_device_are_the_same(space, data, monkeypatch):
    expected = Resource(limit=1.0).cost(space, data, torch.device("cpu"))
    meta = torch.device("meta")  # any that is not the CPU
    monkeypatch.setattr(datasets.Dataset, "channel_statistics", (torch.zeros(1, device=meta),) * 2)
    found = Resource(limit=1.0).cost(space, data, meta)
    assert found.fixed == expected.fixed and torch.equal(found.operations, expected.operations)


def test_a_latency_is_measured_once_for_a_search_that_resumes(space, data, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    quick = {"epochs": 1, "batch_size": 16, "validation_attack": PGD(steps=0)}
    search = DARTS(**quick, resource=Resource(quantity="latency", limit=1.0))
    stage = Stage("search", 0, World(), Progress(quiet=True), tmp_path)
    search.search(space, data, ThreatModel(epsilon=0.1), stage)
    trainer = search.trainer(space, data, ThreatModel(epsilon=0.1), stage)
    measured, (_, state) = trainer.alpha.cost, stage.resume()
    trainer.load_state(state)
    taken, saved = trainer.alpha.cost, state["cost"]
    assert measured != taken
    assert taken.fixed == saved["fixed"] and torch.equal(taken.operations, saved["operations"])


def test_wrong_limits_are_refused():
    with pytest.raises(InputError, match=r"limit must be above 0, but got 0"):
        Resource(limit=0)
    with pytest.raises(InputError, match="weight must not be negative"):
        Resource(limit=1, weight=-1)
