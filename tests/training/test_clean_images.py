"""Clean images beside adversarial ones, under plain, mixture and separate batch norm, against networks made by hand."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.attacks.fgsm import FGSM
from robust_nas.core.config import build
from robust_nas.core.errors import InputError
from robust_nas.datasets import load
from robust_nas.models.mixture_norm import MixtureBatchNorm2d, mix, plain_state, through, unmix
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.runtime.states import load_state, save_state
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Forward, Memory, Training, fit
from robust_nas.training._loop import Trainer
from robust_nas.training._options import added_losses
from robust_nas.training.pgd_at import PGDAT

THREAT = ThreatModel(epsilon=0.1)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def batch(seed: int = 0, count: int = 6) -> Batch:
    generator, places = torch.Generator().manual_seed(seed), torch.arange(count)
    images = torch.rand(count, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return Batch(images, labels, labels, THREAT, seed, places, places, count, count, Memory())


class ByHand(nn.Module):
    """The network above with running statistics for clean and adversarial images, and one or two scales and shifts."""

    def __init__(self, plain: nn.Module, *, shared: bool) -> None:
        super().__init__()
        self.conv, self.linear = copy.deepcopy(plain[0]), copy.deepcopy(plain[4])  # type: ignore[index]
        kinds = ("clean",) if shared else ("clean", "adversarial")
        self.scales = nn.ParameterDict({kind: nn.Parameter(torch.ones(4)) for kind in kinds})
        self.shifts = nn.ParameterDict({kind: nn.Parameter(torch.zeros(4)) for kind in kinds})
        self.statistics = {kind: (torch.zeros(4), torch.ones(4)) for kind in ("clean", "adversarial")}
        self.kind = "adversarial"

    def forward(self, images: Tensor) -> Tensor:
        mean, variance = self.statistics[self.kind]
        own = self.kind if self.kind in self.scales else "clean"
        normed = F.batch_norm(
            self.conv(images), mean, variance, self.scales[own], self.shifts[own], training=self.training
        )
        logits: Tensor = self.linear(normed.relu().flatten(1))
        return logits

    def of(self, kind: str, images: Tensor) -> Tensor:
        self.kind = kind
        logits: Tensor = self(images)
        self.kind = "adversarial"
        return logits


@pytest.mark.parametrize(("norm", "shared"), [("separate", True), ("mixture", False)])
@pytest.mark.parametrize(("share", "count"), [(0.5, 3), (1.0, 6)])
def test_norms_of_ones_own_train_as_a_network_made_by_hand(norm: str, shared: bool, share: float, count: int) -> None:
    settings = {"norm": norm, "weight_decay": 0.0, "momentum": 0.0, "learning_rate": 0.1, "schedule": "piecewise"}
    method = PGDAT(attack=FGSM(), clean_images=share)
    training = Training(method=method, **settings)  # type: ignore[arg-type]
    own, hand = model().train(), ByHand(model(), shared=shared).train()
    mix(own, shared=shared)
    trainer = Trainer(own, training, World())
    optimiser = torch.optim.SGD(hand.parameters(), 0.1)
    for step in range(3):
        data = batch(step)
        # The images whose gradient's sign the attack takes are seen with the adversarial running statistics.
        crafted = FGSM().perturb(hand.eval(), data.images, data.labels, THREAT)
        hand.train()
        logits = torch.cat([hand.of("adversarial", crafted), hand.of("clean", data.images[:count])])
        loss = F.cross_entropy(logits, torch.cat([data.labels, data.labels[:count]]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        torch.testing.assert_close(trainer.step(data, 0.0), loss.detach())
    assert len(list(own.parameters())) == (6 if shared else 8)
    for kind in ("clean", "adversarial"):
        norm_of = getattr(own[1], kind)  # type: ignore[index]
        mean, variance = hand.statistics[kind]
        for found, expected in ((norm_of.running_mean, mean), (norm_of.running_var, variance)):
            torch.testing.assert_close(found, expected)
        name = "clean" if shared else kind
        torch.testing.assert_close(norm_of.weight, hand.scales[name])
        torch.testing.assert_close(norm_of.bias, hand.shifts[name])
    torch.testing.assert_close(own[0].weight, hand.conv.weight)  # type: ignore[index]


def test_under_plain_norms_clean_and_adversarial_images_are_one_batch() -> None:
    own, hand, data = model().train(), model().train(), batch()
    passes: list[int] = []
    own.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    crafted = (data.images + 0.1).clamp(0, 1)
    both = torch.cat([crafted, data.images[:3]])
    forward = Forward(own, own, data.images, torch.contiguous_format)
    found = PGDAT(clean_images=0.5).loss(forward, crafted, data)
    expected = F.cross_entropy(hand(both), torch.cat([data.labels, data.labels[:3]]))
    torch.testing.assert_close(found, expected)
    assert passes == [9]
    # From 0, a tenth of the way to the mean of what the convolution gives for all nine images.
    torch.testing.assert_close(own[1].running_mean, 0.1 * hand[0](both).mean((0, 2, 3)))  # type: ignore[index]
    # A network that is called itself, as searches and other people's loops do, is given the same.
    torch.testing.assert_close(PGDAT(clean_images=0.5).loss(model().train(), crafted, data), expected)


def test_what_is_added_to_the_loss_uses_the_pass_of_both_together() -> None:
    own, data = model().train(), batch()
    passes: list[int] = []
    own.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    crafted = (data.images + 0.1).clamp(0, 1)
    forward = Forward(own, own, data.images, torch.contiguous_format, tapped=own[1])  # type: ignore[index]
    PGDAT(clean_images=1.0).loss(forward, crafted, data)
    added = added_losses(Training(pairing=0.5), forward, crafted, data)
    logits = model().train()(torch.cat([crafted, data.images]))
    torch.testing.assert_close(added, 0.5 * F.mse_loss(logits[:6], logits[6:]))
    assert forward.features(crafted).shape == (6, 4, 6, 6)
    assert passes == [12]


def test_a_separate_norm_is_saved_loaded_and_served_as_a_plain_one(tmp_path: Any) -> None:
    own = model().train()
    mix(own, shared=True)
    for kind, level in (("clean", 0.2), ("adversarial", 0.8)):
        with through(own, kind), torch.no_grad():  # type: ignore[arg-type]
            own(torch.full((4, 1, 8, 8), level) + 0.1 * torch.rand(4, 1, 8, 8))
    with torch.no_grad():
        own[1].clean.weight.mul_(1.5)  # type: ignore[index]
    save_state(tmp_path / "state", {"model": own.state_dict()})
    again, images = model(), torch.rand(3, 1, 8, 8)
    mix(again, shared=True)
    again.load_state_dict(load_state(tmp_path / "state")["model"])
    assert again[1].adversarial.weight is again[1].clean.weight  # type: ignore[index]
    outputs = []
    for kind in ("clean", "adversarial"):
        with through(again.eval(), kind):  # type: ignore[arg-type]
            expected = again(images)
        plain, served = model().eval(), copy.deepcopy(again)
        plain.load_state_dict(plain_state(again, kind))  # type: ignore[arg-type]
        unmix(served, kind)  # type: ignore[arg-type]
        assert torch.equal(plain(images), expected) and torch.equal(served(images), expected)
        assert not any(isinstance(module, MixtureBatchNorm2d) for module in served.modules())
        outputs.append(expected)
    assert not torch.allclose(*outputs)


def test_a_share_of_the_batch_counts_its_images_and_costs_as_many_passes() -> None:
    sizes = []
    for share in (0.0, 0.1, 0.5, 0.84, 1.0):
        counted: list[int] = []

        def forward(images: Tensor, counted: list[int] = counted) -> Tensor:
            counted.append(len(images))
            return torch.zeros(len(images), 10)

        data = batch(count=8)
        PGDAT(clean_images=share).loss(forward, data.images + 0, data)
        sizes.append(sum(counted) - 8)
    assert sizes == [0, 1, 4, 7, 8]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGDAT(clean_images=1.5), r"PGDAT.clean_images must be in \[0, 1\], but got 1.5"),
        (lambda: PGDAT(clean_images=0.5, clean_share=0.5), "set one of them to 0"),
        (lambda: Training(norm="seperate"), "train.norm must be one of batch, mixture, separate"),  # type: ignore[arg-type]
        (lambda: Training(serve="clean", norm="batch"), "clean_images of the method pgd_at above 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("norm", ["mixture", "separate"])
def test_a_norm_without_clean_images_is_refused_and_the_advice_is_taken(norm: str) -> None:
    digits = load("digits")
    data = dataclasses.replace(digits, train=digits.train[:16], validation=digits.validation[:8])
    table = {"epochs": 1, "batch_size": 8, "selection_attack": "fgsm", "norm": norm}
    for clean_images in (0.0, 0.5):
        method = {"name": "pgd_at", "attack": {"name": "fgsm"}, "clean_images": clean_images}
        plan = build(Training, {**table, "method": method}, "train")
        stage = Stage("train", 0, World(), Progress(quiet=True))
        if clean_images:
            assert fit(model(), data, THREAT, plan, stage).last.keys() == model().state_dict().keys()
        else:
            with pytest.raises(InputError, match="or clean_images of the method pgd_at"):
                fit(model(), data, THREAT, plan, stage)
