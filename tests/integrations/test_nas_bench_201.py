"""The names that users of the NAS-Bench-201 API know; expected values are that API's documented forms, or published."""

from __future__ import annotations

import math

import pytest

from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.integrations.nas_bench_201 import NASBench201API
from robust_nas.tables import ArchitectureNotInTable, Table

# The example of NAS-Bench-201's documentation for `str2lists`.
DOCUMENTED = "|nor_conv_1x1~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|"


@pytest.fixture(scope="module")
def api(robbench: Table) -> NASBench201API:
    return NASBench201API(robbench)


def test_lists_and_matrix_have_the_documented_forms() -> None:
    assert NASBench201API.str2lists(DOCUMENTED) == [
        (("nor_conv_1x1", 0),),
        (("none", 0), ("none", 1)),
        (("none", 0), ("none", 1), ("skip_connect", 2)),
    ]
    assert NASBench201API.str2matrix(DOCUMENTED) == [[0, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_indices_are_the_published_ones(api: NASBench201API) -> None:
    assert len(api) == 15_625 and sum(1 for _ in api) == 15_625
    assert api[0] == api.arch(0) == str(Architecture.parse("421211"))
    assert api.query_index_by_arch(str(Architecture.parse("323133"))) == 2581
    assert api.query_index_by_arch("|nor_conv_3x3~0|") == -1
    assert 0 <= api.random(seed=0) < 15_625 and api.random(seed=0) == api.random(seed=0)
    with pytest.raises(ArchitectureNotInTable, match="0 to 15624, but got 15625"):
        api.arch(15_625)


def test_accuracies_are_the_published_ones_in_percent(api: NASBench201API) -> None:
    info = api.get_more_info(1000, "cifar10", metric="fgsm@3/255")
    assert info == {"test-accuracy": pytest.approx(67.16, abs=0.005), "num-trainings": 3}
    assert api.query_by_index(1000, "cifar10")["cifar10"]["pgd@3/255"] == pytest.approx(66.63, abs=0.005)
    assert set(api.query_by_index(1000)) == {"cifar10", "cifar100", "imagenet16-120"}
    assert api.find_best("cifar10", "pgd@8/255") == (2581, pytest.approx(48.11, abs=0.005))
    # On the front of accuracy and cost: 303123 with 117.88 million multiply-adds and .830 million parameters.
    index, _ = api.find_best("cifar10", "pgd@8/255", FLOP_max=118, Param_max=0.84)
    assert api.arch(index) == str(Architecture.parse("303123"))
    assert api.find_best("ImageNet16-120", "pgd@8/255") == (6111, pytest.approx(7.45, abs=0.005))
    assert "48.11" in api.query_by_arch("323133") and "pgd" in api.query_by_arch(Architecture.parse("323133"))


def test_an_alias_has_its_own_index_and_its_classes_accuracy(api: NASBench201API) -> None:
    # The published file says that number 25 is the network of number 3.
    assert api.query_index_by_arch(api.arch(25)) == 25
    assert api.get_more_info(25, "cifar10", metric="clean") == api.get_more_info(3, "cifar10", metric="clean")


def test_what_the_table_does_not_have_is_nan_or_refused(api: NASBench201API) -> None:
    accuracy, latency, cost, total = api.simulate_train_eval("323133", "cifar10", metric="pgd@8/255")
    assert accuracy == pytest.approx(48.11, abs=0.005)
    assert math.isnan(latency) and math.isnan(cost) and math.isnan(total) and api.num_queries == 1
    api.reset_time()
    assert api.used_time == api.num_queries == 0
    with pytest.raises(InputError, match=r"no 'hp', but got '12'"):
        api.get_more_info(1, "cifar10", hp="12", metric="clean")
    with pytest.raises(InputError, match="last epoch only, but got iepoch=3"):
        api.get_more_info(1, "cifar10", iepoch=3, metric="clean")
    with pytest.raises(InputError, match="mean over trainings"):
        api.get_more_info(1, "cifar10", is_random=True, metric="clean")
    with pytest.raises(InputError, match="cifar10-valid"):
        api.get_more_info(1, "cifar10-valid", metric="clean")
    with pytest.raises(InputError, match=r"no data set 'cifar-10'. Did you mean 'cifar10'"):
        api.find_best("cifar-10", "clean")
    with pytest.raises(InputError, match=r"No class .* has flops<=1: its networks have flops from 7\.783"):
        api.find_best("cifar10", "clean", FLOP_max=1)
