"""Training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from checks import right_or_refused, same, situation, true
from small_models import few_digits, linear, small_network
from torch import Tensor, nn

import robust_nas as rn

KIND = "training"


@situation(KIND, "pytorch/pytorch#7716")
def a_last_batch_of_one_image_does_not_end_the_training(_: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    data = few_digits(65)
    for method in ("standard", "pgd_at"):
        trained = rn.train(model, data, rn.ThreatModel(epsilon=0.05), method=method, epochs=1, batch_size=32)
        true(all(each.isfinite().all() for each in trained.state_dict().values()), f"{method} leaves NaN")


@situation(KIND, "open-edge-platform/geti#1872")
def a_batch_larger_than_the_data_trains_on_all_of_it_or_is_refused(_: Path) -> None:
    data, threat = few_digits(40), rn.ThreatModel(epsilon=0.05)

    def weights(size: int) -> Tensor:
        model = linear(10, (1, 8, 8))
        trained = rn.train(model, data, threat, method="standard", epochs=2, batch_size=size)
        found: Tensor = trained[1].weight.detach()
        return found

    wanted = weights(40)
    true((wanted != linear(10, (1, 8, 8))[1].weight).any(), "nothing is trained")
    for size in (41, 100_000):
        call = lambda size=size: same(weights(size), wanted, f"the weights in batches of {size}", 1e-6)  # noqa: E731
        right_or_refused(call, "batch_size", "40")


@situation(KIND, "lightly-ai/lightly#1438")
def what_requires_no_gradient_is_not_trained(_: Path) -> None:
    model = small_network(10)
    model[4] = nn.Linear(256, 10)
    for part in (model[0], model[1]):
        part.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rn.train(
        model,
        few_digits(),
        rn.ThreatModel(epsilon=0.05),
        method="pgd_at",
        epochs=2,
        batch_size=16,
        weight_decay=0.01,
        ema=0.5,
    )
    for key in ("0.weight", "0.bias", "1.weight", "1.bias"):
        same(model.state_dict()[key], before[key], f"the frozen {key}")
    true((model.state_dict()["4.weight"] != before["4.weight"]).any(), "the last layer is not trained")
    flags = [parameter.requires_grad for parameter in model.parameters()]
    true(flags == [False] * 4 + [True] * 2, f"what requires a gradient has changed: {flags}")


@situation(KIND, "DSE-MSU/DeepRobust#147")
def a_training_depends_on_its_seed_and_not_on_the_global_state(_: Path) -> None:
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        random.seed(state)
        np.random.seed(state)
        model = linear(10, (1, 8, 8))
        torch.manual_seed(state)
        before = torch.get_rng_state()
        rn.train(model, few_digits(), rn.ThreatModel(epsilon=0.05), method="pgd_at", epochs=1, batch_size=16, seed=4)
        same(torch.get_rng_state(), before, "torch's random state")
        found.append(model[1].weight.detach().clone())
    same(found[1], found[0], "the weights")


@situation(KIND, "P2333/Bag-of-Tricks-for-AT#8")
def an_adversarial_step_is_the_gradient_of_the_examples_alone(_: Path) -> None:
    data = few_digits(32)
    model, plain = linear(10, (1, 8, 8)), linear(10, (1, 8, 8))
    attack = rn.attacks.get("fgsm")()
    options: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 32,
        "learning_rate": 10.0,
        "momentum": 0.0,
        "schedule": "piecewise",
    }
    threat = rn.ThreatModel(epsilon=0.05)
    method = {"name": "pgd_at", "attack": {"name": "fgsm"}}
    trained = rn.train(model, data, threat, method=method, optimiser="sgd", weight_decay=0.0, keep="last", **options)
    examples = attack.perturb(plain, data.train.images, data.train.labels, threat)
    loss = F.cross_entropy(plain(examples), data.train.labels)
    loss.backward()
    steps = (trained[1].weight.detach() - linear(10, (1, 8, 8))[1].weight.detach()).flatten()
    gradient = plain[1].weight.grad.flatten()
    cosine = float(F.cosine_similarity(-steps, gradient, dim=0))
    true(cosine > 0.9999, f"the step and the gradient have a cosine of {cosine:.4f}")
