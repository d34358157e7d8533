"""Gaussian noise on the images: how much there is, that it is not clipped, and what is minimised."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import robust_nas as rn
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory
from robust_nas.training.gaussian import Gaussian


def _batch(seed: int = 0) -> Batch:
    images = torch.rand(64, 1, 20, 20, generator=torch.Generator().manual_seed(1))
    places = torch.arange(64)
    return Batch(images, places % 3, places % 3, ThreatModel(epsilon=0.1), seed, places, places, 64, 64, Memory())


def test_the_noise_has_the_deviation_asked_for_and_leaves_zero_to_one() -> None:
    batch, model = _batch(), nn.Identity()
    crafted = Gaussian(sigma="64/255").craft(model, batch)  # type: ignore[arg-type]
    noise = (crafted - batch.images).double() / (64 / 255)
    # 25,600 numbers: the mean to 5 standard errors, and the variance.
    assert abs(float(noise.mean())) < 5 / 160 and abs(float(noise.var()) - 1) < 5 * math.sqrt(2) / 160
    assert float(crafted.min()) < -0.3 and float(crafted.max()) > 1.3
    assert not torch.equal(crafted, Gaussian(sigma="64/255").craft(model, _batch(seed=1)))  # type: ignore[arg-type]


def test_the_loss_is_the_cross_entropy_at_the_noisy_images_alone() -> None:
    batch, method = _batch(), Gaussian(sigma=0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 3))
    crafted = method.craft(model, batch)
    torch.testing.assert_close(method.loss(model, crafted, batch), F.cross_entropy(model(crafted), batch.labels))


@pytest.mark.parametrize("sigma", [0.0, -1.0, 64.0])
def test_a_sigma_outside_its_range_is_refused(sigma: float) -> None:
    with pytest.raises(InputError, match=r"Gaussian.sigma must be in \(0, 10\]"):
        Gaussian(sigma=sigma)


def test_training_with_noise_gives_the_smoothed_classifier_larger_radii() -> None:
    digits = rn.datasets.load("digits")
    data = dataclasses.replace(digits, train=digits.train[:600], validation=digits.validation[:50])
    options = {"epochs": 12, "batch_size": 32, "learning_rate": 0.05, "selection_attack": "fgsm", "keep": "last"}
    radii = []
    for method in ("standard", Gaussian(sigma=0.5)):
        with seeded(0, "model"):
            model = nn.Sequential(
                nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
                nn.Linear(256, 10),
            )  # fmt: skip
        rn.train(model, data, rn.ThreatModel(epsilon=0.1), method=method, **options)
        found = rn.smooth(model, sigma=0.5, num_samples=500).certify(data.test[:60])
        radii.append(found.summary(0.25).average_radius)
    # 0.12 and 0.27, when this was written.
    assert radii[1] > 1.5 * radii[0]
