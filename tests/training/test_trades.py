"""TRADES: the loss by formula, the ascent by closed form, and beta 0 is standard training."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.threat import Norm, ThreatModel
from robust_nas.training import Batch, Memory
from robust_nas.training.trades import TRADES

THREAT = ThreatModel(epsilon=0.031)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(6, 1, 4, 4, generator=generator), torch.arange(6) % 3
    return Batch(images, labels, labels, THREAT, 7, torch.arange(6), torch.arange(6), 6, 6, Memory())


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).train()


class Given(nn.Module):
    """Logits that are looked up: the first pixel says in which row."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_the_loss_and_its_gradient_are_those_of_the_formula_image_by_image(batch: Batch) -> None:
    # Rows 0 to 2 are the clean logits, 3 to 5 the adversarial ones.
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    clean, crafted = (torch.arange(start, start + 3.0).view(3, 1, 1, 1) for start in (0, 3))
    small = replace(batch, images=clean, labels=torch.tensor([0, 3, 1]), targets=torch.tensor([0, 3, 1]))

    def by_hand(rows: list[list[float]]) -> float:
        total = 0.0
        for image, label in enumerate([0, 3, 1]):
            p, q = ([math.exp(z) / sum(map(math.exp, rows[row])) for z in rows[row]] for row in (image, image + 3))
            total -= math.log(p[label])
            total += 6 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        return total / 3

    model = Given(logits)
    loss = TRADES().loss(model, crafted, small)
    assert loss.item() == pytest.approx(by_hand(logits.tolist()), rel=1e-12)
    loss.backward()
    for row, column in [(0, 0), (1, 2), (3, 0), (5, 3)]:
        up, down = logits.tolist(), logits.tolist()
        up[row][column] += 1e-6
        down[row][column] -= 1e-6
        # The clean predictions are moved as well as the adversarial ones.
        expected = (by_hand(up) - by_hand(down)) / 2e-6
        assert float(model.logits.grad[row, column]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_beta_zero_is_standard_training_bit_by_bit(batch: Batch, model: nn.Module) -> None:
    method, plain = TRADES(beta=0), copy.deepcopy(model)
    crafted = method.craft(model, batch)
    assert crafted is batch.images
    got = gradients(model, method.loss(model, crafted, batch))
    expected = gradients(plain, F.cross_entropy(plain(batch.images), batch.labels))
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    # The batch norm has seen one batch, not two.
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), plain.buffers(), strict=True))


def test_at_unperturbed_images_the_divergence_adds_nothing(batch: Batch, model: nn.Module) -> None:
    got = gradients(model, TRADES().loss(model, batch.images.clone(), batch))
    expected = gradients(model, F.cross_entropy(model(batch.images), batch.labels))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_batch_norm_sees_the_clean_images_and_then_the_adversarial_ones(batch: Batch, model: nn.Module) -> None:
    crafted = 1 - batch.images
    with torch.no_grad():
        of_clean, of_crafted = (model[0](images).mean((0, 2, 3)) for images in (batch.images, crafted))
    TRADES().loss(model, crafted, batch)
    torch.testing.assert_close(model[1].running_mean, 0.9 * 0.1 * of_clean + 0.1 * of_crafted)


@pytest.mark.parametrize("targets", ["smoothed", "labels"])
def test_the_targets_are_those_of_the_clean_term(batch: Batch, model: nn.Module, targets: str) -> None:
    wanted = F.one_hot(batch.labels, 3).float()
    wanted = 0.9 * wanted + 0.1 / 3 if targets == "smoothed" else wanted
    loss = TRADES(beta=1e-9).loss(model, batch.images, replace(batch, targets=wanted))
    expected = -(wanted * model(batch.images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_the_ascent_starts_from_noise_of_the_given_size_inside_the_ball(batch: Batch, model: nn.Module) -> None:
    images = torch.full((40, 1, 30, 30), 0.5)
    many = replace(batch, images=images, labels=torch.zeros(40).long())
    resting = TRADES(attack=PGD(steps=0, loss="kl"))  # no step: the start is returned
    delta = resting.craft(nn.Sequential(nn.Flatten(), nn.Linear(900, 3)), many) - images
    # 36,000 normal numbers: the standard deviation of their mean is 0.001 / 190, that of their deviation 0.001 / 268.
    assert abs(float(delta.mean())) < 5 * 0.001 / 190
    assert abs(float(delta.std()) - 0.001) < 5 * 0.001 / 268
    other = resting.craft(nn.Sequential(nn.Flatten(), nn.Linear(900, 3)), replace(many, seed=8)) - images
    assert not torch.equal(delta, other)
    tight = replace(many, threat=ThreatModel(epsilon=0.001))
    clipped = resting.craft(nn.Sequential(nn.Flatten(), nn.Linear(900, 3)), tight) - images
    assert float(clipped.abs().max()) <= 0.001 and float((clipped.abs() > 0.00099).float().mean()) > 0.3


def test_on_a_linear_model_the_divergence_is_largest_at_a_corner_of_the_ball_and_the_ascent_gets_there() -> None:
    # KL between two-class predictions grows with the change of f on either side; both corners are local maxima.
    weights = 0.3 * torch.randn(16, generator=torch.Generator().manual_seed(2))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([weights, -weights]))
        model[1].bias.zero_()
    images = 0.3 + 0.4 * torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    labels = torch.zeros(8).long()
    batch = Batch(images, labels, labels, THREAT, 0, torch.arange(8), torch.arange(8), 8, 8, Memory())
    delta = TRADES().craft(model, batch) - images
    sides = (delta.flatten(1) @ weights).sign().view(-1, 1, 1, 1)
    torch.testing.assert_close(delta, sides * THREAT.epsilon * weights.sign().view(1, 1, 4, 4).expand_as(delta))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_is_crafted_is_inside_the_ball_of_every_norm(batch: Batch, model: nn.Module, norm: Norm) -> None:
    threat = ThreatModel(norm=norm, epsilon=0.1)
    crafted = TRADES().craft(model, replace(batch, threat=threat))
    assert bool(threat.around(batch.images).contains(crafted).all())
    assert not torch.equal(crafted, batch.images)


def test_an_attack_that_cannot_start_at_given_points_starts_as_it_does(batch: Batch, model: nn.Module) -> None:
    crafted = TRADES(attack=FGSM()).craft(model, batch)
    assert torch.equal(crafted, FGSM().perturb(model, batch.images, batch.labels, THREAT))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "TRADES.beta must be at least 0, but got -1"),
        ({"beta": math.nan}, "TRADES.beta must be at least 0"),
        ({"noise": 0.0}, r"TRADES.noise must be in \(0, 1\]"),
    ],
)
def test_a_wrong_setting_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TRADES(**options)
