"""Certified training, against autograd in double precision, sampled points and closed forms."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas import datasets, spaces
from robust_nas.attacks.fgsm import FGSM
from robust_nas.bounds import Box
from robust_nas.bounds.interval import Interval
from robust_nas.core.config import build
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seeded
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage, read_metrics
from robust_nas.threat import ThreatModel
from robust_nas.training import Batch, Forward, Memory, Training, fit, rehearse
from robust_nas.training._certified import absolute_weights, interval, recorded, shared, tight, worst_cross_entropy
from robust_nas.training._loop import _best
from robust_nas.training.ibp import IBP
from robust_nas.training.mtl_ibp import MTLIBP
from robust_nas.training.sabr import SABR

THREAT = ThreatModel(epsilon=0.05)
CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_3x3~2|"


def _batch(threat: ThreatModel = THREAT, scale: float = 1.0, count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, 6, 6, generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    places = torch.arange(count)
    return Batch(images, labels, labels, threat, 0, places, places, count, count, Memory(), epsilon_scale=scale)


def _model() -> nn.Module:
    with seeded(0, "model"):
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(),
            nn.Linear(48, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3),
        ).train()  # fmt: skip


def _cell_network() -> nn.Module:
    space = spaces.load("nasbench201", channels=4, cells_per_stage=1, stages=2)
    with seeded(0, "model"):
        return space.network(space.parse(CELL), datasets.load("digits")).train()


def _small() -> nn.Module:
    with seeded(0, "model"):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).train()


class Twice(nn.Module):
    """A network that calls one batch norm at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3)
        self.norm, self.last = nn.BatchNorm2d(3), nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.first(images)).relu()
        return self.last(self.norm(self.second(hidden)).relu().flatten(1))


def _twice() -> nn.Module:
    with seeded(0, "model"):
        return Twice().train()


@pytest.mark.parametrize("make", [_model, _twice])
def test_shared_statistics_make_clean_images_what_they_are_in_training_mode(make: Callable[[], nn.Module]) -> None:
    model, images = make(), _batch().images
    with recorded(model) as statistics:
        logits = model(images)
    with shared(model, statistics):
        for _ in range(2):  # any number of passes
            torch.testing.assert_close(model(images), logits, atol=1e-6, rtol=1e-5)
            box = model(Box(images, images))
            torch.testing.assert_close(box.lower, logits, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(box.upper, logits, atol=1e-5, rtol=1e-5)


def test_sharing_leaves_the_network_as_one_clean_pass_does() -> None:
    model, expected, batch = _model(), _model(), _batch()
    expected[1].eval()  # a batch norm that somebody holds still
    model[1].eval()
    expected(batch.images)
    for method in (IBP(), SABR(), MTLIBP()):
        ours = copy.deepcopy(model)
        method.loss(ours, method.craft(ours, batch), batch).backward()
        for key, value in expected.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value), key
        assert [module.training for module in ours.modules()] == [module.training for module in expected.modules()]
        assert not any(hooks for module in ours.modules() for hooks in (module._forward_pre_hooks,))


@pytest.mark.parametrize("method", [IBP(), SABR(), MTLIBP()], ids=lambda method: type(method).__name__)
def test_the_gradient_is_that_of_finite_differences_through_the_shared_statistics_too(
    method: IBP | SABR | MTLIBP,
) -> None:
    model, batch = _model().double(), _batch()
    crafted = method.craft(_model(), batch).double()
    batch = dataclasses.replace(batch, images=batch.images.double())
    method.loss(model, crafted, batch).backward()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        step, losses = 1e-6, []
        with torch.no_grad():
            for sign in (1, -1):
                moved = copy.deepcopy(model)
                dict(moved.named_parameters())[_name_of(model, parameter)].add_(sign * step * direction)
                losses.append(method.loss(moved, crafted, batch))
        assert parameter.grad is not None
        slope = float((parameter.grad * direction).sum())
        assert float(losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def _name_of(model: nn.Module, wanted: nn.Parameter) -> str:
    return next(name for name, parameter in model.named_parameters() if parameter is wanted)


@pytest.mark.parametrize("method", [IBP(), SABR(), MTLIBP()], ids=lambda method: type(method).__name__)
def test_as_epsilon_vanishes_the_loss_is_the_clean_cross_entropy(method: IBP | SABR | MTLIBP) -> None:
    batch = _batch(ThreatModel(epsilon=1e-6))
    clean = F.cross_entropy(_model()(batch.images), batch.labels)
    model = _model()
    torch.testing.assert_close(method.loss(model, method.craft(model, batch), batch), clean, rtol=1e-4, atol=0)
    batch = _batch(scale=0.0)  # and before it grows, exactly
    assert torch.equal(method.craft(model, batch), batch.images)
    assert torch.equal(method.loss(_model(), method.craft(model, batch), batch), clean)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("make", [_model, _cell_network])
def test_the_worst_cross_entropy_bounds_that_of_every_sampled_point(make: Callable[[], nn.Module], soft: bool) -> None:
    model = make()
    part = datasets.load("digits").train[:8]
    images, labels = (part.images, part.labels) if make is _cell_network else (_batch().images, _batch().labels)
    classes = 10 if make is _cell_network else 3
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(len(labels), classes, generator=generator).softmax(1) if soft else labels
    with recorded(model) as statistics:
        model(images)
    ball = THREAT.around(images)
    with torch.no_grad(), shared(model, statistics):
        bound = worst_cross_entropy(interval(model, images, THREAT), targets)
        points = [ball.random(generator) for _ in range(20)]
        directions = [torch.randn(images.shape, generator=generator) for _ in range(20)]
        points += [ball.ascend(images, direction, 1.0) for direction in directions]  # corners
        assert max(F.cross_entropy(model(some), targets) for some in points) <= bound


def test_the_worst_cross_entropy_of_a_linear_model_is_its_closed_form() -> None:
    batch = _batch(ThreatModel(epsilon=0.3))
    with seeded(0, "model"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    weight, bias, x = model[1].weight, model[1].bias, batch.images.flatten(1)
    low, high = (x - 0.3).clamp(0, 1), (x + 0.3).clamp(0, 1)
    # Each logit difference alone at its worst corner of the box.
    rows = weight.unsqueeze(0) - weight[batch.labels].unsqueeze(1)
    worst = (rows.clamp_min(0) * high.unsqueeze(1) + rows.clamp_max(0) * low.unsqueeze(1)).sum(2)
    worst = worst + bias.unsqueeze(0) - bias[batch.labels].unsqueeze(1)
    expected = worst.exp().sum(1).log().mean()
    torch.testing.assert_close(worst_cross_entropy(interval(model, batch.images, batch.threat), batch.labels), expected)
    one_hot = F.one_hot(batch.labels, 3).float()
    torch.testing.assert_close(worst_cross_entropy(interval(model, batch.images, batch.threat), one_hot), expected)


def test_tight_weights_keep_the_width_of_intervals_where_the_usual_ones_let_it_grow() -> None:
    def gains(make_tight: bool) -> float:
        """The width of the values after 7 ReLUs, over that after the first."""
        with seeded(0, "model"):
            model = nn.Sequential(*[part for _ in range(8) for part in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())])
            model.append(nn.Conv2d(32, 2, 1))
        if make_tight:
            tight(model, seed=0)
        images = torch.rand(2, 32, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            first, last = (model[: 2 * depth](Box(images - 0.1, images + 0.1)) for depth in (1, 8))
        return float((last.upper - last.lower).mean() / (first.upper - first.lower).mean())

    # Zero padding narrows a little at every layer.
    assert 0.3 < gains(make_tight=True) < 2
    assert gains(make_tight=False) > 100


def test_tight_weights_have_the_published_deviation_and_the_last_layer_is_left_alone() -> None:
    with seeded(0, "model"):
        model = nn.Sequential(nn.Conv2d(16, 64, 3, groups=2), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64, 10))
    before = copy.deepcopy(model)
    IBP(initialisation="tight").prepare(model, seed=0)
    assert float(model[0].weight.detach().std()) == pytest.approx((2 * torch.pi) ** 0.5 / (8 * 9), rel=0.03)
    assert torch.equal(model[3].weight, before[3].weight) and torch.equal(model[0].bias, before[0].bias)
    again = copy.deepcopy(before)
    IBP(initialisation="tight").prepare(again, seed=0)
    assert torch.equal(again[0].weight, model[0].weight)
    IBP().prepare(before, seed=0)
    assert not torch.equal(again[0].weight, before[0].weight)


def test_l1_adds_the_absolute_weights_of_convolutions_and_linear_layers() -> None:
    model, batch = _model(), _batch()
    weights = [model[place].weight for place in (0, 4, 7)]
    expected = torch.stack([weight.abs().sum() for weight in weights]).sum()
    torch.testing.assert_close(absolute_weights(model), expected)
    for plain, method in ((IBP(), IBP(l1=0.01)), (MTLIBP(alpha=0), MTLIBP(alpha=0, l1=0.01))):
        added = method.loss(_model(), batch.images, batch) - plain.loss(_model(), batch.images, batch)
        torch.testing.assert_close(added, 0.01 * absolute_weights(model), rtol=1e-4, atol=0)
    with pytest.raises(InputError, match=r"IBP\.l1 must not be negative"):
        IBP(l1=-1)
    with pytest.raises(InputError, match=r"SABR\.initialisation must be one of given, tight"):
        SABR(initialisation="loose")  # type: ignore[arg-type]


def _digits(train: int, validation: int) -> datasets.Dataset:
    digits = datasets.load("digits")
    return dataclasses.replace(digits, train=digits.train[:train], validation=digits.validation[:validation])


def _stage(world: World | None = None, folder: Path | None = None) -> Stage:
    if folder is not None:
        (folder / "checkpoints").mkdir(exist_ok=True)
    return Stage("train", 0, world or World(), Progress(quiet=True), folder=folder)


def test_epsilon_waits_and_then_grows_and_methods_are_told_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float]] = []
    original = IBP.loss

    def watched(self: IBP, forward: Callable[[Tensor], Tensor], crafted: Tensor, batch: Batch) -> Tensor:
        seen.append((batch.epsilon_scale, batch.threat.epsilon))
        return original(self, forward, crafted, batch)

    monkeypatch.setattr(IBP, "loss", watched)
    options = {"epsilon_warm_up": 0.25, "epsilon_ramp": 0.5, "epochs": 4, "batch_size": 16, "selection_attack": "fgsm"}
    plan = build(Training, {"method": "ibp", **options}, "train")
    fit(_small(), _digits(64, 16), THREAT, plan, _stage())
    expected = [min(max(step / 16 - 0.25, 0) / 0.5, 1) for step in range(16)]
    assert [scale for scale, _ in seen] == pytest.approx(expected)
    assert [epsilon for _, epsilon in seen] == pytest.approx([0.05 * scale for scale in expected], abs=1e-7)
    for wrong in ({"epsilon_warm_up": 0.6, "epsilon_ramp": 0.6}, {"epsilon_warm_up": 1.0}):
        with pytest.raises(InputError, match="epsilon_warm_up"):
            Training(**wrong)
    # A jump, without a ramp.
    assert [Training(epsilon_warm_up=0.5).epsilon_scale_at(share) for share in (0, 0.49, 0.5, 1)] == [0, 0, 1, 1]


def test_epsilon_grows_in_certified_training_if_nothing_else_is_said() -> None:
    shares = (0.0, 0.1, 0.35, 0.6, 1.0)
    for name in ("ibp", "crown_ibp", "sabr", "mtl_ibp"):
        grown = [build(Training, {"method": name}, "train").epsilon_scale_at(share) for share in shares]
        assert grown == pytest.approx([0, 0, 0.5, 1, 1]), name
    assert Training().epsilon_scale_at(0.0) == 1
    # Who gives one of the two gives both.
    assert Training(method=IBP(), epsilon_ramp=0.0).epsilon_scale_at(0.0) == 1
    assert Training(method=IBP(), epsilon_ramp=0.5).epsilon_scale_at(0.25) == pytest.approx(0.5)
    assert Training(method=IBP(), epsilon_warm_up=0.0).epsilon_scale_at(0.0) == 1


def test_certified_training_keeps_the_epoch_after_which_most_validation_images_are_certified(tmp_path: Path) -> None:
    data, threat = _digits(320, 64), ThreatModel(epsilon=0.02)
    options = {"epochs": 8, "batch_size": 16, "selection_attack": "fgsm", "gradient_clip": 10.0}
    plan = build(Training, {"method": {"name": "ibp", "initialisation": "tight"}, **options}, "train")
    fitted = fit(_small(), data, threat, plan, _stage(folder=tmp_path))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    certified = [row["validation_certified"] for row in rows]
    assert fitted.record.kept == "best"
    assert certified[fitted.record.best_epoch - 1] == max(certified) > certified[0]
    # What is certified is counted here again, by interval bounds of the weights that were kept.
    images, labels = data.validation.images, data.validation.labels
    lower = Interval().margins(fitted.model, images, labels, threat).lower(threat)
    assert float((lower > 0).all(1).double().mean()) == pytest.approx(max(certified))
    assert fitted.record.validation["certified"] == max(certified)


def test_attacked_accuracy_decides_between_epochs_that_are_certified_alike() -> None:
    rows = [
        {"epoch": 1, "clean": 0.9, "robust": 0.8, "certified": 0.0},
        {"epoch": 2, "clean": 0.7, "robust": 0.4, "certified": 0.3},
        {"epoch": 3, "clean": 0.6, "robust": 0.5, "certified": 0.3},
    ]
    assert _best(rows)["epoch"] == 3
    assert _best([{key: value for key, value in row.items() if key != "certified"} for row in rows])["epoch"] == 1


def test_the_gradient_is_clipped_to_its_largest_length() -> None:
    data, options = _digits(32, 16), {"epochs": 1, "batch_size": 32, "momentum": 0.0, "nesterov": False}
    options |= {"weight_decay": 0.0, "schedule": "linear", "selection_attack": "fgsm"}
    options["knots"] = [{"epoch": epoch, "learning_rate": 1.0} for epoch in (0, 1)]

    def step(**more: float) -> Tensor:
        start = _small()
        plan = build(Training, {"method": "standard", **options, **more}, "train")
        last = fit(copy.deepcopy(start), data, THREAT, plan, _stage()).last
        return torch.cat([(value - last[name]).detach().flatten() for name, value in start.named_parameters()])

    free, clipped = step(), step(gradient_clip=0.01)
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(step(gradient_clip=1e6), free)
    with pytest.raises(InputError, match=r"train\.gradient_clip must not be negative"):
        Training(gradient_clip=-1.0)


def test_a_network_is_prepared_once_and_not_when_its_training_resumes(tmp_path: Path) -> None:
    data, options = _digits(32, 16), {"batch_size": 16, "selection_attack": "fgsm", "ema": 0.5}
    method = {"name": "ibp", "initialisation": "tight"}
    plan = build(Training, {"method": method, "epochs": 2, **options}, "train")
    fresh = fit(_small(), data, THREAT, plan, _stage(folder=tmp_path)).last
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    resumed = fit(_small(), data, THREAT, plan, _stage(folder=tmp_path)).last
    plan = build(Training, {"method": "ibp", "epochs": 2, **options}, "train")
    given = fit(_small(), data, THREAT, plan, _stage()).last
    for key, value in fresh.items():
        assert torch.equal(value, resumed[key]), key
    assert not torch.equal(fresh["0.weight"], given["0.weight"])


def test_compiled_networks_and_mixtures_are_refused() -> None:
    for name in ("ibp", "sabr", "mtl_ibp"):
        for options in ({"compile": True}, {"norm": "mixture"}):
            with pytest.raises(InputError, match="bounds the network as it is"):
                build(Training, {"method": name, **options}, "train")


def test_a_network_that_cannot_be_bounded_is_named_in_a_rehearsal_although_epsilon_would_begin_at_zero() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Mish(), nn.Flatten(), nn.Linear(144, 10))
    plan = Training(method=IBP(), epsilon_warm_up=0.2, epsilon_ramp=0.5, epochs=10)
    with pytest.raises(InputError, match=r"no sound rule for .*mish"):
        rehearse(model, _digits(16, 8), THREAT, plan)


def _rank(function: Callable[[World], Any], rank: int, port: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    world = World.start("cpu")
    torch.save(function(world), folder / f"{rank}.pt")
    world.stop()


def on_two_ranks(function: Callable[[World], Any], folder: Path) -> list[Any]:
    """Return the results of `function` on each of two gloo ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_rank, args=(function, rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _gradient(world: World) -> list[Tensor]:
    """The gradient of one IBP and SABR step, without batch norm, of which each rank has its own statistics."""
    part = datasets.load("digits").train[:16][torch.arange(world.rank, 16, world.size)]
    places = torch.arange(len(part.images))
    batch = Batch(part.images, part.labels, part.labels, THREAT, 0, places, places, 16, 16, Memory())
    gradients = []
    for method in (IBP(), SABR(attack=FGSM())):
        with seeded(0, "model"):
            model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).train()
        wrapped = world.wrap(model)
        forward = Forward(model, wrapped, batch.images, torch.contiguous_format)
        method.loss(forward, method.craft(model, batch), batch).backward()
        gradients += [parameter.grad for parameter in model.parameters()]
    return gradients


def test_two_ranks_have_the_bounds_gradient_of_one_process_with_the_same_global_batch(tmp_path: Path) -> None:
    alone = _gradient(World())
    for rank in on_two_ranks(_gradient, tmp_path):
        for ours, expected in zip(rank, alone, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


def _weights(world: World) -> dict[str, Tensor]:
    plan = build(
        Training, {"method": "mtl_ibp", "epochs": 2, "batch_size": 16, "selection_attack": "fgsm", "gradient_clip": 1.0}
    )
    return fit(_small(), _digits(64, 16), THREAT, plan, _stage(world)).last


def test_two_ranks_train_a_network_with_batch_norm_to_the_same_weights_on_both(tmp_path: Path) -> None:
    first, second = on_two_ranks(_weights, tmp_path)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
