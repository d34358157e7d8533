"""Checkpointing, accumulation and the precision of crafting change memory and time, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import random
import statistics
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import robust_nas as rn
from robust_nas import datasets, spaces, training
from robust_nas.core.config import build
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.models.checkpointing import blocks_of, checkpointed
from robust_nas.models.frozen import frozen
from robust_nas.models.mixture_norm import mix
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Memory, Training, fit
from robust_nas.training._costs import forward_equivalents
from robust_nas.training._loop import Trainer

THREAT = ThreatModel(epsilon=0.1)
COLOURS = rn.Dataset.from_arrays((torch.rand(20, 3, 16, 16), torch.arange(20) % 10))
GENOTYPE = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_3x3~2|"


def _batch(count: int = 6, size: int = 16, channels: int = 3) -> Batch:
    generator, places = torch.Generator().manual_seed(4), torch.arange(count)
    images = torch.rand(count, channels, size, size, generator=generator)
    return Batch(images, places % 10, places % 10, THREAT, 3, places, places, count, count, Memory())


class OddBlock(nn.Module):
    """All that a pass may do beside computing: it writes into its input, draws from four generators, and remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.norm, self.drop = nn.BatchNorm2d(8, momentum=None), nn.Dropout(0.3)
        self.generator, self.calls, self.seen = torch.Generator().manual_seed(2), 0, []

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.9)
        self.calls += 1
        self.seen.append(self.calls)
        noise = torch.rand(1, generator=self.generator) + random.random()
        return self.drop(F.relu(self.norm(self.convolution(x)), inplace=True)) + noise * x


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.classifier = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 10)
        self.blocks = nn.ModuleList(OddBlock() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((2, 3)))


def _of_space(name: str, values: Callable[[tuple[str, ...]], str], **options: Any) -> nn.Module:
    space = spaces.load(name, **options)
    return space.network(space.decided([values(each) for each in space.decisions.values()]), COLOURS)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "cells": lambda: _of_space("nasbench201", lambda values: values[-2], channels=4, cells_per_stage=1),
    "darts": lambda: _of_space("darts", lambda values: values[-1], channels=4, num_cells=3),
    "sizes": lambda: _of_space("nasbench201-size", lambda values: values[0]),
    "residual": lambda: _of_space("robust-resnet-small", lambda values: values[0]),
    "resnet": lambda: rn.create("cifar-resnet-20 width=0.25 denoise=dot", COLOURS),
    "preact-resnet": lambda: rn.create("preact-resnet-18 width=0.0625", COLOURS),
    "torchvision": lambda: torchvision.models.resnet18(num_classes=10),
    "odd": Odd,
}


def _stepped(
    model: nn.Module, plan: Training, batch: Batch, *, steps: int = 1
) -> tuple[list[float], dict[str, Tensor]]:
    """Return the losses of steps, and the gradients and the state that the last one leaves behind."""
    random.seed(0)
    if plan.mixes:
        mix(model)
    trainer = Trainer(model.train(), plan, World())
    losses = [float(trainer.step(batch, 0.1)) for _ in range(steps)]
    gradients = {f"gradient of {name}": each.grad for name, each in model.named_parameters() if each.grad is not None}
    return losses, {**gradients, **model.state_dict(), **trainer.average.values}


def _plan(**options: Any) -> Training:
    return build(Training, {"epochs": 1, "batch_size": 6, "learning_rate": 0.05, **options}, "train")


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpointed_step_is_the_step_to_the_bit(name: str) -> None:
    # Batch statistics in the attack, a mixture, moved weights, a mean of the weights: the most that a step does.
    method = {"name": "pgd_at", "attack": {"name": "pgd", "steps": 1, "batch_norm": "batch"}}
    plan = _plan(
        method=method, norm="mixture", clean_weight=1.0, awp=0.01, ema=0.9, channels_last=name == "torchvision"
    )
    found = []
    for checkpointing in (False, True):
        with seeded(1):
            model = MODELS[name]()
        batch, steps = (_batch(4, 8), 1) if name == "torchvision" else (_batch(), 2)
        found.append(_stepped(model, dataclasses.replace(plan, checkpointing=checkpointing), batch, steps=steps))
        assert not any("forward" in vars(module) for module in model.modules())
        if name == "odd":
            found[-1][0].append(model.blocks[0].seen)
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"method": {"name": "fast", "grad_align": 0.2}},  # a gradient of a gradient
        {"method": "trades", "precision": "bfloat16"},
        {"method": "free", "drop_path": 0.2},
        {"method": "conadv", "norm": "batch"},
        {"method": "cat", "precision": "float16"},
    ],
    ids=lambda options: str(options["method"]),
)
def test_a_checkpointed_step_of_other_methods_and_precisions_is_the_step_to_the_bit(options: dict[str, Any]) -> None:
    found = []
    for checkpointing in (False, True):
        with seeded(1):
            model = MODELS["darts" if "drop_path" in options else "odd"]()
        model.drop_path = 0.5
        found.append(_stepped(model, _plan(checkpointing=checkpointing, **options), _batch(), steps=2))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_an_attack_of_a_checkpointed_model_finds_the_same_images(attack: str) -> None:
    with seeded(1):
        # Sequentials of which a frozen model folds the batch norms.
        model = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Tanh()) for _ in range(4)))
        model = nn.Sequential(*model, nn.Flatten(), nn.Linear(192, 10))
    batch = _batch()
    perturb = rn.attacks.get(attack)().perturb
    plain = perturb(model, batch.images, batch.labels, THREAT)
    with checkpointed(blocks_of(model)) as passes:
        found = perturb(model, batch.images, batch.labels, THREAT)
    assert torch.equal(found, plain) and sum(each.calls for each in passes) == 0  # the folded passes are others
    with checkpointed(blocks_of(model)) as passes, frozen(model, fold=False), torch.no_grad():
        model(batch.images)
    assert [each.calls for each in passes] == [1] * 4


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: torchvision.models.resnet50(), {"Bottleneck": 16}),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), torchvision.models.resnet18()), {"BasicBlock": 8}),
        (lambda: torchvision.models.vit_b_32(), {"EncoderBlock": 12}),
        (lambda: torchvision.models.densenet121(), {"_DenseLayer": 58, "_Transition": 3}),
        (lambda: rn.create("resnet-638 stem=cifar", COLOURS), {"PostBlock": 212}),
        (lambda: rn.create("wrn-28-10", COLOURS), {"ResidualBlock": 12, "Sequential": 1}),
        (lambda: _of_space("nasbench201", lambda values: values[-2]), {"Cell": 15, "Reduction": 2, "Sequential": 2}),
        (lambda: _of_space("darts", lambda values: values[-1]), {"DartsCell": 8, "Sequential": 1}),
    ],
)
def test_blocks_are_the_residual_blocks_the_cells_and_the_layers_of_a_transformer(make, expected) -> None:
    with torch.device("meta"):
        blocks = blocks_of(make())
    assert Counter(type(block).__name__ for block in blocks) == expected


def test_a_model_in_one_piece_has_no_blocks() -> None:
    with torch.device("meta"):
        vgg = torchvision.models.vgg11()
    for model in (vgg, nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))):
        with pytest.raises(
            InputError, match=f"{type(model).__name__} has no blocks .* set train.checkpointing to false"
        ):
            blocks_of(model)


def _peak(work: Callable[[], object]) -> int:
    """Return the largest number of bytes that are allocated at once, beside those before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = largest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        largest = max(largest, total)
    return largest


def test_the_peak_of_a_deep_network_falls_with_checkpointing_and_with_parts() -> None:
    method = {"name": "pgd_at", "attack": {"name": "pgd", "steps": 1}}
    peaks = {}
    for options in ({}, {"checkpointing": True}, {"accumulate": 4}, {"accumulate": 4, "checkpointing": True}):
        with seeded(1):
            model = rn.create("cifar-resnet-32 width=0.25", COLOURS)
        trainer = Trainer(model.train(), _plan(method=method, **options), World())
        trainer.step(_batch(4), 0.1)
        step = partial(trainer.step, _batch(16), 0.1)
        # The profiler's clock orders what happens at once differently from time to time.
        peaks[len(options), options.get("accumulate", 1)] = statistics.median(_peak(step) for _ in range(3))
    assert peaks[1, 1] < 0.5 * peaks[0, 1] and peaks[1, 4] < 0.5 * peaks[0, 1]
    assert peaks[2, 4] < 0.6 * min(peaks[1, 1], peaks[1, 4])


def test_checkpointing_costs_a_forward_pass_for_each_backward_pass() -> None:
    data = datasets.load("digits")
    space = spaces.load("nasbench201", channels=8, cells_per_stage=1)
    costs = []
    for checkpointing in (False, True):
        model = space.network(space.parse(GENOTYPE), data).train()
        method = {"name": "pgd_at", "attack": {"name": "pgd", "steps": 3, "batch_norm": "batch"}}
        costs.append(forward_equivalents(_plan(method=method, checkpointing=checkpointing), model, _batch(8, 8, 1)))
    # PGD-k: k + 1 backward passes; the linear layer is in no block.
    assert costs[1] - costs[0] == pytest.approx(3 + 1, rel=0.01)


def _smooth() -> nn.Module:
    """A network without batch statistics or kinks: the gradients of images do not jump with rounding."""
    with seeded(2):
        return nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(72, 10))


@pytest.mark.parametrize("name", [name for name in training.names() if training.get(name)().accumulates])
def test_a_batch_in_parts_has_the_examples_the_loss_and_the_gradient_of_the_whole(name: str, monkeypatch) -> None:
    kind = training.get(name)
    crafted: list[Tensor] = []
    craft = kind.craft

    def noted(self: Any, model: nn.Module, batch: Batch) -> Tensor:
        crafted.append(craft(self, model, batch))
        return crafted[-1]

    monkeypatch.setattr(kind, "craft", noted)
    options = {"start": "n_fgsm"} if name == "fast" else {}
    options |= {"attack": {"name": "pgd", "steps": 2, "random_start": True}} if name == "cat" else {}
    found, examples = [], []
    for parts in (1, 3):
        plan = _plan(
            method={"name": name, **options}, norm="batch", accumulate=parts, awp=0.01, ema=0.9, gradient_clip=0.5,
            clean_weight=0.5, pairing=0.2,
        )  # fmt: skip
        batch = _batch(7, 8, 1)
        soft = torch.softmax(torch.randn(7, 10, generator=torch.Generator().manual_seed(1)), 1)
        crafted.clear()
        # Of unequal parts, 2, 2 and 3 images.
        found.append(_stepped(_smooth(), plan, dataclasses.replace(batch, targets=soft), steps=2))
        examples.append(torch.cat(crafted))
        assert len(crafted) == 2 * parts
    torch.testing.assert_close(examples[1], examples[0], rtol=0, atol=1e-6)
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-6)


def test_one_part_is_the_batch_itself() -> None:
    batch = _batch(7)
    assert batch.parts(1) == [batch]
    parts = batch.parts(3)
    assert [part.images.shape[0] for part in parts] == [2, 2, 3] and [part.first for part in parts] == [0, 2, 4]
    assert torch.equal(torch.cat([part.ids for part in parts]), batch.ids)


def test_running_statistics_move_once_a_step_towards_the_mean_of_the_parts_statistics() -> None:
    model, batch = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(768, 10)), _batch(6)
    _stepped(model, _plan(method="standard", accumulate=3), batch)
    parts = batch.images.split(2)
    mean = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    variance = torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0)
    torch.testing.assert_close(model[0].running_mean, 0.1 * mean)
    torch.testing.assert_close(model[0].running_var, 0.9 + 0.1 * variance)
    assert int(model[0].num_batches_tracked) == 1


def test_a_training_with_both_resumes_to_equal_bits(tmp_path, monkeypatch) -> None:
    digits = datasets.load("digits")
    data = dataclasses.replace(digits, train=digits.train[:32], validation=digits.validation[:8])
    plan = _plan(
        method={"name": "pgd_at", "attack": "fgsm"},
        epochs=3,
        batch_size=16,
        accumulate=2,
        checkpointing=True,
        ema=0.9,
        selection_attack="fgsm",
        precision="bfloat16",
    )
    space = spaces.load("nasbench201", channels=4, cells_per_stage=1)

    def trained(folder) -> dict[str, Tensor]:
        with seeded(1):
            model = space.network(space.parse(GENOTYPE), data)
        return fit(model, data, THREAT, plan, Stage("train", 0, World(), Progress(quiet=True), folder)).last

    whole = trained(None)
    (tmp_path / "checkpoints").mkdir()
    step, calls = Trainer.step, []

    def interrupted(self: Trainer, *arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    monkeypatch.undo()
    torch.testing.assert_close(trained(tmp_path), whole, rtol=0, atol=0)


def test_under_bfloat16_the_examples_are_float32_and_in_the_ball_and_may_be_crafted_in_float32(monkeypatch) -> None:
    from robust_nas.training.pgd_at import PGDAT

    crafted: list[Tensor] = []
    craft = PGDAT.craft

    def noted(self: PGDAT, model: nn.Module, batch: Batch) -> Tensor:
        crafted.append(craft(self, model, batch))
        return crafted[-1]

    monkeypatch.setattr(PGDAT, "craft", noted)
    threat = ThreatModel(norm="l2", epsilon=0.5)  # where a step follows the gradient, and not its signs alone
    batch = dataclasses.replace(_batch(7, 8, 1), threat=threat)
    for options in ({}, {"precision": "bfloat16"}, {"precision": "bfloat16", "craft_precision": "float32"}):
        losses, _ = _stepped(_smooth(), _plan(method="pgd_at", **options), batch)
        assert crafted[-1].dtype == torch.float32 and bool(threat.around(batch.images).contains(crafted[-1]).all())
    full, half, mixed = crafted
    assert torch.equal(mixed, full) and not torch.equal(half, full)
    exact = F.cross_entropy(_smooth()(full), batch.labels).detach()
    assert losses[0] != float(exact) and losses[0] == pytest.approx(float(exact), rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpointing": True, "compile": True}, "train.checkpointing is for networks that are neither compiled nor"),
        ({"checkpointing": True, "method": "ibp"}, "train.checkpointing is for networks that are neither compiled nor"),
        ({"accumulate": 0}, "train.accumulate must be at least 1, but got 0"),
        ({"accumulate": 2, "method": "sprout"}, "the loss of SPROUT as it is set is of all its images together"),
        ({"accumulate": 2, "method": {"name": "fast", "grad_align": 0.2}}, "the loss of Fast as it is set"),
        ({"craft_precision": "float8"}, "train.craft_precision"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _plan(**options)


def test_more_parts_than_images_are_refused() -> None:
    with pytest.raises(InputError, match="in 9 parts, but each process has 8 images of a batch of 8; set it lower"):
        rn.train(_smooth(), datasets.load("digits"), THREAT, epochs=1, batch_size=8, accumulate=9)


class Wrong(Odd):
    """A model of which blocks cannot be computed again, for one of three reasons."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason, self.count = reason, [0]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()) for _ in range(4)
        )
        for block in self.blocks if reason == "changes" else ():
            block[0].register_forward_hook(self._widened)

    def _widened(self, *_: Any) -> Tensor:
        self.count[0] += 1
        return torch.rand(6, 8, 7 + self.count[0] % 3, 7, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if self.reason == "writes":
                x += block(x)
            elif self.reason == "calls none":
                for layer in block:
                    x = layer(x)
            else:
                x = block(x)
        return self.classifier(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("writes", r"written into after the block's pass.*\(as in x \+= block\(x\)\)"),
        ("calls none", "calls none of its 4 blocks as modules"),
        ("changes", "did something else when its activations were computed again"),
    ],
)
def test_a_model_whose_blocks_cannot_be_computed_again_is_refused_in_one_sentence(reason: str, message: str) -> None:
    _stepped(Wrong(reason), _plan(method="standard"), _batch())
    with pytest.raises(InputError, match=message):
        _stepped(Wrong(reason), _plan(method="standard", checkpointing=True), _batch())


def test_a_copy_of_a_checkpointed_model_computes_with_its_own_weights() -> None:
    model, batch = MODELS["torchvision"]().eval(), _batch(2)
    with checkpointed(blocks_of(model)):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not other(batch.images).any() and model(batch.images).any()
