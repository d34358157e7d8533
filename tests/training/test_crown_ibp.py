"""CROWN-IBP training: its loss is that of the bounds it is named after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.bounds.crown_ibp import crown_ibp_margins
from robust_nas.bounds.interval import interval_margins
from robust_nas.core.errors import InputError
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory
from robust_nas.training.crown_ibp import CROWNIBP
from robust_nas.training.ibp import IBP

THREAT = ThreatModel(epsilon=0.05)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def batch(**changed: Any) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 1, 6, 6, dtype=torch.float64, generator=generator)
    labels = torch.arange(6) % 3
    places = torch.arange(6)
    made = Batch(
        images=images, labels=labels, targets=labels, threat=THREAT, seed=0, ids=places, places=places, num_samples=6,
        batch_size=6, memory=Memory(),
    )  # fmt: skip
    return replace(made, **changed)


def worst(margins: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(-margins.scatter(1, labels[:, None], 0.0), labels)


@pytest.mark.parametrize("scale", [0.25, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_the_loss_is_the_cross_entropy_at_the_mixed_bounds(beta: float, scale: float) -> None:
    model, at = network(), batch(epsilon_scale=scale)
    share = 1 - scale * (1 - beta)
    lines = crown_ibp_margins(model, at.images, at.labels, THREAT).lower(THREAT)
    intervals = interval_margins(model, at.images, at.labels, THREAT)
    own = F.one_hot(at.labels, 3).bool()
    mixed = torch.where(own, 0.0, share * lines.masked_fill(own, 0) + (1 - share) * intervals.masked_fill(own, 0))
    clean = F.cross_entropy(model(at.images), at.labels)
    expected = (1 - scale) * clean + scale * worst(mixed, at.labels)
    torch.testing.assert_close(CROWNIBP(beta=beta).loss(model, at.images, at), expected)


def test_without_lines_at_the_end_it_is_ibp() -> None:
    model, at = network(), batch()
    torch.testing.assert_close(CROWNIBP().loss(model, at.images, at), IBP(kappa=0).loss(model, at.images, at))


def test_its_gradient_is_that_of_finite_differences() -> None:
    model, at = network(), batch(epsilon_scale=0.5)
    weight = model[0].weight
    (gradient,) = torch.autograd.grad(CROWNIBP(beta=0.3).loss(model, at.images, at), weight)
    direction = torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(2))
    ends = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            weight.add_(step * direction)
            ends.append(float(CROWNIBP(beta=0.3).loss(model, at.images, at)))
            weight.sub_(step * direction)
    assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


def test_a_share_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(InputError, match="beta"):
        CROWNIBP(beta=1.5)
