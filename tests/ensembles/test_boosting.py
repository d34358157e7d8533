"""Networks trained for what they add to frozen ones."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import robust_nas as rn
from robust_nas.core import config
from robust_nas.datasets import ImageSet
from robust_nas.ensembles import Ensemble, fit_with
from robust_nas.ensembles._boosting import Boosted
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.training import Batch, Memory, Training
from robust_nas.training.crown_ibp import CROWNIBP
from robust_nas.training.ibp import IBP

THREAT = rn.ThreatModel(epsilon=0.05)


def batch(images: torch.Tensor, labels: torch.Tensor) -> Batch:
    places = torch.arange(len(labels))
    return Batch(
        images=images, labels=labels, targets=labels, threat=THREAT, seed=0, ids=places, places=places,
        num_samples=len(labels), batch_size=len(labels), memory=Memory(),
    )  # fmt: skip


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 3))


@pytest.mark.parametrize("method", [IBP(kappa=0.0), CROWNIBP(beta=1.0)], ids=["ibp", "crown_ibp"])
def test_the_loss_is_that_of_the_joint_bound_whose_slopes_cancel(method: IBP | CROWNIBP) -> None:
    # The average of linear networks is one: its least margins are those of the mean weights, W_y - W_j in one norm.
    frozen, learner = [linear(1), linear(2)], linear(3)
    images, labels = 0.2 + 0.6 * torch.rand(5, 1, 2, 3), torch.tensor([0, 1, 2, 2, 0])
    loss = method.loss(Boosted(frozen, learner).train(), images, batch(images, labels))

    weight, bias = ([getattr(model[1], name) for model in (*frozen, learner)] for name in ("weight", "bias"))
    mean, shift = torch.stack(weight).mean(0), torch.stack(bias).mean(0)
    logits = images.flatten(1) @ mean.T + shift
    slopes = mean[labels][:, None] - mean
    margins = logits.gather(1, labels[:, None]) - logits - THREAT.epsilon * slopes.abs().sum(-1)
    expected = F.cross_entropy(-margins, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    (own,) = torch.autograd.grad(loss, [learner[1].weight], retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, [learner[1].weight])
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-6)


def test_frozen_members_are_the_same_bit_by_bit_after_training_with_batch_norms_and_a_new_start() -> None:
    digits = rn.datasets.load("digits")
    small = dataclasses.replace(digits, train=digits.train[:64], validation=digits.validation[:16])
    space = rn.spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1)
    torch.manual_seed(0)
    first = space.network(space.parse("000300"), digits).eval()
    for _, buffer in first.named_buffers():
        if buffer.is_floating_point():
            buffer.add_(0.1)
    before = copy.deepcopy(first.state_dict())
    options = {"method": {"name": "ibp", "initialisation": "tight"}, "epochs": 2, "batch_size": 32, "keep": "last"}
    second = rn.train("000300", small, THREAT, space=space, frozen_members=[first], epsilon_ramp=0.5, **options)
    assert all(torch.equal(value, before[key]) for key, value in first.state_dict().items())
    assert not second.training and all(parameter.requires_grad for parameter in second.parameters())
    # What it was trained for is the sum with the frozen one: alone, the same seed gives another network.
    alone = rn.train("000300", small, THREAT, space=space, epsilon_ramp=0.5, **options)
    assert any(not torch.equal(a, b) for a, b in zip(alone.parameters(), second.parameters(), strict=True))


def test_what_is_said_of_a_boosted_network_is_its_own_and_what_all_do_together_is_told_apart() -> None:
    digits = rn.datasets.load("digits")
    small = dataclasses.replace(digits, train=digits.train[:64], validation=digits.validation[:40])
    space = rn.spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1)
    torch.manual_seed(0)
    first, second = (space.network(space.parse("000300"), digits) for _ in range(2))
    training = config.build(Training, {"epochs": 2, "batch_size": 32, "method": "standard", "selection_attack": "fgsm"})
    stage = Stage("train", 0, World(), Progress(quiet=True))
    fitted = fit_with([first.eval()], second, small, THREAT, training, stage)
    own, together = fitted.record.validation, fitted.record.beside
    for accuracies, model in ((own, second), (together, Ensemble([first, second]).eval())):
        expected = rn.evaluate(model, small.validation, THREAT, attacks=["fgsm"])
        assert accuracies["clean"] == expected.clean_accuracy
        assert accuracies["robust"] == pytest.approx(expected.robust_accuracy, abs=0.05)
    assert fitted.best.keys() == fitted.last.keys() == second.state_dict().keys()


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {}, "takes a list of modules as frozen_members"),
        ([nn.Sequential(nn.Flatten(), nn.Linear(64, 9))], {}, "must have the same classes"),
        ([], {"boosting": True}, "give the trained networks"),
        ([nn.Sequential(nn.Flatten(), nn.Linear(64, 10))], {"norm": "mixture"}, "not trained beside other networks"),
        (3, {}, "takes a list of modules as frozen_members, but got 3"),
        ([], {"beside": []}, "no key 'beside'. It is called 'frozen_members' now"),
    ],
)
def test_a_mistake_in_what_to_train_with_is_named(members: Any, options: dict[str, Any], message: str) -> None:
    space = rn.spaces.load("nasbench201", channels=2, cells_per_stage=1, stages=1)
    with pytest.raises(rn.InputError, match=message):
        rn.train("000300", rn.datasets.load("digits"), THREAT, space=space, frozen_members=members, epochs=1, **options)


def test_a_boosted_network_learns_what_the_frozen_one_does_not_know() -> None:
    # The frozen network tells classes 0 and 1 apart and is sure of nothing else; the learner has to supply the rest.
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(16)
    images = torch.full((64, 1, 2, 2), 0.2) + 0.02 * torch.rand(64, 1, 2, 2, generator=generator)
    images.flatten(1)[torch.arange(64), labels] = 0.8
    frozen, learner = nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    with torch.no_grad():
        frozen[1].weight.copy_(torch.diag(torch.tensor([40.0, 40.0, 0.0, 0.0])))
        frozen[1].bias.fill_(0.0)
        learner[1].weight.zero_()
        learner[1].bias.zero_()
    boosted, step = Boosted([frozen], learner).train(), torch.optim.SGD(learner.parameters(), 1.0)
    for _ in range(100):
        step.zero_grad()
        IBP(kappa=0.0).loss(boosted, images, batch(images, labels)).backward()
        step.step()
    gained = learner[1].weight.diagonal()
    assert gained[2:].min() > 2 * gained[:2].max()
    assert math.isclose(float(rn.certify(boosted.eval(), ImageSet.of(images, labels), THREAT)[0].accuracy), 1.0)
