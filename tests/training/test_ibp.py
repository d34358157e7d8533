"""IBP training: its loss, and what it certifies."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas import datasets
from robust_nas.bounds.interval import Interval
from robust_nas.core.config import build
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory, Training, fit
from robust_nas.training.ibp import IBP


def _batch(scale: float = 1.0) -> Batch:
    part, places = datasets.load("digits").train[:16], torch.arange(16)
    threat = ThreatModel(epsilon=0.05)
    return Batch(
        part.images, part.labels, part.labels, threat, 0, places, places, 16, 16, Memory(), epsilon_scale=scale
    )


def _model() -> nn.Module:
    with seeded(0, "model"):
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)
        ).train()


def _loss(kappa: float, scale: float = 1.0, **options: float) -> float:
    batch = _batch(scale)
    return float(IBP(kappa=kappa, **options).loss(_model(), batch.images, batch))


def test_the_bound_is_the_intervals_of_the_network_frozen_at_the_clean_statistics() -> None:
    # The published way, by hand: batch norm as a convolution's scale and shift, then centre and radius.
    model, batch = _model(), _batch()
    images, labels = batch.images.double(), batch.labels
    convolution, norm, last = (model[place].double() for place in (0, 1, 4))
    low, high = (images - 0.05).clamp(0, 1), (images + 0.05).clamp(0, 1)
    centre, radius = (low + high) / 2, (high - low) / 2
    before = convolution(images)
    mean, variance = before.mean((0, 2, 3)), before.var((0, 2, 3), correction=0)
    scale = (norm.weight / (variance + norm.eps).sqrt()).view(1, -1, 1, 1)
    centre = (convolution(centre) - mean.view(1, -1, 1, 1)) * scale + norm.bias.view(1, -1, 1, 1)
    radius = F.conv2d(radius, convolution.weight.abs(), stride=2) * scale.abs()
    low, high = ((centre - radius).relu().flatten(1), (centre + radius).relu().flatten(1))
    rows = last.weight.unsqueeze(0) - last.weight[labels].unsqueeze(1)  # [B, K, 72]: f_j - f_y
    worst = (rows.clamp_min(0) * high.unsqueeze(1) + rows.clamp_max(0) * low.unsqueeze(1)).sum(2)
    worst = worst + last.bias - last.bias[labels].unsqueeze(1)
    assert _loss(kappa=0) == pytest.approx(float(worst.logsumexp(1).mean()), rel=1e-5)


def test_kappa_goes_from_one_to_its_last_value_as_epsilon_grows() -> None:
    bound = _loss(kappa=0)
    clean = float(F.cross_entropy(_model()(_batch().images), _batch().labels))
    assert bound > clean
    for scale in (0.0, 0.25, 1.0):
        kappa = 1 - 0.6 * scale
        assert _loss(kappa=0.4, scale=scale) == pytest.approx(kappa * clean + (1 - kappa) * bound, rel=1e-5)
    for scale in (0.0, 0.25, 1.0):
        kappa = 0.2 + 0.2 * scale
        found = _loss(kappa=0.4, scale=scale, kappa_start=0.2)
        assert found == pytest.approx(kappa * clean + (1 - kappa) * bound, rel=1e-5)
    with pytest.raises(InputError, match=r"IBP\.kappa must be in \[0, 1\]"):
        IBP(kappa=1.5)


def _certified(method: object, epochs: int) -> Tensor:
    """Return the share of digits that intervals certify at 0.03 after a short training."""
    digits, threat = datasets.load("digits"), ThreatModel(epsilon=0.03)
    data = dataclasses.replace(digits, train=digits.train[:320], validation=digits.validation[:32])
    options = {"epochs": epochs, "batch_size": 32, "epsilon_ramp": 0.5, "selection_attack": "fgsm", "keep": "last"}
    plan = build(Training, {"method": method, "gradient_clip": 10.0, **options}, "train")
    with seeded(0, "network"):
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10),
        )  # fmt: skip
    trained = fit(model, data, threat, plan, Stage("train", 0, World(), Progress(quiet=True))).model
    test = digits.test[:200]
    lower = Interval().margins(trained, test.images, test.labels, threat).lower(threat)
    return (lower > 0).all(1).double().mean()


def test_intervals_certify_more_of_it_than_of_adversarial_training() -> None:
    ours = _certified("ibp", epochs=6)
    theirs = _certified({"name": "pgd_at", "attack": {"name": "pgd", "steps": 3, "step_size": 0.015}}, epochs=6)
    assert ours > 0.5
    assert ours > theirs + 0.2
