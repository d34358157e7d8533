"""Advice in messages: the call that they advise is taken."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robust_nas as rn
from robust_nas.attacks.apgd import APGD
from robust_nas.core.errors import InputError
from robust_nas.datasets import Dataset

Call = Callable[..., Any]


class NoGradient(nn.Module):
    """A linear network of images that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.detach().flatten(1))


def linear(classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 10))


@pytest.fixture(scope="module")
def data() -> Dataset:
    digits = rn.datasets.load("digits")
    return rn.Dataset.from_arrays(digits.train[:32], validation=digits.validation[:32], test=digits.test[:6])


def train(data: Dataset, **options: Any) -> nn.Module:
    threat = rn.ThreatModel(norm=options.pop("norm_of_ball", "linf"), epsilon=0.1)
    model = options.pop("model", linear)()
    return rn.train(model, data, threat, **{"epochs": 1, "batch_size": 16, **options})


def evaluate(data: Dataset, threat: Any = "linf:0.1", model: Callable[[], nn.Module] = linear, **options: Any) -> Any:
    made = model()
    with torch.no_grad():
        labels = made(data.test.images).argmax(1)  # attacks are of images that are right
    return rn.evaluate(made, (data.test.images, labels), threat, **{"attacks": ["fgsm"], **options})


def perturb(data: Dataset, **options: Any) -> Tensor:
    labels = data.test.labels % 3
    return APGD(steps=2, **options).perturb(linear(3), data.test.images, labels, rn.ThreatModel(epsilon=0.1))


def smooth(data: Dataset, num_samples: int) -> Any:
    return rn.smooth(linear(), sigma=0.1, num_samples=num_samples)


@pytest.mark.parametrize(
    ("call", "wrong", "advice", "right"),
    [
        (evaluate, {"threat": 0.1}, "rn.ThreatModel(epsilon=0.1)", {"threat": rn.ThreatModel(epsilon=0.1)}),
        (evaluate, {"threat": 0.1}, "'linf:0.1'", {"threat": "linf:0.1"}),
        (evaluate, {"threat": "8/255"}, "'linf:8/255'", {"threat": "linf:8/255"}),
        (evaluate, {"threat": "linf:8"}, "8/255", {"threat": "linf:8/255"}),
        (evaluate, {"attacks": "fgsm"}, "['fgsm']", {"attacks": ["fgsm"]}),
        (evaluate, {"model": NoGradient}, "with square", {"model": NoGradient, "attacks": ["square[queries=5]"]}),
        (perturb, {"loss": "dlr", "targets": 1}, "loss='cross_entropy'", {"loss": "cross_entropy", "targets": 1}),
        (smooth, {"num_samples": 3}, "10 or more", {"num_samples": 10}),
        (train, {"batch_size": 32}, "train.schedule='piecewise'", {"batch_size": 32, "schedule": "piecewise"}),
        (
            train,
            {"model": NoGradient},
            "train.method=standard and train.selection_attack=square",
            {"model": NoGradient, "method": "standard", "selection_attack": {"name": "square", "queries": 5}},
        ),
        (
            train,
            {"model": normed, "serve": "clean"},
            "train.norm to 'mixture' and train.clean_weight above 0",
            {"model": normed, "serve": "clean", "norm": "mixture", "clean_weight": 0.5},
        ),
        (
            train,
            {"model": normed, "norm": "mixture", "method": "standard"},
            "a method that crafts examples, with train.clean_weight above 0",
            {"model": normed, "norm": "mixture", "method": "pgd_at", "clean_weight": 0.5},
        ),
        (
            train,
            {"norm_of_ball": "l2", "method": {"name": "fast", "start": "n_fgsm"}},
            "start='uniform'",
            {"norm_of_ball": "l2", "method": {"name": "fast", "start": "uniform"}},
        ),
    ],
)
def test_the_call_that_a_message_advises_is_taken(
    data: Dataset, call: Call, wrong: dict[str, Any], advice: str, right: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=re.escape(advice)):
        call(data, **wrong)
    call(data, **right)


def test_every_call_takes_a_threat_model_as_text(data: Dataset) -> None:
    threat, model = rn.ThreatModel(epsilon="2/255"), linear()
    (found,), (expected,) = (rn.certify(model, data.test, each) for each in ("linf:2/255", threat))
    assert torch.equal(found.margin, expected.margin)
    assert evaluate(data, ["linf:2/255", "l2:0.5"]).threats == (threat, rn.ThreatModel(norm="l2", epsilon=0.5))
    ensemble = rn.build_ensemble([model], data.validation, "linf:2/255")
    with pytest.raises(InputError, match=r"rn\.ThreatModel\(epsilon=0\.1\)"):
        rn.build_ensemble([model], data.validation, 0.1)  # type: ignore[arg-type]
    assert ensemble.weights == [1.0]
    for call in (rn.train, rn.search):
        with pytest.raises(InputError, match="must be one of linf"):
            call("nasbench201", data, "inf:8/255")  # type: ignore[operator]
