"""The model-based search against an independent Gaussian process, quadrature and exact hypervolumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.samplers._cells import num_weights
from robust_nas.samplers._gaussian_process import GaussianProcess
from robust_nas.samplers._objectives import expected_hypervolume_improvement, expected_improvement
from robust_nas.samplers.predictor import Predictor, _path_statistics, _without_outliers
from robust_nas.spaces.cell import CellSpace
from robust_nas.studies import simulation

if TYPE_CHECKING:
    from robust_nas.tables import Table

NASBENCH201 = CellSpace(
    name="nasbench201",
    num_nodes=4,
    operations=("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
)


def test_the_posterior_is_that_of_scikit_learns_gaussian_process() -> None:
    generator = np.random.default_rng(0)
    points, targets = generator.standard_normal((60, 4)), generator.standard_normal(20)
    process = GaussianProcess(points, length_scale=1.7, noise=0.01)
    observed = generator.permutation(60)[:20]
    for index in observed:
        process.observe(int(index))
    mean, std = process.posterior(targets)
    # The variance that makes the targets most likely, in closed form, from the correlation matrix.
    correlation = Matern(1.7, nu=2.5)(points[observed]) + 0.01 * np.eye(20)
    variance = targets @ np.linalg.solve(correlation, targets) / 20
    theirs = GaussianProcessRegressor(
        ConstantKernel(variance) * Matern(1.7, nu=2.5), alpha=0.01 * variance, optimizer=None
    ).fit(points[observed], targets)
    expected_mean, expected_std = theirs.predict(points, return_std=True)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-9)
    np.testing.assert_allclose(std, expected_std, atol=1e-6)


@pytest.mark.parametrize(("mean", "std", "best"), [(0.0, 1.0, 0.5), (0.3, 0.2, 0.1), (-1.0, 0.5, 0.5)])
def test_expected_improvement_is_the_integral_that_defines_it(mean: float, std: float, best: float) -> None:
    integral, _ = quad(lambda value: (value - best) * norm.pdf(value, mean, std), best, mean + 12 * std)
    found = expected_improvement(np.array([mean]), np.array([std]), best)
    assert found[0] == pytest.approx(integral, rel=1e-6)


@pytest.mark.parametrize("num_objectives", [2, 3])
def test_the_hypervolume_improvement_of_certain_outcomes_is_the_difference_of_exact_hypervolumes(
    num_objectives: int,
) -> None:
    generator = np.random.default_rng(1)
    measured, outcomes = generator.random((6, num_objectives)), 0.3 + generator.random((8, num_objectives))
    found = expected_hypervolume_improvement(outcomes, 0 * outcomes, measured, -0.5, 20_000, generator)
    reference = np.full(num_objectives, -0.5)
    before = simulation.hypervolume(measured, reference)
    exact = [simulation.hypervolume(np.vstack([measured, outcome]), reference) - before for outcome in outcomes]
    np.testing.assert_allclose(found, exact, rtol=0.05, atol=0.02 * before)


def test_the_hypervolume_improvement_of_one_objective_is_the_expected_improvement() -> None:
    mean, std = np.array([[0.2], [0.6]]), np.array([[0.3], [0.1]])
    found = expected_hypervolume_improvement(mean, std, np.array([[0.5]]), -5.0, 40_000, np.random.default_rng(0))
    np.testing.assert_allclose(found, expected_improvement(mean[:, 0], std[:, 0], 0.5), rtol=0.05)


def test_path_statistics_of_a_cell_counted_by_hand() -> None:
    # Paths: 0-3 is a skip; 0-1-3 is 3x3, pool; 0-2-3 has a zero; 0-1-2-3 is 3x3, 1x1, 3x3.
    cell = Architecture.parse("302143")
    names = ("avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3", "none", "skip_connect")
    assert _path_statistics(cell, names) == [3, 1, 1, 1, 1, 2, 3, 3, 0]


def test_outliers_are_pulled_in_and_the_order_is_kept() -> None:
    values = np.array([0.1, 0.40, 0.45, 0.46, 0.48])
    found = _without_outliers(values)
    spread = np.sqrt((0**2 + 0.01**2 + 0.03**2) / 3)  # of the upper half, 0.45, 0.46 and 0.48, around the median
    np.testing.assert_allclose(found, [0.45 - 3 * spread, 0.40, 0.45, 0.46, 0.48])


def test_the_prior_begins_with_large_networks_and_no_prior_with_any() -> None:
    weights = {
        prior: [num_weights(Predictor(prior=prior).start(NASBENCH201, 1, seed).ask()) for seed in range(20)]
        for prior in ("none", "parameters")
    }
    assert min(weights["parameters"]) >= 28  # three 3x3 and a 1x1 convolution
    assert min(weights["none"]) < 9


def test_a_space_too_large_to_enumerate_is_refused() -> None:
    space = CellSpace(name="six nodes", num_nodes=6, operations=NASBENCH201.operations)
    with pytest.raises(InputError, match="six nodes has 30517578125; use a sampler that does not enumerate"):
        Predictor().start(space, 1, 0)


def test_equal_values_of_all_architectures_are_no_obstacle() -> None:
    space = CellSpace(name="three nodes", num_nodes=3, operations=NASBENCH201.operations)
    by_class = {cell.canonical: (0.1, 0.1) for cell in Architecture.enumerate(3)}
    places = simulation.simulate(space, by_class, Predictor(), 30, [0])
    assert len(set(places[0].tolist())) == 30


def test_the_predictor_finds_the_optimum_of_the_published_table_in_fifty_queries(robbench: Table) -> None:
    values = robbench.values("pgd@8/255", dataset="cifar10")
    by_class = {canonical: (float(value),) for canonical, value in zip(robbench.canonical, values, strict=True)}
    places = simulation.simulate(NASBENCH201, by_class, Predictor(), 50, range(12))
    best = np.maximum.accumulate(values[places], axis=1)
    assert best[:, -1].min() == values.max() == pytest.approx(0.4811, abs=5e-5)
    # REFERENCES: plain local search has .4699 after 25 queries.
    assert best[:, 24].mean() > 0.479
