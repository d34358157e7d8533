"""Costs of a table's networks: the published ones, those of counted networks, and those that runs have recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robust_nas import spaces
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.datasets import DataForm
from robust_nas.models.complexity import count_multiply_adds, count_parameters
from robust_nas.tables import Table, costs

SKELETON = "cells_per_stage=5,channels=16,stages=3"


def test_costs_are_those_that_nas_bench_201_publishes() -> None:
    # The benchmark's own example: {'flops': 15.64737, 'params': 0.129306}, with the classifier's bias in the flops.
    found = costs.of_published(str(Architecture.parse("421211")), SKELETON, "cifar10")
    assert found.flops == pytest.approx(15.64737 - 10 / 1e6, abs=1e-9) and found.params == 0.129306


@pytest.mark.parametrize(
    ("dataset", "side", "classes", "digits"),
    [("cifar10", 32, 10, "323133"), ("cifar100", 32, 100, "142031"), ("imagenet16-120", 16, 120, "213043")],
)
def test_costs_are_those_of_the_counted_network(dataset: str, side: int, classes: int, digits: str) -> None:
    shape, cell = (3, side, side), Architecture.parse(digits)
    assert cell.pruned == cell, "networks are built without edges that carry nothing"
    names = tuple(map(str, range(classes)))
    data = DataForm(dataset, names, shape, (torch.zeros(3), torch.ones(3)))
    network = spaces.load("nasbench201").network(cell, data)
    found = costs.of_published(str(cell), SKELETON, dataset)
    assert found == (count_multiply_adds(network, shape) / 1e6, count_parameters(network) / 1e6)


def test_edges_that_carry_nothing_cost_as_much_in_published_networks() -> None:
    none, dead = (
        costs.of_published(str(Architecture.parse(digits)), SKELETON, "cifar10") for digits in ("0" * 6, "030000")
    )
    assert dead.flops - none.flops == pytest.approx(9 * 16**2 * 32**2 * 15 / 1e6)


def test_a_cost_that_does_not_follow_is_not_known() -> None:
    cell = str(Architecture.parse("323133"))
    for given in ((cell, "channels=8", "cifar10"), (cell, SKELETON, "svhn"), ("|conv~0|", SKELETON, "cifar10")):
        assert np.isnan(costs.of_published(*given)).all()


def test_limits_leave_out_what_is_beyond_them(robbench: Table) -> None:
    flops = robbench.values("flops", dataset="cifar10")
    accuracies = robbench.values("pgd@8/255", dataset="cifar10")
    best = np.argsort(np.where(flops < 50, -accuracies, np.inf), kind="stable")[:5]
    found = robbench.top(5, "pgd@8/255", dataset="cifar10", where=["flops<50"])
    assert [result.architecture for result in found] == [robbench.architectures[place] for place in best]
    assert found[0].rank == 1 + (accuracies > found[0].mean).sum(), "ranks are among all classes"
    rows = robbench.rows(dataset="cifar10", attack="pgd", epsilon="8/255", where=["flops<50"])
    assert len(rows) == (flops < 50).sum() and max(rows["flops"].to_pylist()) < 50
    numbered = dict(zip(rows["digits"].to_pylist(), rows["published_index"].to_pylist(), strict=True))
    assert all(robbench.index[number] == digits for digits, number in numbered.items())


def test_a_front_with_flops_is_what_no_cheaper_class_reaches(robbench: Table) -> None:
    flops, robust = robbench.values("flops", dataset="cifar10"), robbench.values("pgd@8/255", dataset="cifar10")
    front = [result.architecture for (result,) in robbench.pareto(["pgd@8/255", "flops"], dataset="cifar10")]
    expected, highest = set(), -1.0
    for place in np.lexsort((-robust, flops)):  # the cheapest first
        if robust[place] > highest:
            expected.add(robbench.architectures[place])
            highest = robust[place]
    assert {robbench.cost(form, dataset="cifar10").flops for form in front} == {
        robbench.cost(form, dataset="cifar10").flops for form in expected
    } and expected <= set(front)


def test_a_limit_that_leaves_nothing_says_what_there_is(robbench: Table) -> None:
    with pytest.raises(
        InputError, match=r"has flops<0\.5: its networks have flops from 7\.783 to 220\.1 \(in millions"
    ):
        robbench.top(1, "pgd@8/255", dataset="cifar10", where=["flops<0.5"])
    for wrong in ("clean<0.5", "flops<x", "flops"):
        with pytest.raises(InputError, match=r"written as flops<50 or params<=0\.5, in millions, but got"):
            robbench.top(1, "pgd@8/255", dataset="cifar10", where=[wrong])
    with pytest.raises(InputError, match=r"depend on skeleton|depend on dataset \(cifar10, cifar100, imagenet16-120\)"):
        robbench.values("flops")
    with pytest.raises(InputError, match="needs a column of accuracies"):
        robbench.pareto(["flops", "params"], dataset="cifar10")
