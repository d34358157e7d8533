import math

import pytest
import torch
from scipy import stats
from scipy.special import digamma, gammaln

from robust_nas.relaxations.dirichlet import DirichletRelaxation


@pytest.fixture
def relaxation():
    relaxation = DirichletRelaxation(3, 4, seed=0)
    relaxation.alpha.data.copy_(torch.tensor([[0.0, 1.0, -0.5, 2.0], [0.3, 0.3, 0.3, 0.3], [-2.0, 0.0, 1.0, 0.1]]))
    return relaxation


def test_it_starts_at_the_uniform_distribution_on_the_simplex():
    start = DirichletRelaxation(6, 5, seed=0)
    torch.testing.assert_close(start.concentration, torch.ones(6, 5), atol=5e-3, rtol=0)
    assert start.entropy() == pytest.approx(math.log(5), abs=1e-4)


def test_the_concentration_is_elu_plus_one(relaxation):
    assert relaxation.concentration[0].tolist() == pytest.approx([1.0, 2.0, math.exp(-0.5), 3.0])


def test_samples_have_the_dirichlets_mean_and_variance(relaxation):
    samples = torch.stack([relaxation.sample(seed).detach() for seed in range(4000)])
    torch.testing.assert_close(samples.sum(-1), torch.ones(4000, 3))
    for edge, concentration in enumerate(relaxation.concentration.detach().numpy()):
        reference = stats.dirichlet(concentration)
        assert samples[:, edge].mean(0).numpy() == pytest.approx(reference.mean(), abs=0.02)
        assert samples[:, edge].var(0).numpy() == pytest.approx(reference.var(), abs=0.01)
    torch.testing.assert_close(relaxation.mean(), samples.mean(0), atol=0.02, rtol=0)


def test_the_pathwise_gradient_is_the_gradient_of_the_expectation(relaxation):
    # d/d alpha of E[sum_o c_o w_o] is known in closed form: the mean's derivative.
    weights = torch.tensor([1.0, -1.0, 2.0, 0.5])
    estimate = torch.zeros(3, 4)
    for seed in range(4000):
        (gradient,) = torch.autograd.grad((relaxation.sample(seed) * weights).sum(), relaxation.alpha)
        estimate += gradient / 4000
    concentration = relaxation.concentration
    mean = concentration / concentration.sum(-1, keepdim=True)
    (expected,) = torch.autograd.grad((mean * weights).sum(), relaxation.alpha)
    torch.testing.assert_close(estimate, expected, atol=0.03, rtol=0)


def test_samples_repeat_by_seed_and_leave_the_global_random_state_alone(relaxation):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = relaxation.sample(7)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, relaxation.sample(7))
    assert not torch.equal(first, relaxation.sample(8))


def test_the_kl_anchor_is_the_sum_over_edges_of_the_closed_form(relaxation):
    expected = 0.0
    for beta in relaxation.concentration.detach().double().numpy():
        total = beta.sum()
        expected += gammaln(total) - gammaln(beta).sum() - gammaln(len(beta))
        expected += ((beta - 1) * (digamma(beta) - digamma(total))).sum()
    assert float(relaxation.anchor("kl").detach()) == pytest.approx(expected, rel=1e-5)


def test_the_l2_anchor_pulls_alpha_to_zero(relaxation):
    (gradient,) = torch.autograd.grad(relaxation.anchor("l2"), relaxation.alpha)
    torch.testing.assert_close(gradient, relaxation.alpha.detach())


@pytest.mark.parametrize("kind", ["kl", "l2"])
def test_the_anchors_minimum_is_the_uniform_distribution(kind):
    start = DirichletRelaxation(2, 3, seed=0)
    start.alpha.data.zero_()
    (gradient,) = torch.autograd.grad(start.anchor(kind), start.alpha)
    assert float(gradient.abs().max()) < 1e-6
