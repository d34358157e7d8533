"""Models that are no function of one image are named, and models that are one are not."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas import datasets, spaces
from robust_nas.core.seeds import generator_at, seeded
from robust_nas.ensembles import Ensemble
from robust_nas.intake import dependence

IMAGES = torch.rand(6, 1, 8, 8, generator=generator_at("cpu", 0, "images"))

CHANCE = "The model's logits depend on chance: it draws random numbers in evaluation mode"
STATE = "The model's logits depend on a state that each pass changes"
BATCH = "The model's logits of an image depend on the other images of its batch"


class Of(nn.Module):
    """A linear model of what a function makes of the images."""

    def __init__(self, function: Callable[[Tensor], Tensor] = lambda images: images) -> None:
        super().__init__()
        with seeded(0, "linear"):
            self.linear = nn.Linear(64, 3)
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.function(images).flatten(1).to(self.linear.weight.dtype))
        return logits


def counter(*, in_place: bool) -> Callable[[Tensor], Tensor]:
    passes = torch.zeros(())

    def function(images: Tensor) -> Tensor:
        nonlocal passes
        passes = passes.add_(1) if in_place else passes + 1
        return images + 0.01 * (passes % 2)

    return function


def with_own_generator() -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda images: images + 0.01 * torch.randn(images.shape, generator=generator)


def noise_of_numpy(images: Tensor) -> Tensor:
    return images + torch.from_numpy(np.random.normal(0, 0.01, images.shape)).float()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: images + 1e-4 * torch.randn_like(images), CHANCE),
        (lambda images: F.dropout(images, 0.01), CHANCE),
        # Of two ways, chance takes the same one in two passes as often as not.
        (lambda images: images if random.random() < 0.5 else images / 2, CHANCE),
        (noise_of_numpy, CHANCE),
        (with_own_generator(), STATE),
        (counter(in_place=True), STATE),
        (counter(in_place=False), STATE),
        (lambda images: images - images.mean(0), BATCH),
        (lambda images: images + 1e-3 * images.std(0).detach(), BATCH),
        # Less than what an image alone may differ by.
        (lambda images: images + 1e-4 * images.mean(0), BATCH),
        (lambda images: images.flip(0), BATCH),
        (lambda images: F.batch_norm(images, None, None, training=True), BATCH),
        (lambda images: images + torch.arange(len(images)).view(-1, 1, 1, 1), BATCH),
        (lambda images: images / len(images), BATCH),
        # As quantisation with one scale for all.
        (lambda images: (images * 127 / images.max()).round(), BATCH),
        (lambda images: images.view(4, 64), "The model takes images in a batch, but no image alone"),
    ],
)
def test_what_else_the_logits_depend_on_is_named(function: Callable[[Tensor], Tensor], message: str) -> None:
    found = dependence(Of(function), IMAGES)
    assert found is not None and found.startswith(message)


def test_one_image_is_enough_to_tell() -> None:
    assert (dependence(Of(lambda images: images - images.mean(0)), IMAGES[:1]) or "").startswith(BATCH)
    assert dependence(Of(), IMAGES[:1]) is None


def batch_norms(**options: bool) -> nn.Module:
    with seeded(0, "network"):
        parts = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, **options), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3)]
        return nn.Sequential(*parts).train()


def test_batch_norm_without_running_statistics_depends_on_the_batch_and_with_them_it_does_not() -> None:
    assert (dependence(batch_norms(track_running_stats=False), IMAGES) or "").startswith(BATCH)
    assert dependence(batch_norms(), IMAGES) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda images: images.sub_(0.5),
        lambda images: (images + 1e5) - 1e5,
        lambda images: images.round(),
        lambda images: images.bfloat16() * 3,
        lambda images: images / 0,
        # Draws, of which the logits do not depend.
        lambda images: images + 0 * torch.randn_like(images),
    ],
)
def test_nothing_is_said_of_functions_of_one_image(function: Callable[[Tensor], Tensor]) -> None:
    assert dependence(Of(function), IMAGES) is None


def test_nothing_is_said_of_our_networks_nor_of_their_ensembles() -> None:
    data = datasets.load("digits")
    images = data.test[:6].images
    nas = spaces.load("nasbench201", channels=4)
    with seeded(0, "networks"):
        cell = nas.parse("|nor_conv_3x3~0|+|avg_pool_3x3~0|skip_connect~1|+|none~0|nor_conv_1x1~1|nor_conv_3x3~2|")
        networks = [nas.network(cell, data), nas.network(cell, data)]
    for model in (*networks, Ensemble(networks)):
        assert dependence(model, images) is None


def test_the_model_and_the_random_generators_are_left_as_they_were() -> None:
    model, given = batch_norms(), IMAGES.clone()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    dependence(model, given)
    dependence(Of(lambda images: images + random.random() * np.random.rand() * torch.rand(())), given)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules()) and torch.equal(given, IMAGES)
    after = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    assert torch.equal(states[0], after[0]) and states[1:] == after[1:]
