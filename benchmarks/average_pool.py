"""How fast the average pool of cell networks is beside torch's, forward and backward, on one thread.

    python benchmarks/average_pool.py

Both are run in turns; the ratio is the median over the turns, so that a machine whose speed drifts does not decide it.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from robust_nas.models.average_pool import AveragePool3x3

SHAPES = [(64, 8, 8, 8), (190, 8, 8, 8), (190, 16, 4, 4), (64, 16, 32, 32)]


def seconds(pool: nn.Module, x: torch.Tensor, repeats: int) -> float:
    """Return the time of one forward and backward pass."""
    ones = torch.ones_like(x)
    start = time.perf_counter()
    for _ in range(repeats):
        torch.autograd.grad(pool(x), x, ones)
    return (time.perf_counter() - start) / repeats


def main() -> None:
    """Print the ratio for every shape."""
    torch.set_num_threads(1)
    ours, theirs = AveragePool3x3(), nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    print(f"torch {torch.__version__}, one thread; nn.AvgPool2d's time over ours, median of 15 turns")
    for shape in SHAPES:
        x = torch.randn(shape, requires_grad=True)
        repeats = max(2, 2_000_000 // x.numel())
        seconds(ours, x, repeats), seconds(theirs, x, repeats)
        ratios = [seconds(theirs, x, repeats) / seconds(ours, x, repeats) for _ in range(15)]
        print(f"{shape!s:>18}: {statistics.median(ratios):.1f} (from {min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
