"""The Python calls, from a search to a report, on objects instead of run folders."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import robust_nas as rn
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.training.pgd_at import PGDAT


def test_every_stage_is_a_call() -> None:
    digits = rn.datasets.load("digits")
    data = dataclasses.replace(
        digits, train=digits.train[:128], validation=digits.validation[:40], test=digits.test[:40]
    )
    threat = rn.ThreatModel(norm="linf", epsilon="0.1")
    space = rn.spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1)
    # A component may be given by name, as a table, or as an object.
    objective = PGDAT(attack=FGSM())
    found = rn.search(space, data, threat, epochs=1, batch_size=32, objective=objective, validation_attack="fgsm")
    chosen = rn.derive(found, space, data, threat, count=2, pool=3, attack="fgsm")
    assert len({architecture.canonical for architecture in chosen}) == 2
    method = {"name": "pgd_at", "attack": {"name": "pgd", "steps": 1}}
    models = [
        rn.train(architecture, data, threat, space=space, epochs=1, batch_size=32, method=method)
        for architecture in chosen
    ]
    measured = rn.evaluate(models[0], data.test, threat, attacks=["fgsm", "pgd"])
    assert measured.robust_accuracy <= measured.clean_accuracy
    (small, large) = rn.certify(models[0], data.test, threat, epsilons=[1e-6, 0.05])
    assert large.accuracy <= small.accuracy <= measured.clean_accuracy
    ensemble = rn.build_ensemble(models, data.validation, threat.with_epsilon(1e-6))
    assert ensemble(data.test.images).shape == (40, 10)


def test_a_wrong_option_is_named(tmp_path: Path) -> None:
    data, threat = rn.datasets.load("digits"), rn.ThreatModel(epsilon=0.1)
    with pytest.raises(InputError, match=r"no key 'epoch'. Did you mean 'epochs'"):
        rn.search("nasbench201", data, threat, epoch=1)
    with pytest.raises(InputError, match="not a run folder"):
        rn.write_report(tmp_path)


def test_a_module_of_ones_own_is_trained_in_place_with_a_recipes_settings() -> None:
    digits, threat = rn.datasets.load("digits"), rn.ThreatModel(epsilon=0.1)
    data = dataclasses.replace(digits, train=digits.train[:256], validation=digits.validation[:40])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = rn.evaluate(model, data.validation, threat, attacks=["fgsm"]).clean_accuracy
    quick = {"epochs": 8, "padding": 0, "flip": False, "precision": "float32", "batch_size": 32}
    trained = rn.train(model, data, threat, recipe="fast-cifar10", **quick)
    assert trained is model
    assert rn.evaluate(model, data.validation, threat, attacks=["fgsm"]).clean_accuracy > before + 0.3


def test_a_network_in_double_precision_learns_what_the_same_network_in_single_precision_learns() -> None:
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    double = copy.deepcopy(single).double()
    for model in (single, double):
        settings = {"epochs": 1, "padding": 0, "flip": False, "precision": "float32"}
        rn.train(model, rn.datasets.load("digits"), rn.ThreatModel(epsilon=0.03), **settings)
    assert double[1].weight.dtype == torch.float64
    assert torch.allclose(double[1].weight, single[1].weight.double(), atol=1e-6)


class AuxiliaryInTraining(nn.Module):
    """Logits, and in training a second classifier's beside them, as those of GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> Any:
        logits = self.linear(images.flatten(1))
        return (logits, logits) if self.training else logits


def test_a_component_in_a_word_may_have_settings() -> None:
    data, threat = rn.datasets.load("digits"), rn.ThreatModel(epsilon=0.05)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    words, objects = ["fgsm", "pgd[steps=3,loss=margin]"], [FGSM(), PGD(steps=3, loss="margin")]
    found, expected = (rn.evaluate(model, data.test[:50], threat, attacks=given) for given in (words, objects))
    assert found.rows() == expected.rows()
    for wrong, message in {
        "pgd[stps=3]": "attack pgd.* has no key 'stps'.*steps",
        "pdg[steps=3]": "Did you mean 'pgd'",
    }.items():
        with pytest.raises(InputError, match=message):
            rn.evaluate(model, data.test[:2], threat, attacks=[wrong])


def test_a_root_may_be_given_as_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="MNIST is not"):
        rn.datasets.load("mnist", root=str(tmp_path), download=False)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), "each of the 10 classes of digits, but gives 5"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10)),
            "cannot take images of 1 x 8 x 8 pixels",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False), "nothing to train"),
        (AuxiliaryInTraining(), "in training mode too, but for a batch of .* it returned one tuple"),
        (nn.Linear, "not its class"),
        (42, "but got 42"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(module: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rn.train(module, rn.datasets.load("digits"), rn.ThreatModel(epsilon=0.1), epochs=1)  # type: ignore[arg-type]


def test_an_argument_of_another_kind_costs_a_sentence_that_says_what_to_give() -> None:
    data, threat, model = rn.datasets.load("digits"), rn.ThreatModel(epsilon=0.03), nn.Flatten()
    linear, other, no_numbers = (nn.Sequential(nn.Flatten(), nn.Linear(size, 10)) for size in (64, 100, 64))
    nn.init.constant_(no_numbers[1].weight, torch.nan)
    for call, message in {
        (lambda: rn.certify(model, data, threat)): r"one ImageSet .*data\.test.* one Dataset",
        (lambda: rn.certify(model, data.test, 0.03)): r"rn\.ThreatModel\(epsilon=0\.03\).*but got 0\.03",
        (lambda: rn.certify(model, data.test, threat, epsilons=0.01)): r"write \[0\.01\]",
        (lambda: rn.build_ensemble([model], data, threat)): "such as data.test",
        (lambda: rn.Ensemble([model]).fit(data, threat)): "one ImageSet .*but got one Dataset",
        (lambda: rn.Ensemble([model]).fit(data.test, 0.03)): r"rn\.ThreatModel\(epsilon=0\.03\)",
        (lambda: rn.smooth(model, sigma=0.25).certify(data)): "one ImageSet .*but got one Dataset",
        (lambda: rn.build_ensemble({"a": model}, data.test, threat)): r"list\(run\.models\.values\(\)\), but got dict",
        (lambda: rn.build_ensemble([], data.test, threat)): "list without models",
        (lambda: rn.Ensemble([model]).predict(data.test[:2])): "must be a tensor .*but got ImageSet",
        (lambda: rn.Ensemble(nn.Sequential(model))): "takes a list of modules as members",
        (lambda: rn.Ensemble([model], ["x"])): "must be lists of numbers .*'x'",
        (lambda: rn.Ensemble.load(3)): "must be a path, or the text of one, but got 3",  # type: ignore[arg-type]
        (lambda: rn.load_run(3)): "must be a path, or the text of one, but got 3",  # type: ignore[arg-type]
        (lambda: rn.run("digits", 3)): "written as key=value, but got 3",  # type: ignore[arg-type]
        (lambda: rn.search(3, data, threat)): "the name of one, but got 3",  # type: ignore[arg-type]
        (lambda: rn.train("323133", data, threat, seed="x")): "seed must be a whole number, but got 'x'",  # type: ignore[arg-type]
        (lambda: rn.smooth("net", sigma=1)): "must be an nn.Module, but got str",  # type: ignore[arg-type]
        (lambda: rn.certify(model, data.test, threat, bound=3)): "kind of bound, .*but got 3",  # type: ignore[arg-type]
        (lambda: rn.evaluate(linear, data.test[:8], threat, batch_size=2.5)): "whole number of at least 1, but got 2.5",  # type: ignore[call-overload]
        (lambda: rn.evaluate(linear, data.test[:8], threat, attacks=None)): "list of attacks .*but got None",  # type: ignore[call-overload]
        (lambda: rn.evaluate(linear, data.test[:8], threat, folder=__file__)): "cannot be made .*give another folder",
        (lambda: rn.build_ensemble([linear, other], data.test[:8], threat)): "Member 1: .*",
        (lambda: rn.load_models("torchvision:resnet18", device="cpv")): "such as 'cpu' or 'cuda', but got 'cpv'",
        (lambda: rn.certify(no_numbers, data.test[:8], threat)): "logits are NaN",
    }.items():
        with pytest.raises(InputError, match=message):
            call()
