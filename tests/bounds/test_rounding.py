"""The error that rounding is said to have is no less than the one that it has, beside double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.bounds._rounding import rounding
from robust_nas.core.seeds import generator_at, seeded

IMAGES = torch.rand(8, 2, 4, 4, generator=generator_at("cpu", 0, "images"))


class Of(nn.Module):
    """Logits that a function makes of the images, and of weights that nearly cancel each other."""

    def __init__(self, function: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        with seeded(0, "weights"):
            self.linear, self.conv, self.norm = nn.Linear(32, 3), nn.Conv2d(2, 3, 4), nn.BatchNorm2d(2)
        for weight in (self.linear.weight, self.conv.weight):
            weight.data = 1e4 * torch.cat([weight.data[:, :1], -weight.data[:, :1]], 1).repeat_interleave(
                weight.shape[1] // 2, 1
            )
        nn.init.constant_(self.norm.running_mean, 1e4)  # type: ignore[arg-type]
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images, self)


def some(values: Tensor) -> Tensor:
    return values.flatten(1)[:, :3]


FUNCTIONS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "linear": lambda x, model: model.linear(x.flatten(1)),
    "convolution": lambda x, model: model.conv(x).flatten(1),
    "batch norm": lambda x, model: some(model.norm(x)),
    # .1 is another number in float32, of which nothing is left of a pixel of .1.
    "a number": lambda x, model: 1e6 * some((x > 0.5) * (x - 0.1) + (x <= 0.5) * (0.1 + 0 * x - 0.1)),
    "average pooling": lambda x, model: some(F.avg_pool2d(1e4 - x, 3)),
    "mean": lambda x, model: some((1e4 - x).mean(2)),
    "sum": lambda x, model: some((1e4 - x).sum(3)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rounding_is_no_more_than_is_said(name: str) -> None:
    model = Of(FUNCTIONS[name]).eval().requires_grad_(False)
    labels = torch.zeros(len(IMAGES), dtype=torch.int64)
    exact: Tensor = copy.deepcopy(model).double()(IMAGES.double())
    said, logits, _ = rounding(model, IMAGES, labels, torch.zeros_like(exact))
    found = (logits[:, :1].double() - logits.double()) - (exact[:, :1] - exact)
    assert (found.abs() <= said).all() and found.abs().amax() > 0
