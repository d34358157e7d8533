"""MTL-IBP: its two ends, and what lies between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas import datasets
from robust_nas.attacks.fgsm import FGSM
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory
from robust_nas.training.ibp import IBP
from robust_nas.training.mtl_ibp import MTLIBP
from robust_nas.training.pgd_at import PGDAT

THREAT = ThreatModel(epsilon=0.1)


def _batch() -> Batch:
    part, places = datasets.load("digits").train[:16], torch.arange(16)
    return Batch(part.images, part.labels, part.labels, THREAT, 0, places, places, 16, 16, Memory())


def _model() -> nn.Module:
    with seeded(0, "model"):
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)
        ).train()


def _step(method: Any) -> tuple[Tensor, list[Tensor]]:
    """Return the loss, and the gradients and buffers after it."""
    model, batch = _model(), _batch()
    loss = method.loss(model, method.craft(model, batch), batch)
    loss.backward()
    return loss, [parameter.grad for parameter in model.parameters()] + list(model.buffers())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(MTLIBP(alpha=1), IBP(kappa=0)), (MTLIBP(alpha=0, attack=FGSM()), PGDAT(attack=FGSM()))],
    ids=["IBP", "adversarial training"],
)
def test_its_ends_are_ibp_and_adversarial_training_exactly(ours: MTLIBP, theirs: Any) -> None:
    loss, tensors = _step(ours)
    expected, others = _step(theirs)
    assert torch.equal(loss, expected)
    for one, other in zip(tensors, others, strict=True):
        assert torch.equal(one, other)


def test_between_its_ends_it_is_the_weighted_sum_at_the_clean_statistics() -> None:
    batch, model = _batch(), _model()
    crafted = MTLIBP().craft(model, batch)
    before = model[0](batch.images)
    mean, variance = before.mean((0, 2, 3)), before.var((0, 2, 3), correction=0)
    hidden = F.batch_norm(model[0](crafted), mean.detach(), variance.detach(), model[1].weight, model[1].bias)
    adversarial = F.cross_entropy(model[4](hidden.relu().flatten(1)), batch.labels)
    bound = IBP(kappa=0).loss(_model(), batch.images, batch)
    for alpha in (0.02, 0.5):
        loss = MTLIBP(alpha=alpha).loss(_model(), crafted, batch)
        assert float(loss) == pytest.approx(float(alpha * bound + (1 - alpha) * adversarial), rel=1e-5)


def test_one_step_of_the_attack_ends_at_a_corner_and_the_attack_may_reach_further_than_the_bound() -> None:
    batch, model = _batch(), _model()
    crafted = MTLIBP().craft(model, batch)
    low, high = (batch.images - 0.1).clamp(0, 1), (batch.images + 0.1).clamp(0, 1)
    at_corner = ((crafted - low).abs() < 1e-6) | ((crafted - high).abs() < 1e-6)
    # A kernel of 3 with stride 2 does not look at the last row and column; a few pixels' ReLUs are all inactive.
    assert float(at_corner[:, :, :7, :7].float().mean()) > 0.95
    wide = MTLIBP(attack_radius=2.1)
    assert MTLIBP().stays_in_ball and not wide.stays_in_ball
    change = (wide.craft(model, batch) - batch.images).abs().max()
    assert float(change) == pytest.approx(0.21, rel=1e-4)
    widest = MTLIBP(attack_radius=1e6).craft(model, batch)
    assert float(widest.min()) >= 0 and float(widest.max()) <= 1
    for wrong in ({"alpha": -0.1}, {"attack_radius": 0.0}, {"alpha": 0.0, "kappa": 0.5}):
        with pytest.raises(InputError, match="MTLIBP"):
            MTLIBP(**wrong)
