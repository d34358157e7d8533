"""Batch norms over all ranks, in real process groups: what one process with the whole batch has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from robust_nas import datasets
from robust_nas.core.config import build
from robust_nas.core.errors import InputError
from robust_nas.models.synchronised_norm import synchronised
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel
from robust_nas.training import Training, fit
from robust_nas.training.pgd_at import PGDAT
from tests.test_distributed import on_two_ranks

# With batch statistics, examples would be those of each rank's own batch: crafting is local. In l2 a step does not jump
# where a slope is rounded to another sign.
THREAT = ThreatModel(norm="l2", epsilon=0.5)
ATTACK = {"name": "pgd", "steps": 2, "step_size": 0.25, "random_start": False, "batch_norm": "running"}

COLLECTIVES = (
    "all_reduce",
    "broadcast",
    "all_gather",
    "all_gather_object",
    "broadcast_object_list",
    "all_to_all_single",
)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False, momentum=None), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)),
    )


def _fitted(world: World, **options: Any) -> dict[str, torch.Tensor]:
    digits = datasets.load("digits")
    data = dataclasses.replace(digits, train=digits.train[:64], validation=digits.validation[:16])
    table = {"epochs": 2, "batch_size": 16, "norm_sync": "synchronised", "learning_rate": 0.02, **options}
    plan = build(Training, {"selection_attack": ATTACK, **table}, "train")
    return fit(_model(), data, THREAT, plan, Stage("train", 0, world, Progress(quiet=True))).last


@pytest.mark.parametrize(
    "options",
    [
        {"method": {"name": "pgd_at", "attack": ATTACK}, "awp": 0.01},
        {"method": {"name": "conadv", "attack": ATTACK}},
        {
            "method": {"name": "pgd_at", "attack": ATTACK, "clean_images": 1.0},
            "norm": "separate",
            "checkpointing": True,
        },
    ],
    ids=["plain-awp", "mixture", "separate-checkpointing"],
)
def test_two_ranks_with_synchronised_norms_train_what_one_process_does(options: dict[str, Any], tmp_path: Path) -> None:
    alone, ranks = _fitted(World(), **options), on_two_ranks(lambda world: _fitted(world, **options), tmp_path)
    for name, value in alone.items():
        torch.testing.assert_close(ranks[0][name], value, atol=2e-4, rtol=2e-3)
        assert torch.equal(ranks[0][name], ranks[1][name])


def _losses_and_gradients(world: World) -> Any:
    generator = torch.Generator().manual_seed(1)
    # A mean far from 0, where the mean square less the squared mean would lose its digits.
    images = (100 + torch.randn(12, 1, 8, 8, generator=generator)).requires_grad_()
    labels, model = torch.arange(12) % 10, _model()
    # Unequal parts: each image counts once.
    rows = slice(None) if world.size == 1 else slice(0, 5) if world.is_main else slice(5, None)
    with synchronised(model, world):
        loss = F.cross_entropy(model(images[rows]), labels[rows], reduction="sum") / 12 * world.size
        # A gradient in the loss, as of methods that differentiate twice; a rank's is that of as many times its share.
        (slope,) = torch.autograd.grad(loss, images, create_graph=True)
        total = loss + slope.square().sum() / world.size
        total.backward()
    assert all("forward" not in vars(module) for module in model.modules())
    gradients = [world.mean(parameter.grad) for parameter in model.parameters()]
    return {"loss": world.mean(loss.detach()), "gradients": gradients, "buffers": list(model.buffers())}


def test_losses_gradients_of_both_orders_and_statistics_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    alone = _losses_and_gradients(World())
    for rank in on_two_ranks(_losses_and_gradients, tmp_path):
        torch.testing.assert_close(rank, alone, atol=2e-4, rtol=1e-3)


def _counted(world: World) -> dict[str, int]:
    calls = {"in all": 0, "in attacks": 0}

    def counting(name: str) -> Any:
        real = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls["in all"] += 1
            return real(*args, **kwargs)

        return mock.patch.object(dist, name, call)

    real = PGDAT.craft

    def craft(self: PGDAT, *args: Any) -> Any:
        before = calls["in all"]
        crafted = real(self, *args)
        calls["in attacks"] += calls["in all"] - before
        return crafted

    patches = [*map(counting, COLLECTIVES), mock.patch.object(PGDAT, "craft", craft)]
    for patch in patches:
        patch.start()
    _fitted(world, method={"name": "pgd_at", "attack": {**ATTACK, "batch_norm": "batch"}}, epochs=1)
    for patch in patches:
        patch.stop()
    return calls


def test_an_attack_makes_no_message(tmp_path: Path) -> None:
    for calls in on_two_ranks(_counted, tmp_path):
        # 4 steps; in each, a message for each of 3 norms forward and backward.
        assert calls["in attacks"] == 0 and calls["in all"] >= 4 * 6


@pytest.mark.parametrize("sync", ["local", "synchronised"])
def test_statistics_are_equal_on_all_ranks_at_every_checkpoint(sync: str, tmp_path: Path) -> None:
    def saved(world: World) -> list[dict[str, torch.Tensor]]:
        states = []

        def note(stage: Stage, __: int, state: dict[str, Any]) -> None:
            if "trainer" not in state:  # of the evaluation
                return
            states.append({name: value.clone() for name, value in state["trainer"]["model"].items()})

        with mock.patch.object(Stage, "save", note):
            _fitted(world, norm_sync=sync, method={"name": "pgd_at", "attack": ATTACK}, ema=0.5)
        return states

    first, second = on_two_ranks(saved, tmp_path)
    assert len(first) == 2 and any(name.endswith("running_var") for name in first[0])
    for ours, others in zip(first, second, strict=True):
        assert all(torch.equal(value, others[name]) for name, value in ours.items())


class _OwnNorm(nn.BatchNorm2d):
    pass


def test_networks_without_batch_norms_and_with_others_are_refused() -> None:
    plan = build(Training, {"norm_sync": "synchronised", "method": "standard"}, "train")
    digits = datasets.load("digits")
    for model, said in (
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "none"),
        (nn.Sequential(_OwnNorm(1), nn.Flatten(), nn.Linear(64, 10)), "a _OwnNorm of its own"),
    ):
        with pytest.raises(InputError, match=f"this network has {said}; set it to 'local'"):
            fit(model, digits, THREAT, plan, Stage("train", 0, World(), Progress(quiet=True)))
    with pytest.raises(InputError, match="neither compiled nor bounded"):
        build(Training, {"norm_sync": "synchronised", "compile": True}, "train")
