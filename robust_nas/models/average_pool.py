"""The average pooling of cells, which does not count pixels outside the image."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import has_torch_function_unary

if TYPE_CHECKING:
    pass


class AveragePool3x3(nn.Module):
    """The operation `avg_pool_3x3`: the mean over a pixel's neighbourhood, padding left out of the count.

    The function of `nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)`, as sums of three shifted rows and
    three shifted columns: faster on a CPU, where pooling was most of a network's time (`benchmarks/average_pool.py`).
    """

    def forward(self, x: Tensor) -> Tensor:
        if has_torch_function_unary(x):  # such as bounds, which know the function by torch's name
            return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        height, width = x.shape[2:]
        counts = reciprocal_counts(height, width, x.dtype, x.device)
        mean: Tensor = _NeighbourhoodMean.apply(x, counts)
        return mean


class _NeighbourhoodMean(torch.autograd.Function):
    """The sums of all 3 x 3 neighbourhoods, times [H, W] numbers.

    A pixel is its neighbours' neighbour, so that the sums are their own adjoint: a backward pass costs what a forward
    pass does. Autograd would fill a tensor with zeros for each shifted view instead.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, counts: Tensor) -> Tensor:
        return neighbourhood_sums(x) * counts

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (counts,) = ctx.saved_tensors
        return neighbourhood_sums(gradient * counts), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (counts,) = ctx.saved_tensors
        return neighbourhood_sums(tangent) * counts


def neighbourhood_sums(x: Tensor) -> Tensor:
    """Return the sums over every pixel's 3 x 3 neighbourhood, [B, C, H, W] to the same shape."""
    padded = F.pad(x, (1, 1, 1, 1))
    rows = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]


@functools.lru_cache(maxsize=64)
def reciprocal_counts(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return [H, W]: one over how many pixels the 3 x 3 neighbourhood of each pixel has inside the image."""

    def inside(size: int) -> Tensor:
        place = torch.arange(size, dtype=torch.float64)
        return torch.minimum(place + 1, torch.tensor(size - 1.0)) - (place - 1).clamp_min(0) + 1

    return (1 / (inside(height).unsqueeze(1) * inside(width))).to(device, dtype)
