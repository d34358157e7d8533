"""The contract of attacks; a new file in robust_nas/attacks is tested without writing a test."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust_nas import attacks
from robust_nas.attacks import Attack
from robust_nas.core.errors import InputError
from robust_nas.core.registry import name_of
from robust_nas.threat import ThreatModel


class Surrogate(nn.Module):
    """A model of its own for images of 6 x 6 pixels, whatever their channels, with many classes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.linear = nn.Linear(36, 1000)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.mean(1).flatten(1).to(self.linear.weight.dtype))
        return logits


# Fewer queries than by default, where that is all that takes long; and what has no default.
QUICK: dict[str, dict[str, Any]] = {
    "opt": {"queries": 1000},
    "sign_opt": {"queries": 1000},
    "transfer": {"surrogates": (Surrogate(),)},
    "autoattack": {"steps": 10, "targets": 2, "queries": 50},
    "fab": {"steps": 20},
    "square": {"queries": 100},
}

# So large that few images survive, and attacks that stop then are done soon.
THREATS = [
    ThreatModel(norm="linf", epsilon="80/255"),
    ThreatModel(norm="l2", epsilon=2.0),
    ThreatModel(norm="l1", epsilon=20.0),
]
# Written by others: their random numbers depend on the batch.
SHARED_DRAWS = {"autoattack_reference"}


@pytest.fixture(params=attacks.names())
def attack(request: pytest.FixtureRequest) -> Attack:
    found: Attack = attacks.get(request.param)(**QUICK.get(request.param, {}))
    return found


@pytest.fixture(params=THREATS, ids=lambda threat: threat.norm)
def threat(request: pytest.FixtureRequest, attack: Attack) -> ThreatModel:
    found: ThreatModel = request.param
    if found.norm not in getattr(attack, "norms", (found.norm,)):
        pytest.skip(f"{name_of(attack)} is not for {found.norm}, and says so")
    return found


# What may refuse a norm: anything else that does has lost something.
NORMS = {"opt": ("linf", "l2"), "sign_opt": ("linf", "l2"), "szvr_g": ("linf", "l2")}


def test_an_attack_names_the_norms_it_is_for_refuses_all_others_and_takes_two_classes(attack: Attack) -> None:
    name, model = name_of(attack), network()
    assert attack.norms == NORMS.get(name, ("linf", "l2", "l1")) and attack.classes == 2
    for norm in {"linf", "l2", "l1"} - set(NORMS.get(name, ("linf", "l2", "l1"))):
        with pytest.raises(InputError, match=f"is for linf and l2, but got an {norm} threat model"):
            attack.perturb(model, *batch(model, count=1), ThreatModel(norm=norm, epsilon=0.01))  # type: ignore[arg-type]


def test_images_and_networks_of_other_precision_are_attacked_as_the_same_numbers(attack: Attack) -> None:
    model = network()
    images, labels = batch(model)
    images, threat = images.half(), ThreatModel(norm="l2", epsilon=0.5)
    expected = attack.perturb(model, images.float(), labels, threat, seed=3)
    assert torch.equal(attack.perturb(model, images, labels, threat, seed=3), expected)  # halves are floats exactly
    for given, own in ((images.double(), model), (images.float(), network().double())):
        found = attack.perturb(own, given, labels, threat, seed=3)
        assert found.dtype == given.dtype and threat.around(given).contains(found).all()


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


@pytest.mark.parametrize("num_classes", [2, 3, 4, 12, 1000])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_inside_the_ball_and_the_box_exactly(
    attack: Attack, threat: ThreatModel, num_classes: int, channels: int
) -> None:
    model = network(channels, num_classes)
    images, labels = batch(model, channels)
    originals = images.clone()
    found = attack.perturb(model, images, labels, threat, seed=3)
    assert found.shape == images.shape and found.dtype == images.dtype and not found.requires_grad
    assert torch.equal(images, originals)
    assert_inside(found, images, threat)
    # What fools an unrelated model need not fool this one.
    assert name_of(attack) == "transfer" or (model(found).argmax(1) != labels).any(), "does nothing at a large radius"


def assert_inside(found: Tensor, images: Tensor, threat: ThreatModel) -> None:
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[threat.norm]
    length = (found.double() - images.double()).flatten(1).norm(p=order, dim=1)
    assert (length <= threat.epsilon).all()
    assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_images_stay_inside_in_float32_while_the_network_runs_in_less(
    attack: Attack, threat: ThreatModel, dtype: torch.dtype
) -> None:
    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network().to(dtype)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.network(images.to(dtype))
            return logits

    model, threat = Short().eval(), threat.with_epsilon(threat.epsilon / 3)
    images, labels = batch(model)
    found = attack.perturb(model, images, labels, threat)
    assert found.dtype == torch.float32
    assert_inside(found, images, threat)


def test_an_image_gets_the_same_attack_whatever_batch_it_is_in(attack: Attack, threat: ThreatModel) -> None:
    if name_of(attack) in SHARED_DRAWS:
        pytest.skip("its random numbers are drawn for the batch")
    model = network().double()
    model.forward = lambda images, forward=model.forward: forward(images.double())  # type: ignore[method-assign]
    images, labels = batch(model, count=7)
    # In double precision, in which the batch's size does not show in the sign of a gradient.
    whole = attack.perturb(model, images, labels, threat, seed=7)
    parts = [attack.perturb(model, images[part], labels[part], threat, seed=7) for part in ([0], [1, 2, 3], [4, 5, 6])]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-5)
    backwards = attack.perturb(model, images.flip(0), labels.flip(0), threat, seed=7)
    assert torch.allclose(backwards.flip(0), whole, atol=1e-5)


class Shifted(nn.Module):
    """A network of shifted images: what it is given is shifted in place, or is not."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.network, self.in_place = network(), in_place

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.sub_(0.25).mul_(2) if self.in_place else (images - 0.25) * 2)
        return logits


def test_a_model_that_writes_into_its_input_is_attacked_as_one_that_does_not(attack: Attack) -> None:
    images, labels = batch(Shifted(in_place=False), count=3)
    given, found = images.clone(), []
    for in_place in (False, True):
        model = Shifted(in_place=in_place).eval()
        if name_of(attack) == "transfer":
            attack = dataclasses.replace(attack, surrogates=(model, network()))  # type: ignore[type-var]
        found.append(attack.perturb(model, images, labels, THREATS[1], seed=3))
        assert torch.equal(images, given)
    assert torch.equal(*found) and not torch.equal(found[0], images)


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


def test_a_model_without_trainable_parameters_is_attacked_and_left_as_it_was(
    attack: Attack, threat: ThreatModel
) -> None:
    model = network().requires_grad_(False)
    images, labels = batch(model)
    before = state(model)
    found = attack.perturb(model, images, labels, threat)
    assert state(model) == before and not torch.equal(found, images)


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
    with pytest.raises(InputError, match="one for each of 5 images"):
        attack.perturb(model, images, labels.float(), THREATS[0])


def test_bytes_are_attacked_as_what_they_stand_for(attack: Attack) -> None:
    model = network()
    stored = (batch(model)[0] * 255).byte()
    labels = model(stored / 255).argmax(1)
    found = attack.perturb(model, stored, labels, THREATS[0], seed=3)
    assert torch.equal(found, attack.perturb(model, stored / 255, labels, THREATS[0], seed=3))


@pytest.mark.parametrize("count", [0, 1])
def test_batches_of_no_image_and_of_one_image_are_batches(attack: Attack, count: int) -> None:
    model = network()
    images, labels = batch(model, count=count)
    assert attack.perturb(model, images, labels, THREATS[0]).shape == images.shape
