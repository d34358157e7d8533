"""Concurrent adversarial learning, against loops that keep every past model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.runtime.states import load_state, save_state
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory
from robust_nas.training.conadv import ConAdv

THREAT = ThreatModel(epsilon=0.1)
STEPS = 6


def _model() -> nn.Module:
    with seeded(0, "model"):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).train()


def _batch(memory: Memory, step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images, labels = torch.rand(8, 1, 6, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)
    places = torch.arange(8)
    return Batch(
        images=images,
        labels=labels,
        targets=labels,
        threat=THREAT,
        seed=step,
        ids=places,
        places=places,
        num_samples=8,
        batch_size=8,
        memory=memory,
    )


def _descend(model: nn.Module, loss: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.2 * parameter.grad


def _train(method: ConAdv, model: nn.Module, memory: Memory, steps: range) -> None:
    for step in steps:
        batch = _batch(memory, step)
        _descend(model, method.loss(model, method.craft(model, batch), batch))


@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=2, batch_norm="batch")])
@pytest.mark.parametrize("staleness", [0, 1, 2, 10])
def test_examples_are_crafted_with_the_model_of_so_many_steps_before(attack: FGSM | PGD, staleness: int) -> None:
    model, memory = _model(), Memory()
    _train(ConAdv(attack=attack, staleness=staleness, weight=0.3), model, memory, range(STEPS))

    plain, before = _model(), []
    for step in range(STEPS):
        batch = _batch(Memory(), step)
        before.append(copy.deepcopy(plain))
        stale = before[max(0, step - staleness)]
        crafted = attack.perturb(stale, batch.images, batch.labels, THREAT, seed=step)
        clean, adversarial = (F.cross_entropy(plain(points), batch.labels) for points in (batch.images, crafted))
        _descend(plain, (1 - 0.3) * clean + 0.3 * adversarial)

    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())


def test_staleness_changes_the_examples() -> None:
    ends = []
    for staleness in (0, 1, 2):
        model = _model()
        _train(ConAdv(staleness=staleness), model, Memory(), range(STEPS))
        ends.append(model[0].weight.detach())
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2])


def test_the_synchronous_form_remembers_nothing_and_others_no_more_than_they_need() -> None:
    for staleness, kept in ((0, 0), (1, 2), (3, 4)):
        memory = Memory()
        _train(ConAdv(staleness=staleness), _model(), memory, range(STEPS))
        assert len(memory.shared.get("past_states", [])) == kept
        assert not memory.tables


def test_a_resumed_training_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    method, whole = ConAdv(staleness=2), _model()
    _train(method, whole, Memory(), range(STEPS))

    first, memory = _model(), Memory()
    _train(method, first, memory, range(3))
    save_state(tmp_path / "state.safetensors", {"model": first.state_dict(), "shared": memory.shared})
    saved = load_state(tmp_path / "state.safetensors")
    second = _model()
    second.load_state_dict(saved["model"])
    _train(method, second, Memory(shared=saved["shared"]), range(3, STEPS))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())


def test_ranks_with_running_statistics_of_their_own_remember_the_mean_of_them() -> None:
    model, memory = _model(), Memory()
    batch = _batch(memory, 0)
    model[1].running_mean.fill_(1.0)
    model[1].running_var.fill_(2.0)
    # The other rank has zeros.
    object.__setattr__(batch, "mean", lambda value: value / 2)
    ConAdv().craft(model, batch)
    (state,) = memory.shared["past_states"]
    assert bool((state["1.running_mean"] == 0.5).all())
    assert bool((state["1.running_var"] == 1.0).all())
    assert torch.equal(state["0.weight"], model[0].weight)
    assert bool((model[1].running_mean == 1.0).all())


def test_clean_images_reach_the_model_as_they_are_and_crafted_ones_are_others() -> None:
    # A mixture norm tells the two by the tensor.
    method, model, batch = ConAdv(), _model(), _batch(Memory(), 0)
    assert method.norm == "mixture"
    seen: list[Tensor] = []

    def forward(images: Tensor) -> Tensor:
        seen.append(images)
        return model(images)

    crafted = method.craft(model, batch)
    method.loss(forward, crafted, batch)
    assert seen[0] is batch.images
    assert seen[1] is crafted
    assert len(seen) == 2


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(InputError, match="staleness"):
        ConAdv(staleness=-1)
    with pytest.raises(InputError, match="weight"):
        ConAdv(weight=1.5)
