"""SPROUT: the labels that are learned, the images that are mixed, and which way each of them moves."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory
from robust_nas.training.sprout import SPROUT
from robust_nas.training.standard import Standard


def _model() -> nn.Module:
    with seeded(0, "model"):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).train()


def _batch(memory: Memory, seed: int = 0, images: Tensor | None = None, labels: Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(8, 1, 6, 6, generator=generator) if images is None else images
    labels = torch.randint(0, 3, (len(images),), generator=generator) if labels is None else labels
    places = torch.arange(len(images))
    return Batch(
        images=images,
        labels=labels,
        targets=labels,
        threat=ThreatModel(epsilon=0.1),
        seed=seed,
        ids=places,
        places=places,
        num_samples=len(images),
        batch_size=len(images),
        memory=memory,
    )


def _moved(method: SPROUT, model: nn.Module, batch: Batch, beta: Tensor) -> Tensor:
    """Return beta after the step that is due once `interval` network steps are done."""
    batch.memory.shared |= {"network_steps": method.interval, "label_parameters": beta}
    method.craft(model, batch)
    after: Tensor = batch.memory.shared["label_parameters"]
    return after


def _expected_loss(model: nn.Module, batch: Batch, beta: Tensor) -> Tensor:
    """Return the mean cross-entropy with the mean of Dir(10 y + beta), in double precision and batch statistics."""
    model = copy.deepcopy(model).double().train()
    with torch.no_grad():
        log_probabilities = model(batch.images.double()).log_softmax(1)
    parameters = 10 * torch.eye(len(beta)).double()[batch.labels] + beta.double()
    return -(parameters / parameters.sum(1, keepdim=True) * log_probabilities).sum(1).mean()


BETA = torch.tensor([1.0, 2.5, 0.4])


def test_label_parameters_move_along_the_slope_of_the_loss() -> None:
    model, batch, h = _model(), _batch(Memory()), 1e-5
    step = (_moved(SPROUT(learning_rate=1.0), model, batch, BETA) - BETA).double()
    for k in range(3):
        nudge = h * torch.eye(3).double()[k]
        slope = _expected_loss(model, batch, BETA + nudge) - _expected_loss(model, batch, BETA - nudge)
        assert float(step[k]) == pytest.approx(float(slope) / (2 * h), abs=1e-5)


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_label_parameters_move_up_the_loss(batch_norm: str) -> None:
    model, batch = _model(), _batch(Memory())
    beta = _moved(SPROUT(batch_norm=batch_norm), model, batch, BETA)
    assert not torch.equal(beta, BETA)
    if batch_norm == "batch":
        assert _expected_loss(model, batch, beta) > _expected_loss(model, batch, BETA)


def test_a_class_that_the_model_never_predicts_gains_the_most_weight() -> None:
    # With equal logits in two classes and a small one in the third, the loss grows most with the third.
    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([0.0, 0.0, -5.0]).expand(len(images), 3)

    batch = _batch(Memory(), labels=torch.tensor([0, 1] * 4))
    beta = _moved(SPROUT(), Fixed(), batch, torch.ones(3))
    assert beta[2] > 1
    assert beta[0] < 1
    assert beta[0] == pytest.approx(float(beta[1]))


def test_label_parameters_stay_positive() -> None:
    beta = _moved(SPROUT(learning_rate=1e6), _model(), _batch(Memory()), BETA)
    assert bool((beta > 0).all())
    memory = Memory(shared={"label_parameters": beta})
    assert bool(SPROUT().loss(_model(), torch.rand(8, 1, 6, 6), _batch(memory)).isfinite())


def test_label_parameters_move_after_every_interval_of_network_steps() -> None:
    model, memory, seen = _model(), Memory(), []
    method = SPROUT(interval=3)
    for step in range(8):
        batch = _batch(memory, seed=step)
        method.loss(model, method.craft(model, batch), batch)
        seen.append(memory.shared["label_parameters"].clone())
    moves = [not torch.equal(one, other) for one, other in itertools.pairwise(seen)]
    # Three steps, one move before the fourth, three steps, ...
    assert torch.equal(seen[0], torch.ones(3))
    assert moves == [False, False, True, False, False, True, False]


def test_two_ranks_move_the_label_parameters_as_one_process_does() -> None:
    # Evaluation statistics: a half batch's own would differ.
    method, model, whole = SPROUT(batch_norm="running", learning_rate=0.5), _model(), _batch(Memory())
    expected = _moved(method, model, whole, BETA)
    parts = [slice(0, 4), slice(4, 8)]
    sent: list[Tensor] = []
    for part in parts:
        batch = _batch(Memory(), images=whole.images[part], labels=whole.labels[part])
        object.__setattr__(batch, "mean", lambda value: (sent.append(value), value)[1])
        _moved(method, model, batch, BETA)
    assert torch.allclose(BETA + 0.5 * (sent[0] + sent[1]) / 2, expected, atol=1e-6)


def test_drawn_labels_have_the_mean_and_the_variance_of_their_dirichlet_distribution() -> None:
    # At equal logits the gradient of the loss is softmax minus label.
    count = 4000
    logits = torch.zeros(count, 3, requires_grad=True)
    batch = _batch(
        Memory(shared={"label_parameters": BETA}),
        images=torch.rand(count, 1, 1, 1),
        labels=torch.ones(count, dtype=torch.long),
    )
    (gradient,) = torch.autograd.grad(SPROUT(mixup=0.0).loss(lambda _: logits, batch.images, batch), logits)
    labels = 1 / 3 - count * gradient
    assert torch.allclose(labels.sum(1), torch.ones(count), atol=1e-3)
    parameters = torch.tensor([1.0, 12.5, 0.4])
    total = float(parameters.sum())
    mean = parameters / total
    assert torch.allclose(labels.mean(0), mean, atol=0.01)
    assert torch.allclose(labels.var(0), mean * (1 - mean) / (total + 1), atol=0.001)


def test_images_and_labels_are_mixed_alike() -> None:
    # Image k is k/8 everywhere and of class k: a mixed image tells its mean label.
    count = 8
    images = (torch.arange(count) / count).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    logits = torch.zeros(count, count, requires_grad=True)
    method, shares = SPROUT(noise=0.0, alpha=0.0, mixup=1.0), set()
    for seed in range(5):
        batch = _batch(Memory(), seed=seed, images=images, labels=torch.arange(count))
        crafted = method.craft(nn.Identity(), batch)
        (gradient,) = torch.autograd.grad(method.loss(lambda _: logits, crafted, batch), logits)
        labels = 1 / count - count * gradient
        assert torch.allclose(labels.sum(1), torch.ones(count), atol=1e-5)
        assert torch.allclose(labels @ torch.arange(count).float() / count, crafted[:, 0, 0, 0], atol=1e-5)
        assert not torch.equal(crafted, images)
        shares.add(round(float(labels.amax(1).amax()), 4))
    assert len(shares) > 1


def test_noise_has_the_asked_standard_deviation_and_is_clipped_to_images() -> None:
    method = SPROUT(noise=0.1, mixup=0.0)
    batch = _batch(Memory(), images=torch.full((20, 1, 20, 20), 0.5), labels=torch.zeros(20, dtype=torch.long))
    crafted = method.craft(nn.Identity(), batch)
    assert float(crafted.std()) == pytest.approx(0.1, rel=0.05)
    assert float(crafted.mean()) == pytest.approx(0.5, abs=0.01)
    batch = _batch(Memory(), images=torch.ones(20, 1, 20, 20), labels=torch.zeros(20, dtype=torch.long))
    crafted = method.craft(nn.Identity(), batch)
    # Half of the noise points out of [0, 1].
    assert float((crafted == 1).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_without_noise_mixing_and_smoothing_it_is_standard_training() -> None:
    ends = []
    for method in (SPROUT(noise=0.0, mixup=0.0, alpha=0.0), Standard()):
        model, memory = _model(), Memory()
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(7):
            batch = _batch(memory, seed=step)
            loss = method.loss(model, method.craft(model, batch), batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        ends.append(model.state_dict())
    assert all(torch.allclose(ends[0][name], value, atol=1e-6) for name, value in ends[1].items())


def test_labels_that_are_smoothed_already_are_used_as_they_are() -> None:
    batch = _batch(Memory())
    soft = F.one_hot(batch.labels, 3).float() * 0.7 + 0.1
    object.__setattr__(batch, "targets", soft)
    model = _model()
    loss = SPROUT(noise=0.0, mixup=0.0, alpha=0.0).loss(model, batch.images, batch)
    expected = F.cross_entropy(_model()(batch.images), soft)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)


def test_settings_out_of_range_are_named() -> None:
    for name, value in (("noise", -0.1), ("mixup", -1.0), ("alpha", 1.5), ("concentration", 0.0), ("interval", 0)):
        with pytest.raises(InputError, match=name):
            SPROUT(**{name: value})
