"""The error that rounding is said to have is no less than the one that it has, beside double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.bounds._rounding import own_answers, rounding
from robust_nas.core.seeds import generator_at, seeded
from robust_nas.threat import ThreatModel

IMAGES = torch.rand(8, 2, 4, 4, generator=generator_at("cpu", 0, "images"))
IMAGES[0, 0, 0, 0] = 0.1
LABELS = torch.zeros(len(IMAGES), dtype=torch.int64)


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
    "a number": lambda x, model: 1e6 * (some(x) - 0.1) * torch.tensor([1.0, 0.0, 0.0]),
    "average pooling": lambda x, model: some(F.avg_pool2d(1e4 - x, 3)),
    "mean": lambda x, model: some((1e4 - x).mean(2)),
    "sum": lambda x, model: some((1e4 - x).sum(3)),
    # Where images are is not to be told of 64 rows, so that all errors count for each of them.
    "other rows": lambda x, model: some((1e4 - x.reshape(-1, 4)).reshape(x.shape)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rounding_is_no_more_than_is_said(name: str) -> None:
    model = Of(FUNCTIONS[name]).eval().requires_grad_(False)
    exact: Tensor = copy.deepcopy(model).double()(IMAGES.double())
    said, logits, _ = rounding(model, IMAGES, LABELS, torch.zeros_like(exact))
    found = (logits[:, :1].double() - logits.double()) - (exact[:, :1] - exact)
    assert (found.abs() <= said).all() and found.abs().amax() > 0


def test_no_error_is_said_of_classes_whose_margins_are_beyond_that_of_a_lesser_one() -> None:
    model = Of(FUNCTIONS["linear"]).eval().requires_grad_(False)
    margins = torch.zeros(len(IMAGES), 3, dtype=torch.float64)
    said, _, _ = rounding(model, IMAGES, LABELS, margins)
    near, far = 5 * said[:, 1:].amin(), 1e3 * said.amax()
    for margin, expected in ((near, said[:, 2]), (far, torch.zeros(len(IMAGES), dtype=torch.float64))):
        margins[:, 2] = margin
        found, _, _ = rounding(model, IMAGES, LABELS, margins)
        assert found[:, 1].equal(said[:, 1]) and found[:, 2].equal(expected)


def test_rounding_is_that_of_the_image_or_of_the_end_of_its_ball_whichever_is_more() -> None:
    # The margin is the first pixel many times, whose rounding grows with it, or less it.
    for sign in (1, -1):
        model = Of(lambda x, _, sign=sign: sign * some(x)[:, :1] * torch.tensor([1e4, 1.0, 0.0])).eval()
        proved = torch.ones(len(IMAGES), 3, dtype=torch.float64).index_fill(1, torch.tensor(0), torch.inf)
        found = own_answers(model.requires_grad_(False), IMAGES, LABELS, ThreatModel(epsilon=0.05), proved)
        ends = IMAGES.clone()
        ends[:, 0, 0, 0] = (ends[:, 0, 0, 0] - sign * 0.05).clamp(0, 1)
        (at_image, logits, _), (at_end, logits_there, _) = (
            rounding(model, points, LABELS, proved) for points in (IMAGES, ends)
        )
        torch.testing.assert_close(found.errors, at_image if sign == 1 else at_end)
        torch.testing.assert_close(found.on_image, logits.double())
        torch.testing.assert_close(found.in_ball, logits_there.double(), rtol=1e-5, atol=1e-6)
