import pytest
import torch
from torch.nn import functional as F

from robust_nas.bounds import Box
from robust_nas.models.average_pool import AveragePool3x3


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 5, 7), (1, 1, 1, 1), (1, 1, 1, 4), (2, 1, 2, 2)])
def test_the_average_pool_is_torchs_with_padding_left_out_of_the_count(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours, expected = AveragePool3x3()(x), F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((output * weights).sum(), x)[0] for output in (ours, expected)]
    torch.testing.assert_close(*gradients)


def test_interval_bounds_of_the_average_pool_are_exact():
    # All its weights are positive: the least output is that of the least input.
    low = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    high = low + torch.rand(low.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    box = AveragePool3x3()(Box(low, high))
    torch.testing.assert_close(box.lower, AveragePool3x3()(low))
    torch.testing.assert_close(box.upper, AveragePool3x3()(high))


def test_the_average_pool_has_the_derivatives_of_torchs_to_the_second_order() -> None:
    pool = AveragePool3x3()
    x = torch.randn(2, 3, 5, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(pool, x)
    assert torch.autograd.gradgradcheck(pool, x)
    ours, theirs = (
        torch.func.vmap(torch.func.grad(lambda one, f=f: f(one.unsqueeze(0)).square().sum()))(x.detach())
        for f in (pool, lambda y: F.avg_pool2d(y, 3, 1, 1, count_include_pad=False))
    )
    torch.testing.assert_close(ours, theirs)
    ones = torch.ones_like(x)
    torch.testing.assert_close(torch.func.jvp(pool, (x.detach(),), (ones,))[1], ones)
