"""SABR: the small box, where it lies and what it is at its largest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robust_nas import datasets
from robust_nas.attacks.fgsm import FGSM
from robust_nas.bounds import box_around
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory, _certified
from robust_nas.training.ibp import IBP
from robust_nas.training.sabr import SABR

EPSILON = 0.1


def _batch(threat: ThreatModel | None = None) -> Batch:
    part, places = datasets.load("digits").train[:16], torch.arange(16)
    threat = threat or ThreatModel(epsilon=EPSILON)
    return Batch(part.images, part.labels, part.labels, threat, 0, places, places, 16, 16, Memory())


def _model() -> nn.Module:
    with seeded(0, "model"):
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)
        ).train()


def _gradients(method: IBP | SABR, batch: Batch) -> list[torch.Tensor]:
    model = _model()
    method.loss(model, method.craft(model, batch), batch).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_with_the_whole_ball_as_its_box_it_is_ibp_exactly() -> None:
    batch, ours, theirs = _batch(), SABR(ratio=1), IBP(kappa=0)
    assert torch.equal(ours.craft(_model(), batch), batch.images)
    assert torch.equal(ours.loss(_model(), batch.images, batch), theirs.loss(_model(), batch.images, batch))
    for one, other in zip(_gradients(ours, batch), _gradients(theirs, batch), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.9])
def test_the_small_box_is_inside_the_threat_model_around_a_point_of_the_smaller_ball(
    ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = []
    monkeypatch.setattr(_certified, "box_around", lambda *given: boxes.append(box_around(*given)) or box_around(*given))
    batch, method, model = _batch(), SABR(ratio=ratio), _model()
    crafted = method.craft(model, batch)
    assert bool(batch.threat.with_epsilon((1 - ratio) * EPSILON).around(batch.images).contains(crafted).all())
    assert float((crafted - batch.images).abs().max()) == pytest.approx((1 - ratio) * EPSILON, rel=1e-4)
    method.loss(model, crafted, batch)
    (box,) = boxes
    assert float((batch.images - box.lower).max()) <= EPSILON + 1e-6
    assert float((box.upper - batch.images).max()) <= EPSILON + 1e-6
    assert float(box.lower.min()) >= 0 and float(box.upper.max()) <= 1
    # Its radius is lambda epsilon where it does not stick out of [0, 1], and it is cut, not moved, where it does.
    expected = (crafted + ratio * EPSILON).clamp(max=1) - (crafted - ratio * EPSILON).clamp(min=0)
    torch.testing.assert_close(box.upper - box.lower, expected)


def test_its_loss_lies_between_those_of_its_centre_and_of_ibp() -> None:
    batch, model = _batch(), _model()
    method = SABR(ratio=0.3, attack=FGSM())
    crafted = method.craft(model, batch)
    small = float(method.loss(_model(), crafted, batch))
    whole = float(IBP(kappa=0).loss(_model(), batch.images, batch))
    tiny = float(SABR(ratio=1e-5).loss(_model(), crafted, batch))
    assert tiny < small < whole


def test_a_wrong_ratio_is_refused_and_other_norms_train() -> None:
    for ratio in (0.0, 1.2):
        with pytest.raises(InputError, match=r"SABR\.ratio must be in \(0, 1\]"):
            SABR(ratio=ratio)
    batch = _batch(ThreatModel(norm="l2", epsilon=0.5))
    crafted = SABR().craft(_model(), batch)
    assert bool(ThreatModel(norm="l2", epsilon=0.3).around(batch.images).contains(crafted).all())
    assert bool(SABR().loss(_model(), crafted, batch).isfinite())
