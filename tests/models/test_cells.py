import pytest
import torch
from torch.nn import functional as F

from robust_nas.bounds._box import Box
from robust_nas.models.cells import AveragePool3x3


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
