import math

import pytest
import torch

from robust_nas.relaxations.dirichlet import DirichletRelaxation
from robust_nas.relaxations.gumbel import GumbelRelaxation
from robust_nas.relaxations.softmax import SoftmaxRelaxation
from robust_nas.relaxations.uniform import UniformRelaxation

ALPHA = torch.tensor([[0.0, 1.0, -0.5, 2.0], [0.3, 0.3, 0.3, 0.3], [-2.0, 0.0, 1.0, 0.1]])
KINDS = [DirichletRelaxation, SoftmaxRelaxation, GumbelRelaxation, UniformRelaxation]


def _at_alpha(kind, **options):
    relaxation = kind(3, 4, seed=0, **options)
    relaxation.alpha.data.copy_(ALPHA)
    return relaxation


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_on_the_simplex_of_what_is_active_and_repeats_by_seed(kind):
    relaxation = _at_alpha(kind)
    relaxation.keep(2)
    for seed in range(20):
        sample = relaxation.sample(seed)
        torch.testing.assert_close(sample.sum(-1), torch.ones(3))
        assert bool((sample >= 0).all()) and not bool(sample[~relaxation.active].any())
        assert torch.equal(sample, relaxation.sample(seed))
    torch.testing.assert_close(relaxation.mean().sum(-1), torch.ones(3))
    assert not bool(relaxation.mean()[~relaxation.active].any())


@pytest.mark.parametrize("kind", [DirichletRelaxation, SoftmaxRelaxation, GumbelRelaxation])
def test_the_operations_of_the_largest_weight_are_kept_and_none_comes_back(kind):
    relaxation = _at_alpha(kind)
    relaxation.keep(2)
    assert relaxation.active[0].tolist() == [False, True, False, True]
    assert relaxation.active[2].tolist() == [False, False, True, True]
    relaxation.alpha.data[0] = torch.tensor([9.0, 1.0, 9.0, 2.0])
    relaxation.keep(1)
    assert relaxation.active[0].tolist() == [False, False, False, True]


def test_what_is_left_of_a_dirichlet_is_the_dirichlet_of_what_is_left():
    relaxation = _at_alpha(DirichletRelaxation)
    relaxation.keep(2)
    samples = torch.stack([relaxation.sample(seed).detach() for seed in range(4000)])
    one, other = relaxation.concentration[0, [1, 3]].tolist()  # Beta(2, 3)
    assert samples[:, 0, 1].mean() == pytest.approx(one / (one + other), abs=0.01)
    assert samples[:, 0, 1].var() == pytest.approx(one * other / ((one + other) ** 2 * (one + other + 1)), abs=0.005)


def test_sharp_dirichlet_samples_have_the_same_mean_and_are_nearer_to_single_operations():
    sharp = _at_alpha(DirichletRelaxation, sharpness=(1.0, 10.0))
    samples = {}
    for share in (0.0, 1.0):
        sharp.progress = share
        samples[share] = torch.stack([sharp.sample(seed).detach() for seed in range(4000)])
        torch.testing.assert_close(samples[share].mean(0), sharp.mean(), atol=0.03, rtol=0)
    # The variance of a Dirichlet is m (1 - m) / (total concentration + 1).
    total = sharp.concentration.detach().sum(-1, keepdim=True) / 10
    mean = sharp.mean()
    torch.testing.assert_close(samples[1.0].var(0), mean * (1 - mean) / (total + 1), atol=0.02, rtol=0)
    assert samples[1.0].max(-1).values.mean() > samples[0.0].max(-1).values.mean()


def test_a_sharp_sample_has_a_gradient_without_nan():
    sharp = _at_alpha(DirichletRelaxation, sharpness=(50.0, 50.0))
    for seed in range(200):
        (gradient,) = torch.autograd.grad(sharp.sample(seed)[:, 0].sum(), sharp.alpha)
        assert bool(gradient.isfinite().all())


def test_the_softmax_goes_by_its_temperature_from_start_to_end():
    relaxation = _at_alpha(SoftmaxRelaxation, temperature=(4.0, 0.25))
    for share, temperature in ((0.0, 4.0), (0.5, 1.0), (1.0, 0.25)):
        relaxation.progress = share
        torch.testing.assert_close(relaxation.sample(0).detach(), (ALPHA / temperature).softmax(-1))


def test_hard_gumbel_samples_are_draws_from_the_softmax_of_alpha():
    relaxation = _at_alpha(GumbelRelaxation)
    samples = torch.stack([relaxation.sample(seed).detach() for seed in range(4000)])
    assert set(samples.round(decimals=5).unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(samples.mean(0), ALPHA.softmax(-1), atol=0.03, rtol=0)


def test_the_gradient_of_a_hard_gumbel_sample_is_that_of_the_soft_one():
    hard, soft = (_at_alpha(GumbelRelaxation, hard=hard, temperature=(1.0, 1.0)) for hard in (True, False))
    weights = torch.tensor([1.0, -1.0, 2.0, 0.5])
    for seed in range(5):
        gradients = [
            torch.autograd.grad((relaxation.sample(seed) * weights).sum(), relaxation.alpha)[0]
            for relaxation in (hard, soft)
        ]
        torch.testing.assert_close(*gradients)


def test_the_entropy_of_uniform_draws_is_the_logarithm_of_what_is_left():
    relaxation = UniformRelaxation(6, 5, seed=0)
    assert relaxation.entropy() == pytest.approx(math.log(5))
    samples = torch.stack([relaxation.sample(seed) for seed in range(4000)])
    torch.testing.assert_close(samples.mean(0), torch.full((6, 5), 0.2), atol=0.03, rtol=0)


def test_concentrations_of_alphas_far_below_0_can_be_drawn_from_and_those_left_out_are_shown_as_0():
    relaxation = DirichletRelaxation(2, 3, seed=0)
    relaxation.alpha.data[:] = torch.tensor([-1e4, 0.0, 1.0])
    assert bool(relaxation.sample(0).isfinite().all())
    relaxation.keep(2)
    assert relaxation.describe()["concentration"] == [[0.0, 1.0, 2.0]] * 2
