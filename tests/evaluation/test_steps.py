"""Accuracy over the steps of one ascent, against ascents of their own for every number of steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robust_nas.attacks import Attack
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.pgd import PGD
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at
from robust_nas.datasets import ImageSet
from robust_nas.evaluation import StepCurve, accuracy_over_steps
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel

THREAT, STEP, LONGEST = ThreatModel(epsilon=0.05), 0.02, 16
NUMBERS = (1, 2, 5, 9, LONGEST)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Return a network on which an ascent that oscillates fools for a while, and no longer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, norm, wide, last = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.Linear(256, 32), nn.Linear(32, 5)
        with torch.no_grad():
            assert norm.running_mean is not None
            norm.running_mean.copy_(first(torch.rand(50, 1, 6, 6)).mean((0, 2, 3)))
            norm.weight.mul_(15)
            wide.weight.mul_(3)
        return nn.Sequential(first, norm, nn.ReLU(), nn.Flatten(), wide, nn.Tanh(), last).double().eval()


@pytest.fixture(scope="module")
def data(model: nn.Module) -> ImageSet:
    pixels = torch.randint(0, 256, (60, 1, 6, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    labels = model(pixels.double() / 255).argmax(1)
    labels[:2] = (labels[:2] + 1) % 5  # two are wrong from the start
    return ImageSet(pixels, labels)


def stands_after(model: nn.Module, data: ImageSet, attack: PGD, number: int) -> Tensor:
    """Return whether the last point of an ascent of `number` steps is classified correctly, [58]."""
    images, labels = data.images[2:], data.labels[2:]
    own = PGD(steps=number, step_size=STEP, momentum=attack.momentum, random_target=attack.random_target)
    points = own.perturb(model, images, labels, THREAT, seed=seed_at(7, "pgd over steps", 0))
    return model(points.double()).argmax(1) == labels


@pytest.mark.parametrize(
    "attack",
    [PGD(step_size=STEP), PGD(step_size=STEP, momentum=0.7), PGD(step_size=STEP, random_target=True)],
    ids=["plain", "momentum", "random target"],
)
def test_one_ascent_says_what_an_ascent_for_every_number_of_steps_does(
    model: nn.Module, data: ImageSet, attack: PGD
) -> None:
    curve = accuracy_over_steps(model, data, THREAT, NUMBERS, attack, seed=7)
    alone = torch.stack([stands_after(model, data, attack, number) for number in range(LONGEST + 1)])
    so_far = alone.int().cummin(0).values.bool()
    for point in curve.points():
        assert point.last == int(alone[point.steps].sum()) / 60
        assert point.accuracy == int(so_far[point.steps].sum()) / 60
        assert point.low <= point.accuracy <= point.high and point.count == 60
        assert (point.step_size, point.epsilon, point.attack) == (STEP, 0.05, "pgd")
    # The case tells the two numbers apart, and accuracies fall.
    assert any(point.last is not None and point.last > point.accuracy for point in curve.points())
    assert [point.accuracy for point in curve.points()] == sorted((p.accuracy for p in curve.points()), reverse=True)
    outcome = curve.outcome()
    assert outcome.label == "pgd over steps" and not outcome.correct[:2].any()
    assert torch.equal(outcome.correct[2:], so_far[-1])
    assert torch.equal(outcome.correct, outcome.predictions == data.labels)


def test_images_that_leave_once_fooled_change_no_accuracy(model: nn.Module, data: ImageSet) -> None:
    numbers = (1, 5, 120)  # the looks at 50 and 100 let images go between the numbers
    whole = accuracy_over_steps(model, data, THREAT, numbers, PGD(step_size=STEP), seed=7)
    calls: list[int] = []
    handle = model.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    left = accuracy_over_steps(model, data, THREAT, numbers, PGD(step_size=STEP, early_stop=True), seed=7)
    handle.remove()
    assert torch.equal(left.survived, whole.survived) and torch.equal(left.predictions, whole.predictions)
    assert left.standing is None and all(point.last is None for point in left.points())
    assert sum(calls) < 0.8 * 58 * 120


def test_a_pass_is_spent_on_every_step_and_on_every_number(model: nn.Module, data: ImageSet) -> None:
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    accuracy_over_steps(model, data, THREAT, (2, 30), PGD(step_size=0.001), seed=7)
    handle.remove()
    # The clean images, 30 steps, the points at both numbers, and those that fooled on the way at one or both.
    assert 1 + 30 + 2 <= len(calls) <= 1 + 30 + 4


def test_a_killed_curve_goes_on_to_the_same_numbers(model: nn.Module, data: ImageSet, tmp_path: Path) -> None:
    class Killed(PGD):
        begun = 0

        def begin(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            Killed.begun += 1
            if Killed.begun == 3:
                raise KeyboardInterrupt
            return super().begin(*args, **kwargs)  # type: ignore[arg-type]

    def curve(folder: Path | None) -> StepCurve:
        stage = Stage("steps", 0, World(), Progress(quiet=True), folder)
        return accuracy_over_steps(model, data, THREAT, (1, 3), Killed(step_size=STEP), batch_size=15, stage=stage)

    with pytest.raises(KeyboardInterrupt):
        curve(tmp_path)
    again, begun = curve(tmp_path), Killed.begun
    assert begun == 5  # four chunks, one of them begun twice
    assert again.points() == curve(None).points()


def test_a_step_is_the_published_share_of_epsilon_and_results_show_themselves(model: nn.Module, data: ImageSet) -> None:
    curve = accuracy_over_steps(model, data, ThreatModel(epsilon=16 / 255), [3, 1, 3])
    assert curve.step_size == pytest.approx(1 / 255) and curve.steps == (1, 3)
    assert "steps of 1/255" in str(curve)
    assert list(curve.to_frame()["steps"]) == [1, 3]
    (axes,) = curve.plot().axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3"]


@pytest.mark.parametrize(
    ("steps", "attack", "message"),
    [
        ([], PGD(), "at least one number of steps"),
        ([10, 0], PGD(), "steps must be a whole number of at least 1, but got 0"),
        ([10], APGD(), "is of PGD's, but got apgd"),
        ([10], PGD(restarts=2), "restarts=2"),
        ([10], PGD(schedule="cosine"), "schedule='cosine'"),
    ],
)
def test_what_is_not_one_ascent_is_refused(
    model: nn.Module, data: ImageSet, steps: list[int], attack: Attack, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        accuracy_over_steps(model, data, THREAT, steps, attack)
