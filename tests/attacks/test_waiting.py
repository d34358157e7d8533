"""How often an attack waits for the device: what a graph of queued operations cannot hide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from robust_nas.attacks import Attack, apgd, pgd
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.pgd import PGD
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


def waits(attack: Attack) -> int:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    images = torch.rand(20, 1, 8, 8)
    labels = model(images).argmax(1)
    with Waits() as counter:
        attack.perturb(model, images, labels, ThreatModel(epsilon=1e-4))
    return counter.count


@pytest.mark.parametrize("kind", [PGD, APGD])
def test_a_step_waits_for_nothing(kind: Any) -> None:
    assert waits(kind(steps=20)) == waits(kind(steps=80)) > 0


@pytest.mark.parametrize("kind", [PGD, APGD])
def test_on_an_accelerator_fooled_samples_are_looked_for_every_ten_steps(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pgd, apgd):
        monkeypatch.setattr(module, "due", lambda points, step: step % 10 == 0)  # its rule there
    few, many = (waits(kind(steps=steps, early_stop=True)) for steps in (20, 80))
    assert many - few <= 6  # 60 steps more
