"""How often an attack waits for the device: what a graph of queued operations cannot hide."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robust_nas.attacks import Attack, _leaving, fab, square
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.fab import FAB
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.square import Square
from robust_nas.threat import ThreatModel


class Waits(TorchDispatchMode):
    """Counts the operations whose result the host needs: numbers read, and shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        indices = args[1] if func.overloadpacket is torch.ops.aten.index else ()
        by_value = any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)
        waiting = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)
        self.count += by_value or func.overloadpacket in waiting
        return func(*args, **(kwargs or {}))


def example() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    images = torch.rand(20, 1, 8, 8)
    return model, images, model(images).argmax(1)


def waits(attack: Attack) -> int:
    model, images, labels = example()
    with Waits() as counter:
        attack.perturb(model, images, labels, ThreatModel(epsilon=1e-4))
    return counter.count


@pytest.mark.parametrize("kind", [PGD, APGD])
def test_a_step_waits_for_nothing(kind: Any) -> None:
    assert waits(kind(steps=20)) == waits(kind(steps=80)) > 0


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the attacks take the rules that they have where looking at a value waits."""
    for module in (_leaving, fab, square):
        monkeypatch.setattr(module, "looking_is_free", lambda points: False)


@pytest.mark.parametrize("attack", [PGD(early_stop=True), APGD(early_stop=True), FAB(targets=1)])
@pytest.mark.usefixtures("accelerator")
def test_on_an_accelerator_fooled_samples_are_looked_for_every_ten_steps(attack: Any) -> None:
    few, many = (waits(dataclasses.replace(attack, steps=steps)) for steps in (20, 80))
    assert many - few <= 6  # 60 steps more


@pytest.mark.usefixtures("accelerator")
def test_on_an_accelerator_square_looks_every_ten_queries() -> None:
    few, many = (waits(Square(queries=queries, schedule=10_000)) for queries in (600, 900))
    # 300 queries more: thirty times who is left, how far the slowest is and how much of the passes was useful.
    assert many - few <= 90


@pytest.mark.parametrize("attack", [FAB(steps=30), Square(queries=300)])
def test_looking_less_often_finds_the_same(attack: Any, request: pytest.FixtureRequest) -> None:
    model, images, labels = example()
    threat = ThreatModel(epsilon=0.05)
    eager = attack.perturb(model, images, labels, threat)
    request.getfixturevalue("accelerator")
    late = attack.perturb(model, images, labels, threat)
    fooled = [model(points).argmax(1) != labels for points in (eager, late)]
    assert 0 < fooled[0].sum() < len(images)
    assert torch.equal(*fooled)
    if isinstance(attack, Square):  # FAB goes on until it is looked at, and may come nearer
        assert torch.equal(eager, late)
