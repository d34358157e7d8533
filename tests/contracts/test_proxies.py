"""The contract of scores; a new file in robust_nas/proxies is tested without writing a test."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust_nas import proxies
from robust_nas.core.errors import InputError
from robust_nas.core.registry import name_of
from robust_nas.core.seeds import seeded
from robust_nas.datasets import DataForm
from robust_nas.proxies import Proxy
from robust_nas.spaces import load
from robust_nas.threat import ThreatModel

THREAT = ThreatModel(norm="linf", epsilon=8 / 255)
ARCHITECTURES = ["333333", "323133", "111111", "444444", "000300", "203104"]
# Looks at no image.
COUNTS = {"num_params"}


@pytest.fixture(params=proxies.names())
def proxy(request: pytest.FixtureRequest) -> Proxy:
    found: Proxy = proxies.get(request.param)()
    return found


def network(architecture: str = "323133", seed: int = 0) -> nn.Module:
    space = load("nasbench201", channels=4, cells_per_stage=1)
    with seeded(seed, "test"):
        return space.network(space.parse(architecture), DataForm("d", tuple("abcde"), (3, 16, 16)))


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 16, 16, generator=generator), torch.arange(count) % 5


def state(model: nn.Module) -> list[Any]:
    """Return everything about a model that a score may not change."""
    return [
        [module.training for module in model.modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        [getattr(module, "momentum", None) for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [
            None if parameter.grad is None else (id(parameter.grad), parameter.grad.sum())
            for parameter in model.parameters()
        ],
        [(id(tensor), tensor.tolist()) for tensor in [*model.parameters(), *model.buffers()]],
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_score_is_finite_and_better_than_that_of_a_constant_network(proxy: Proxy, architecture: str) -> None:
    score = proxy.score(network(architecture), *batch(), THREAT)
    constant = proxy.score(network("000000"), *batch(), THREAT)
    assert isinstance(score, float) and math.isfinite(score) and math.isfinite(constant)
    # Without a convolution there are no more parameters than without a connection.
    assert score >= constant if name_of(proxy) in COUNTS else score > constant


def test_equal_arguments_give_equal_scores_whatever_the_global_random_state(proxy: Proxy) -> None:
    model, (images, labels) = network(), batch()
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        scores.append(proxy.score(model, images, labels, THREAT, seed=5))
        assert torch.equal(torch.get_rng_state(), before)
    assert scores[0] == scores[1]


def test_another_initialisation_and_seed_give_another_score(proxy: Proxy) -> None:
    scores = {proxy.score(network(seed=seed), *batch(), THREAT, seed=seed) for seed in (0, 1)}
    assert len(scores) == (1 if name_of(proxy) in COUNTS else 2)


@pytest.mark.parametrize("training", [False, True])
def test_the_network_and_the_images_are_left_as_they_were(proxy: Proxy, training: bool) -> None:
    model, (images, labels) = network().train(training), batch()
    for parameter in list(model.parameters())[::2]:
        parameter.grad = torch.ones_like(parameter)
    next(model.parameters()).requires_grad_(False)
    before, originals = state(model), images.clone()
    proxy.score(model, images, labels, THREAT)
    assert state(model) == before
    assert torch.equal(images, originals) and not images.requires_grad


def test_the_mode_and_the_frozen_parameters_of_a_network_do_not_matter(proxy: Proxy) -> None:
    if name_of(proxy) in COUNTS:
        pytest.skip("counts the parameters that are trained")
    wanted = proxy.score(network().eval(), *batch(), THREAT)
    with torch.no_grad():
        found = proxy.score(network().train().requires_grad_(False), *batch(), THREAT)
    assert found == pytest.approx(wanted, rel=1e-6)


def test_an_exception_leaves_the_network_as_it_was(proxy: Proxy) -> None:
    if name_of(proxy) in COUNTS:
        pytest.skip("uses no network")
    model, (images, labels) = network().train(), batch()
    with torch.no_grad():
        model.classifier.bias[0] = torch.nan
    before = str(state(model))
    with pytest.raises(InputError, match="logits are not finite"):
        proxy.score(model, images, labels, THREAT)
    assert str(state(model)) == before


def test_one_image_is_refused(proxy: Proxy) -> None:
    if name_of(proxy) in COUNTS:
        pytest.skip("looks at no image")
    with pytest.raises(InputError, match="needs at least 2 images, but got 1"):
        proxy.score(network(), *batch(1), THREAT)


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_the_size_of_chunks_does_not_change_the_score(proxy: Proxy, chunk_size: int) -> None:
    if not hasattr(proxy, "chunk_size"):
        pytest.skip(f"{name_of(proxy)} takes the batch at once")
    other = dataclasses.replace(proxy, chunk_size=chunk_size)  # type: ignore[type-var]
    wanted, found = (one.score(network(), *batch(), THREAT) for one in (proxy, other))
    assert found == pytest.approx(wanted, rel=1e-3)


def test_a_network_in_double_precision_has_about_the_same_score(proxy: Proxy) -> None:
    images, labels = batch()
    single = proxy.score(network(), images, labels, THREAT)
    double = proxy.score(network().double(), images.double(), labels, THREAT)
    # Draws are the same numbers either way; an attack's steps may take another side.
    assert double == pytest.approx(single, rel=0.05)


class Shifted(nn.Module):
    """A network that changes its input and its features, in place or not."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        with seeded(0, "test"):
            self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Linear(576, 5)])

    def forward(self, images: Tensor) -> Tensor:
        change = images.sub_(0.5) if self.in_place else images - 0.5
        features = self.layers[2](self.layers[1](self.layers[0](change)).relu())
        logits: Tensor = self.layers[3]((features.relu_() if self.in_place else features.relu()).flatten(1))
        return logits


def test_a_network_that_writes_into_its_input_is_scored_as_one_that_does_not(proxy: Proxy) -> None:
    images, labels = batch()
    found = [proxy.score(Shifted(in_place=each), images, labels, THREAT) for each in (False, True)]
    assert found[0] == found[1] and torch.equal(images, batch()[0])
