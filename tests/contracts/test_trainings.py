"""What every training method does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from robust_nas import training
from robust_nas.datasets import load
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory

THREAT = ThreatModel(epsilon=0.1)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def _batch() -> Batch:
    part, places = load("digits").train[:8], torch.arange(8)
    return Batch(part.images, part.labels, part.labels, THREAT, 3, places, places, 8, 8, Memory())


@pytest.mark.parametrize("name", training.names())
def test_crafting_stays_inside_the_threat_model_and_leaves_the_model_as_it_was(name: str) -> None:
    method, model, batch = training.get(name)(), _model().train(), _batch()
    before = copy.deepcopy(model.state_dict())
    crafted = method.craft(model, batch)
    if getattr(method, "stays_in_ball", True):
        assert bool(THREAT.around(batch.images).contains(crafted).all())
    assert bool(((crafted >= 0) & (crafted <= 1)).all())
    assert model.training and all(
        parameter.requires_grad and parameter.grad is None for parameter in model.parameters()
    )
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(crafted, method.craft(model, _batch()))


@pytest.mark.parametrize("name", training.names())
def test_the_loss_is_a_finite_scalar_and_reaches_every_parameter(name: str) -> None:
    method, model, batch = training.get(name)(), _model().train(), _batch()
    loss = method.loss(model, method.craft(model, batch), batch)
    assert loss.ndim == 0
    loss.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize("name", training.names())
def test_what_a_method_remembers_can_be_saved(name: str, tmp_path) -> None:
    from robust_nas.run_dir import load_state, save_state

    method, model, batch = training.get(name)(), _model().train(), _batch()
    method.loss(model, method.craft(model, batch), batch).backward()
    save_state(tmp_path / "state.safetensors", {"shared": batch.memory.shared, "tables": batch.memory.tables})
    saved = load_state(tmp_path / "state.safetensors")
    assert saved["shared"].keys() == batch.memory.shared.keys()
    assert all(torch.equal(saved["tables"][name], table) for name, table in batch.memory.tables.items())
