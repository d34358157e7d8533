"""A model that writes into its input has the numbers of the same function written out of place, wherever it is called.

Attacks, training methods and scores are asked the same in tests/contracts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import Normalize

import robust_nas as rn
from robust_nas import evaluation, records
from robust_nas.attacks.fab import FAB
from robust_nas.attacks.opt import OPT
from robust_nas.attacks.pgd import PGD
from robust_nas.core.seeds import seeded
from robust_nas.datasets import ImageSet
from robust_nas.ensembles import Ensemble
from robust_nas.evaluation import EvaluationPlan
from robust_nas.intake import dependence, diagnose
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel

THREAT = ThreatModel(epsilon=0.1)

CHANGES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "sub_": (lambda x: x.sub_(0.3), lambda x: x - 0.3),
    "a first ReLU": (nn.ReLU(inplace=True), nn.ReLU()),
    "normalize": (Normalize([0.3], [0.5], inplace=True), Normalize([0.3], [0.5])),
    # The gradient is half of the other one, of which the attack takes the sign.
    "mul_ of data": (lambda x: (x.data.mul_(2), x)[1], lambda x: 2 * x),
    "times, and assigned": (lambda x: x.__imul__(2), lambda x: 2 * x),
}
"""A change in place, and the same out of place."""


class Changing(nn.Module):
    """A small network of changed images."""

    def __init__(self, change: Callable[[Tensor], Tensor], seed: int = 0) -> None:
        super().__init__()
        with seeded(seed, "network"):
            self.layers = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 4)
            )
        self.change = change

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(self.change(images))
        return logits


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def image_set(model: nn.Module) -> ImageSet:
    """Return images with the classes that the model gives them."""
    with torch.no_grad():
        return ImageSet(images(), model.eval()(images()).argmax(1))


def plain(value: Any) -> Any:
    """Return a result without what it took, which no two calls agree on."""
    return re.sub(r"'?seconds'?[:=] ?[\d.e-]+", "", str(value))


def stage() -> Stage:
    return Stage("test", 0, World(), Progress(quiet=True))


def minimised(model: nn.Module, data: ImageSet) -> Any:
    def predict(pixels: Any) -> Any:
        return model.eval()(torch.from_numpy(pixels)).argmax(1).numpy()

    found = OPT(queries=200).minimise(predict, data.images.numpy(), data.labels.numpy())
    return found.distances.tolist()


def assessed(model: nn.Module, data: ImageSet) -> Any:
    plan = EvaluationPlan(
        attacks=(PGD(steps=2),), strongest=(), curve_attack=PGD(steps=2), distortion=OPT(queries=200), masking_images=2
    )
    found = plan.assess(model, data, [THREAT], stage())
    return records.plain(found.summary()), found.evaluation.rows()


def ensemble(model: nn.Module, data: ImageSet) -> Any:
    joined = rn.build_ensemble([model, model], data, ThreatModel(epsilon=0.01))
    return joined.weights, joined.scales, joined.predict(data.images), joined(data.images)


def attacked(model: nn.Module, data: ImageSet) -> Tensor:
    return PGD(steps=2).perturb(model, data.images, data.labels, THREAT)


CALLS: dict[str, Callable[[nn.Module, ImageSet], Any]] = {
    "assess": assessed,
    "evaluate": lambda model, data: rn.evaluate(model, data.images, data.labels, THREAT, attacks=["apgd"]).rows(),
    "examples": lambda model, data: evaluation.strongest_examples(model, data, THREAT, "pgd")["adversarial"].tolist(),
    "nearest": lambda model, data: evaluation.minimal_distortions(model, data, THREAT, FAB(steps=5)).distances.tolist(),
    "transfers": lambda model, data: evaluation.transfers([model, model], data, THREAT, PGD(steps=2), stage()),
    "costs": lambda model, data: evaluation.estimate_cost("one", model, data, 9, partial(attacked, model)).forwards,
    "hard labels": minimised,
    "certify": lambda model, data: [row.margin for row in rn.certify(model, data, ThreatModel(epsilon=0.01))],
    "smoothed": lambda model, data: rn.smooth(model, sigma=0.1, num_samples=40).predict(data.images).tolist(),
    "smoothed certify": lambda model, data: rn.smooth(model, sigma=0.1, num_samples=40).certify(data).counts.tolist(),
    "ensemble": ensemble,
    "diagnosis": lambda model, data: (diagnose(model, data.images, data.labels), dependence(model, data.images)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.filterwarnings("ignore:The model")
def test_every_call_gives_the_numbers_of_the_same_function_out_of_place(call: str) -> None:
    found = []
    for change in reversed(CHANGES["sub_"]):
        data = image_set(Changing(CHANGES["sub_"][1]))
        found.append(plain(CALLS[call](Changing(change).eval(), data)))
        assert torch.equal(data.images, images())
    assert found[0] == found[1]


@pytest.mark.parametrize("change", CHANGES)
def test_every_way_of_writing_into_the_input_is_kept_from_the_caller(change: str) -> None:
    found = []
    for own in reversed(CHANGES[change]):
        model, given = Changing(own).eval(), images()
        labels = image_set(Changing(CHANGES[change][1])).labels
        points = PGD(steps=5).perturb(model, given, labels, THREAT)
        smoothed = rn.smooth(model, sigma=0.1, num_samples=20).predict(given)
        both = Ensemble([model, Changing(F.relu, 1)]).eval()(given)
        assert torch.equal(given, images())
        found.append((points, smoothed, both))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
