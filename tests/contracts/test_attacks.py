"""What every attack keeps to; a new file in robust_nas/attacks is tested without writing a test."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust_nas import attacks
from robust_nas.attacks import Attack
from robust_nas.errors import InputError
from robust_nas.threat import ThreatModel

# Fewer queries than by default, where that is all that takes long.
QUICK: dict[str, dict[str, Any]] = {"square": {"queries": 100}}

# So large that few images survive, and attacks that stop then are done soon.
THREATS = [ThreatModel(norm="linf", epsilon="80/255"), ThreatModel(norm="l2", epsilon=2.0)]


@pytest.fixture(params=attacks.names())
def attack(request: pytest.FixtureRequest) -> Attack:
    found: Attack = attacks.get(request.param)(**QUICK.get(request.param, {}))
    return found


def network(channels: int = 1, num_classes: int = 5) -> nn.Module:
    """Return an untrained network with batch norm, dropout and logits of ordinary size."""
    with torch.random.fork_rng():
        torch.manual_seed(channels)
        model = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(4 * 36, num_classes),
        )
        model(torch.rand(50, channels, 6, 6))
    return model.eval()


def batch(model: nn.Module, channels: int = 1, count: int = 5) -> tuple[Tensor, Tensor]:
    """Return images, half of whose pixels lie on the border of [0, 1], and the model's own predictions as labels."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(count, channels, 6, 6, generator=generator) * 2 - 0.5).clamp(0, 1)
    with torch.no_grad():
        return images, model(images).argmax(1)


def state(model: nn.Module) -> list[Any]:
    """Return everything about a model that an attack may not change."""
    return [
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [
            None if parameter.grad is None else (id(parameter.grad), parameter.grad.tolist())
            for parameter in model.parameters()
        ],
        [(id(tensor), tensor.tolist()) for tensor in [*model.parameters(), *model.buffers()]],
    ]


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
@pytest.mark.parametrize("num_classes", [2, 3, 4, 12])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_inside_the_ball_and_the_box_exactly(
    attack: Attack, threat: ThreatModel, num_classes: int, channels: int
) -> None:
    model = network(channels, num_classes)
    images, labels = batch(model, channels)
    originals = images.clone()
    try:
        found = attack.perturb(model, images, labels, threat, seed=3)
    except InputError as error:
        assert num_classes < 4 and "classes" in str(error) and str(num_classes) in str(error)
        return
    assert found.shape == images.shape and found.dtype == images.dtype and not found.requires_grad
    assert torch.equal(images, originals)
    moved = found.double() - images.double()
    length = moved.abs().flatten(1).amax(1) if threat.norm == "linf" else moved.flatten(1).norm(dim=1)
    assert (length <= threat.epsilon).all()
    assert found.min() >= 0 and found.max() <= 1
    assert (model(found).argmax(1) != labels).any(), "the attack does nothing at a large radius"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_the_model_is_left_as_it_was(attack: Attack, training: bool, batch_norm: str) -> None:
    if batch_norm in {"batch"}:
        if "batch_norm" not in {field.name for field in dataclasses.fields(attack)}:  # type: ignore[arg-type]
            return
        attack = dataclasses.replace(attack, batch_norm=batch_norm)  # type: ignore[type-var]
    model = network()
    images, labels = batch(model)
    model.train(training)
    model[1].train(not training)
    model(images).sum().backward()
    model[0].bias.requires_grad_(False)
    model[5].weight.grad = None
    before = state(model)
    attack.perturb(model, images, labels, THREATS[0])
    assert state(model) == before


def test_the_model_is_left_as_it_was_when_it_raises(attack: Attack) -> None:
    model = network()
    images, labels = batch(model)
    model.train()
    before = state(model)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = model[2].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        attack.perturb(model, images, labels, THREATS[0])
    handle.remove()
    assert state(model) == before


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
def test_equal_seeds_give_equal_images_and_the_global_random_state_is_not_touched(
    attack: Attack, threat: ThreatModel
) -> None:
    model = network()
    images, labels = batch(model)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = attack.perturb(model, images, labels, threat, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(attack.perturb(model, images, labels, threat, seed=7), first)


def test_an_attack_works_where_gradients_are_switched_off(attack: Attack) -> None:
    model = network()
    images, labels = batch(model)
    with torch.no_grad():
        found = attack.perturb(model, images, labels, THREATS[0], seed=7)
    assert torch.equal(found, attack.perturb(model, images, labels, THREATS[0], seed=7))


def test_nan_logits_are_refused(attack: Attack) -> None:
    model = network()
    images, labels = batch(model)
    with torch.no_grad():
        model[5].weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        attack.perturb(model, images, labels, THREATS[0])


def test_images_outside_the_unit_interval_are_refused(attack: Attack) -> None:
    model = network()
    images, labels = batch(model)
    with pytest.raises(InputError, match="divide by 255"):
        attack.perturb(model, images * 255, labels, THREATS[0])


@pytest.mark.parametrize("count", [0, 1])
def test_batches_of_no_image_and_of_one_image_are_batches(attack: Attack, count: int) -> None:
    model = network()
    images, labels = batch(model, count=count)
    assert attack.perturb(model, images, labels, THREATS[0]).shape == images.shape
