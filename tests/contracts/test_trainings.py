"""What every training method does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from robust_nas import training
from robust_nas.datasets import load
from robust_nas.threat import ThreatModel

THREAT = ThreatModel(epsilon=0.1)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


@pytest.mark.parametrize("name", training.names())
def test_crafting_stays_inside_the_threat_model_and_leaves_the_model_as_it_was(name: str) -> None:
    method, model, batch = training.get(name)(), _model().train(), load("digits").train[:8]
    before = copy.deepcopy(model.state_dict())
    crafted = method.craft(model, batch.images, batch.labels, THREAT, seed=3)
    assert bool(THREAT.around(batch.images).contains(crafted).all())
    assert model.training and all(
        parameter.requires_grad and parameter.grad is None for parameter in model.parameters()
    )
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(crafted, method.craft(model, batch.images, batch.labels, THREAT, seed=3))


@pytest.mark.parametrize("name", training.names())
def test_the_loss_is_a_scalar_from_one_forward_pass_and_reaches_every_parameter(name: str) -> None:
    method, model, batch = training.get(name)(), _model().train(), load("digits").train[:8]
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    crafted = method.craft(model, batch.images, batch.labels, THREAT, seed=0)
    calls.clear()
    loss = method.loss(model, crafted, batch.images, batch.labels)
    assert len(calls) == 1  # distributed training breaks on a second forward before the backward
    assert loss.ndim == 0
    loss.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
