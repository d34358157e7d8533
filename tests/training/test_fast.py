"""Single-step training: the steps by closed form on linear models, GradAlign by hand in double precision."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.core.errors import InputError
from robust_nas.core.seeds import generator_at
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory
from robust_nas.training.fast import Fast

THREAT = ThreatModel(epsilon=0.05)
EPSILON = THREAT.epsilon


def batch_of(images: Tensor, labels: Tensor, threat: ThreatModel = THREAT, seed: int = 3) -> Batch:
    places = torch.arange(len(images))
    return Batch(images, labels, labels, threat, seed, places, places, len(images), len(images), Memory())


class TwoClasses(nn.Module):
    """Logits (f, -f) of the linear f(x) = <w, x>; the loss of class 0 grows against w, that of class 1 along it."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, images: Tensor) -> Tensor:
        f = (images * self.weights).flatten(1).sum(1)
        return torch.stack([f, -f], dim=1)


@pytest.fixture
def linear() -> TwoClasses:
    return TwoClasses(0.1 * torch.randn(1, 30, 30, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def grey() -> Batch:
    """Images so far from 0 and 1 that no step ends there."""
    images = 0.3 + 0.4 * torch.rand(40, 1, 30, 30, generator=torch.Generator().manual_seed(1))
    return batch_of(images, torch.arange(40) % 2)


def uphill(linear: TwoClasses, batch: Batch) -> Tensor:
    """Return the sign of the loss's gradient, [B, 1, 30, 30]."""
    return (2.0 * batch.labels - 1).view(-1, 1, 1, 1) * linear.weights.detach().sign()


def test_fgsm_rs_on_a_linear_model_has_the_distribution_of_the_closed_form(linear: TwoClasses, grey: Batch) -> None:
    gained = (Fast().craft(linear, grey) - grey.images) * uphill(linear, grey) / EPSILON
    # From u uniform in (-1, 1) a step of 1.25 ends at min(u + 1.25, 1): never below 1/4, at 1 with probability 5/8,
    # with the mean 5/8 + (integral of u + 1.25 from -1 to -1/4) / 2 = 55/64. Its variance is below 9/64.
    assert float(gained.min()) >= 0.25 - 1e-4 and float(gained.max()) <= 1 + 1e-4
    assert abs(float(gained.mean()) - 55 / 64) < 5 * (3 / 8) / 190  # 36,000 pixels
    assert abs(float((gained > 1 - 1e-4).float().mean()) - 5 / 8) < 5 * math.sqrt(15) / 8 / 190


def test_a_step_twice_epsilon_long_ends_at_the_strongest_corner(linear: TwoClasses, grey: Batch) -> None:
    crafted = Fast(step_size=2 * EPSILON).craft(linear, grey)
    torch.testing.assert_close(crafted, grey.images + EPSILON * uphill(linear, grey))


def test_without_a_random_start_one_step_ends_at_the_strongest_corner(linear: TwoClasses, grey: Batch) -> None:
    crafted = Fast(start="none").craft(linear, grey)
    torch.testing.assert_close(crafted, grey.images + EPSILON * uphill(linear, grey))
    halfway = Fast(start="none", step_size=EPSILON / 2).craft(linear, grey)
    torch.testing.assert_close(halfway, grey.images + EPSILON / 2 * uphill(linear, grey))


def test_n_fgsm_adds_a_step_of_epsilon_to_noise_of_twice_epsilon_and_leaves_the_ball(
    linear: TwoClasses, grey: Batch
) -> None:
    delta = Fast(start="n_fgsm").craft(linear, grey) - grey.images
    noise = (delta - EPSILON * uphill(linear, grey)) / EPSILON
    # What is left without the step is uniform in (-2, 2), whose variance is 4/3, whatever the gradient.
    assert float(delta.abs().max()) <= 3 * EPSILON * (1 + 1e-5)
    assert float(noise.abs().max()) <= 2 * (1 + 1e-5)
    assert abs(float(noise.mean())) < 5 * math.sqrt(4 / 3) / 190
    assert abs(float((noise**2).mean()) - 4 / 3) < 5 * math.sqrt(16 / 5 - 16 / 9) / 190
    # Outside: |u + 1| > 1 for u uniform in (-2, 2), that is for u in (0, 2).
    assert abs(float((delta.abs() > EPSILON).float().mean()) - 1 / 2) < 5 * 0.5 / 190


def test_n_fgsm_is_the_published_formula_for_the_noise_that_was_drawn(linear: TwoClasses) -> None:
    # Images at the ends of [0, 1] as well: noise and step are clipped there and nowhere else.
    images = torch.rand(8, 1, 30, 30, generator=torch.Generator().manual_seed(2)).mul(1.4).sub(0.2).clamp(0, 1)
    batch = batch_of(images, torch.arange(8) % 2)
    uniform = torch.rand(images.shape, generator=generator_at("cpu", batch.seed, "n_fgsm"))
    noisy = (images + 2 * EPSILON * (2 * uniform - 1)).clamp(0, 1)
    expected = (noisy + EPSILON * uphill(linear, batch)).clamp(0, 1)
    assert torch.equal(Fast(start="n_fgsm").craft(linear, batch), expected)
    assert bool((expected == 0).any()) and bool((expected == 1).any())


@pytest.mark.parametrize(("start", "stays"), [("uniform", True), ("none", True), ("n_fgsm", False)])
def test_only_n_fgsm_says_that_it_leaves_the_ball(linear: TwoClasses, grey: Batch, start: Any, stays: bool) -> None:
    method = Fast(start=start)
    assert method.stays_in_ball == stays
    assert bool(THREAT.around(grey.images).contains(method.craft(linear, grey)).all()) == stays


@pytest.mark.parametrize("start", ["uniform", "n_fgsm"])
def test_another_step_draws_other_noise_and_the_same_step_the_same(linear: TwoClasses, grey: Batch, start: Any) -> None:
    method = Fast(start=start)
    first = method.craft(linear, grey)
    assert torch.equal(first, method.craft(linear, grey))
    assert not torch.equal(first, method.craft(linear, replace(grey, seed=4)))


@pytest.mark.parametrize("start", ["uniform", "none", "n_fgsm"])
@pytest.mark.parametrize("batch_norm", ["batch", "running"])
def test_crafting_leaves_the_model_as_it_was_and_sees_the_statistics_that_were_chosen(
    start: Any, batch_norm: Any
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).train()
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    batch = batch_of(images, torch.arange(6) % 3)
    method = Fast(start=start, batch_norm=batch_norm)
    crafted = method.craft(model, batch)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model[1].running_mean, torch.zeros(4)) and int(model[1].num_batches_tracked) == 0
    # Other running statistics matter to nothing that goes by the batch's.
    model[1].running_mean.add_(torch.tensor([3.0, -2.0, 1.0, -4.0]))
    model[1].running_var.mul_(0.01)
    assert torch.equal(crafted, method.craft(model, batch)) == (batch_norm == "batch")


# GradAlign.


def test_gradients_of_two_classes_and_a_linear_model_are_parallel(linear: TwoClasses, grey: Batch) -> None:
    model = linear.double()
    images = grey.images.double()
    batch = replace(grey, images=images)
    plain, aligned = (Fast(grad_align=weight).loss(model, images, batch) for weight in (0.0, 1000.0))
    # The two differ by 1,000 times a rounding error, and so do their gradients.
    assert plain.item() == pytest.approx(aligned.item(), abs=1e-10)
    (one,), (other,) = (torch.autograd.grad(loss, linear.weights) for loss in (plain, aligned))
    torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


class Opposite(nn.Module):
    """Logits (s, -s) with s = |<w, x - c>|: the input gradient turns around at the plane through c."""

    def __init__(self, centre: Tensor) -> None:
        super().__init__()
        self.centre, self.weights = centre, nn.Parameter(torch.ones_like(centre))

    def forward(self, images: Tensor) -> Tensor:
        s = ((images - self.centre) * self.weights).flatten(1).sum(1).abs()
        return torch.stack([s, -s], dim=1)


@pytest.mark.parametrize("flat", [0, 32])
def test_opposite_gradients_cost_twice_lambda_parallel_ones_nothing_and_missing_ones_do_not_count(flat: int) -> None:
    images = torch.rand(64, 1, 2, 2, generator=torch.Generator().manual_seed(4))
    batch = batch_of(images, torch.zeros(64).long())
    uniform = torch.rand(images.shape, generator=generator_at("cpu", batch.seed, "grad_align"))
    moved = EPSILON * (2 * uniform - 1)
    # Each image's plane is so near that some of the second points are beyond it.
    centre = images - 0.01
    beyond = (moved + 0.01).flatten(1).sum(1)[flat:] < 0
    assert 0 < int(beyond.sum()) < len(beyond)
    model = Opposite(centre)
    with torch.no_grad():
        model.weights[:flat] = 0
    difference = Fast(grad_align=0.3).loss(model, images, batch) - Fast().loss(model, images, batch)
    assert difference.item() == pytest.approx(0.3 * 2 * float(beyond.double().mean()), abs=1e-5)


class Net(nn.Module):
    """Three classes from four pixels: W2 tanh(W1 x)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first, self.second = (
            nn.Parameter(2 * torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in ((5, 4), (3, 5))
        )

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) @ self.first.T).tanh() @ self.second.T


def grad_align_by_hand(first: np.ndarray, second: np.ndarray, images: np.ndarray, eta: np.ndarray) -> float:
    """Return the mean of 1 - cos for the labels 0, 1, 2, 0, ..., from the chain rule written out."""
    total = 0.0
    for index, (image, step) in enumerate(zip(images, eta, strict=True)):
        directions = []
        for x in (image, image + step):
            hidden = np.tanh(first @ x)
            p = np.exp(second @ hidden)
            p /= p.sum()
            p[index % 3] -= 1
            directions.append(first.T @ ((1 - hidden**2) * (second.T @ p)))
        here, there = directions
        total += 1 - here @ there / np.linalg.norm(here) / np.linalg.norm(there)
    return total / len(images)


def test_grad_align_and_its_gradient_are_those_computed_by_hand() -> None:
    model, threat = Net(), ThreatModel(epsilon=0.3)
    images = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    batch = batch_of(images, torch.arange(6) % 3, threat)
    uniform = torch.rand(images.shape, dtype=torch.float64, generator=generator_at("cpu", batch.seed, "grad_align"))
    x, eta = (part.flatten(1).numpy() for part in (images, 0.3 * (2 * uniform - 1)))
    first, second = (parameter.detach().numpy().copy() for parameter in model.parameters())

    part = Fast(grad_align=1.0).loss(model, images, batch) - F.cross_entropy(model(images), batch.labels)
    assert part.item() == pytest.approx(grad_align_by_hand(first, second, x, eta), rel=1e-10)
    assert part.item() > 0.01
    part.backward()
    for parameter, values in zip(model.parameters(), (first, second), strict=True):
        for place in np.ndindex(values.shape):
            before, results = values[place], []
            for change in (1e-6, -1e-6):
                values[place] = before + change
                results.append(grad_align_by_hand(first, second, x, eta))
            values[place] = before
            assert float(parameter.grad[place]) == pytest.approx((results[0] - results[1]) / 2e-6, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("scale", [0.0, 20.0, 1e3], ids=["no gradient at all", "a sure model", "a very sure model"])
def test_grad_align_stays_finite_where_the_loss_is_flat(linear: TwoClasses, grey: Batch, scale: float) -> None:
    with torch.no_grad():
        linear.weights.mul_(scale)
    loss = Fast(grad_align=0.2).loss(linear, grey.images, grey)
    loss.backward()
    assert bool(loss.isfinite()) and bool(linear.weights.grad.isfinite().all())
    # What has no direction costs nothing, and a direction that cannot change costs nothing either.
    assert loss.item() == pytest.approx(Fast().loss(linear, grey.images, grey).item(), abs=1e-4)


@pytest.mark.parametrize(("weight", "passes"), [(0.0, 1), (0.2, 3)])
def test_grad_align_costs_two_more_forward_passes(linear: TwoClasses, grey: Batch, weight: float, passes: int) -> None:
    calls = 0

    def forward(images: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return linear(images)

    Fast(grad_align=weight).loss(forward, grey.images, grey).backward()
    assert calls == passes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "n_fgsm"}, "Fast.start 'n_fgsm' is for linf, but got an l2 threat model; set start='uniform'"),
        ({"grad_align": 0.2}, "Fast.grad_align is for linf, but got an l2 threat model; set grad_align=0"),
    ],
)
def test_what_is_for_linf_refuses_another_norm(linear: TwoClasses, grey: Batch, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Fast(**options).craft(linear, replace(grey, threat=ThreatModel(norm="l2", epsilon=0.5)))


def test_fgsm_rs_serves_every_norm(linear: TwoClasses, grey: Batch) -> None:
    threat = ThreatModel(norm="l2", epsilon=0.5)
    crafted = Fast().craft(linear, replace(grey, threat=threat))
    assert bool(threat.around(grey.images).contains(crafted).all())


@pytest.mark.parametrize("start", ["uniform", "none", "n_fgsm"])
def test_a_model_whose_logits_are_no_numbers_is_named(linear: TwoClasses, grey: Batch, start: Any) -> None:
    with torch.no_grad():
        linear.weights.fill_(math.nan)
    with pytest.raises(InputError, match="NaN"):
        Fast(start=start).craft(linear, grey)


@pytest.mark.parametrize("start", ["uniform", "none", "n_fgsm"])
def test_images_that_are_not_in_0_to_1_are_refused(linear: TwoClasses, grey: Batch, start: Any) -> None:
    with pytest.raises(InputError, match=r"must be in \[0, 1\]"):
        Fast(start=start).craft(linear, replace(grey, images=255 * grey.images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "n-fgsm"}, "Fast.start must be one of uniform, none, n_fgsm"),
        ({"grad_align": -0.1}, "Fast.grad_align must be at least 0"),
        ({"step_size": 10}, "did you mean 10/255"),
        ({"watch": 20}, r"Fast.watch is a fall in accuracy and must be in \[0, 1\], but got 20"),
        ({"batch_norm": "train"}, "Fast.batch_norm must be one of running, batch"),
    ],
)
def test_a_wrong_setting_is_refused(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Fast(**options)
