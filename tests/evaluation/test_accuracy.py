"""Clean and attacked accuracy, resuming, the curve, the masking checks and the examples."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.square import Square
from robust_nas.datasets import ImageSet
from robust_nas.distributed import World
from robust_nas.errors import InputError
from robust_nas.evaluation import (
    Evaluation,
    attack_labels,
    evaluate,
    masking_checks,
    robustness_curve,
    strongest_examples,
    wilson_interval,
)
from robust_nas.progress import Progress
from robust_nas.run_dir import Stage
from robust_nas.threat import ThreatModel

THREAT = ThreatModel(epsilon=0.1)


class Threshold(nn.Module):
    """Class 1 where the one pixel is above 1/2: an image survives epsilon if it is farther than that from 1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(10.0))
        self.norm = nn.BatchNorm2d(1)  # at its initial statistics, next to the identity

    def forward(self, images: Tensor) -> Tensor:
        f = self.slope * (self.norm(images).flatten(1)[:, 0] - 0.5)
        return torch.stack([-f, f], dim=1)


def grey(values: list[int], labels: list[int] | None = None) -> ImageSet:
    """Return one-pixel images of 1000 shades, labelled by the threshold unless told otherwise."""
    pixels = torch.tensor(values, dtype=torch.int32).view(-1, 1, 1, 1)
    own = [int(value > 500) for value in values]
    return ImageSet(pixels, torch.tensor(own if labels is None else labels), 1000)


SHADES = [100, 380, 420, 470, 540, 570, 590, 650, 900, 950]
distance = torch.tensor([abs(shade - 500) / 1000 for shade in SHADES])


@pytest.fixture
def model() -> nn.Module:
    return Threshold()


def stage(folder: Path | None, seed: int = 0) -> Stage:
    return Stage("attack-model-0", seed, World(), Progress(quiet=True), folder)


def test_every_image_survives_exactly_if_the_boundary_is_outside_its_ball(model: nn.Module) -> None:
    wrong = [7, 8]
    labels = [int(shade > 500) ^ (index in wrong) for index, shade in enumerate(SHADES)]
    result = evaluate(model, grey(SHADES, labels), THREAT, ["fgsm", PGD(steps=10), APGD(steps=10)], batch_size=3)
    clean = torch.tensor([index not in wrong for index in range(10)])
    survives = clean & (distance > THREAT.epsilon)
    assert torch.equal(result.clean, clean) and result.clean_accuracy == 0.8
    assert [attack.label for attack in result.attacks] == ["fgsm", "pgd", "apgd"]
    assert all(torch.equal(attack.correct, survives) for attack in result.attacks)
    assert torch.equal(result.worst_case, survives) and result.robust_accuracy == float(survives.sum()) / 10


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """An attack that moves given shades across the boundary, and notes what it was called with."""

    breaks: tuple[int, ...] = ()
    fail_at: int = field(default=-1, compare=False, repr=False)
    jump: float = 0.0
    calls: list[tuple[list[int], int]] = field(default_factory=list, compare=False, repr=False)

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        shades = [round(1000 * float(image)) for image in images.flatten()]
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append((shades, seed))
        towards = 0.5 - 0.01 * (2.0 * labels - 1).view(-1, 1, 1, 1)
        hit = torch.tensor([shade in self.breaks for shade in shades]).view(-1, 1, 1, 1)
        return threat.around(images).project(torch.where(hit, towards, images)) + self.jump


def test_the_worst_case_is_taken_image_by_image(model: nn.Module) -> None:
    attacks = [Scripted(breaks=(420, 470)), Scripted(breaks=(470, 540))]
    result = evaluate(model, grey(SHADES), THREAT, attacks)
    assert [int(attack.correct.sum()) for attack in result.attacks] == [8, 8]
    assert result.robust_accuracy == 0.7 and result.summary()["worst_case"]["accuracy"] == 0.7


def test_only_correctly_classified_images_are_attacked_in_full_chunks(model: nn.Module) -> None:
    attack = Scripted()
    labels = [int(shade > 500) ^ (index in (0, 3)) for index, shade in enumerate(SHADES)]
    evaluate(model, grey(SHADES, labels), THREAT, [attack], batch_size=3)
    assert [shades for shades, _ in attack.calls] == [[380, 420, 540], [570, 590, 650], [900, 950]]
    assert len({seed for _, seed in attack.calls}) == 3


def test_an_evaluation_depends_on_its_seed_only() -> None:
    class Ragged(nn.Module):
        """Which random start is near a pocket decides whether PGD with one step finds it."""

        def forward(self, images: Tensor) -> Tensor:
            f = (images.flatten(1) * 60).sin().sum(1)
            return torch.stack([f, -f], dim=1)

    generator = torch.Generator().manual_seed(0)
    data = ImageSet(torch.randint(0, 256, (200, 1, 3, 3), generator=generator), torch.zeros(200, dtype=torch.int64))
    outcomes = [
        evaluate(Ragged(), data, THREAT, [PGD(steps=1)], batch_size=16, seed=seed).worst_case for seed in (1, 1, 2)
    ]
    assert torch.equal(outcomes[0], outcomes[1]) and not torch.equal(outcomes[0], outcomes[2])


def test_a_killed_evaluation_continues_to_the_same_numbers_without_repeating_a_chunk(
    model: nn.Module, tmp_path: Path
) -> None:
    data = grey(SHADES)
    # Killed in the second chunk of the second attack; a new process has only the folder.
    undisturbed, killed, second = (Scripted(breaks=(420, 590), fail_at=fail_at) for fail_at in (-1, 1, -1))

    def run(attack: Scripted, folder: Path | None) -> Evaluation:
        attacks = [PGD(steps=3), attack, Square(queries=5)]
        return evaluate(model, data, THREAT, attacks, batch_size=4, seed=5, stage=stage(folder))

    expected = run(undisturbed, None)
    with pytest.raises(KeyboardInterrupt):
        run(killed, tmp_path)
    again = run(second, tmp_path)
    assert torch.equal(again.clean, expected.clean)
    for one, other in zip(again.attacks, expected.attacks, strict=True):
        assert torch.equal(one.correct, other.correct)
    assert (len(killed.calls), len(second.calls)) == (1, 2)
    assert killed.calls + second.calls == undisturbed.calls


def test_an_interrupted_evaluation_is_not_continued_under_other_settings(model: nn.Module, tmp_path: Path) -> None:
    data = grey(SHADES)
    evaluate(model, data, THREAT, [PGD(steps=3)], batch_size=4, stage=stage(tmp_path))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.slope += 1
    for changed in (
        lambda: evaluate(other, data, THREAT, [PGD(steps=3)], batch_size=4, stage=stage(tmp_path)),
        lambda: evaluate(model, data, THREAT, [PGD(steps=4)], batch_size=4, stage=stage(tmp_path)),
        lambda: evaluate(model, data, THREAT, [PGD(steps=3)], batch_size=5, stage=stage(tmp_path)),
        lambda: evaluate(model, data, THREAT, [PGD(steps=3)], batch_size=4, stage=stage(tmp_path, seed=1)),
        lambda: evaluate(model, data, THREAT.with_epsilon(0.2), [PGD(steps=3)], batch_size=4, stage=stage(tmp_path)),
        lambda: evaluate(model, data[:9], THREAT, [PGD(steps=3)], batch_size=4, stage=stage(tmp_path)),
    ):
        with pytest.raises(InputError, match="interrupted under other settings"):
            changed()


def test_summary_and_rows_say_the_same(model: nn.Module) -> None:
    result = evaluate(model, grey(SHADES), THREAT, ["fgsm", PGD(steps=2), PGD(steps=3)])
    rows, summary = result.rows(), result.summary()
    assert len(rows) == 4 * len(SHADES)
    assert Counter(row["image"] for row in rows) == dict.fromkeys(range(10), 4)
    by_attack: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_attack.setdefault(row["attack"], []).append(row)
    assert list(by_attack) == ["clean", "fgsm", "pgd[steps=2]", "pgd[steps=3]"]
    for entry in [{"name": "clean", **summary["clean"]}, *summary["attacks"]]:
        own = by_attack[entry["name"]]
        successes = sum(row["correct"] for row in own)
        assert entry["count"] == 10 and entry["accuracy"] == successes / 10
        assert (entry["low"], entry["high"]) == wilson_interval(successes, 10)
        assert {row["epsilon"] for row in own} == {entry.get("epsilon", 0.0)}
        assert [row["label"] for row in own] == grey(SHADES).labels.tolist()
    survivors = set(range(10)) - {row["image"] for row in rows if not row["correct"]}
    assert summary["worst_case"]["accuracy"] == len(survivors) / 10
    assert {"norm", "epsilon", "low", "high", "count", "seconds"} <= set(summary["worst_case"])


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (10, 10), (7, 10), (1, 360), (250, 360), (9999, 10000)])
def test_intervals_are_those_of_scipy(successes: int, count: int) -> None:
    expected = binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="count >= 1"):
        wilson_interval(0, 0)


def test_repeated_attacks_are_told_apart_by_what_differs() -> None:
    assert attack_labels([PGD(), FGSM(), PGD(steps=100)]) == ["pgd[steps=20]", "fgsm", "pgd[steps=100]"]
    assert attack_labels([APGD(), APGD(loss="dlr", restarts=2)]) == [
        "apgd[restarts=1,loss=cross_entropy]",
        "apgd[restarts=2,loss=dlr]",
    ]
    with pytest.raises(InputError, match="pgd is listed twice with the same settings"):
        attack_labels([PGD(), PGD(steps=20)])


def test_the_model_is_left_as_it_was(model: nn.Module) -> None:
    model.train()
    model.norm.eval()
    model.slope.grad = torch.tensor(3.0)
    model.norm.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    data = grey(SHADES)
    evaluate(model, data, THREAT, ["pgd", PGD(batch_norm="batch", steps=2)])
    robustness_curve(model, data, THREAT, [0.1], "fgsm")
    masking_checks(model, data, THREAT, queries=5)
    strongest_examples(model, data, THREAT, "fgsm")
    assert model.training and not model.norm.training and model.slope.grad == 3.0
    assert not model.norm.weight.requires_grad and model.slope.requires_grad
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_an_attack_that_leaves_the_threat_model_is_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"outside the linf ball of radius 0\.1"):
        evaluate(model, grey(SHADES), THREAT, [Scripted(jump=0.11)])


def test_labels_without_a_logit_nan_logits_and_no_images_are_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match="has 2 classes, but the images have the label 5"):
        evaluate(model, grey([100], [5]), THREAT, ["fgsm"])
    with pytest.raises(InputError, match="at least one image"):
        evaluate(model, grey([]), THREAT, ["fgsm"])
    with torch.no_grad():
        model.slope.fill_(torch.nan)
    with pytest.raises(InputError, match="NaN"):
        evaluate(model, grey([100]), THREAT, ["fgsm"])


def test_a_model_that_is_always_wrong_has_accuracy_zero(model: nn.Module) -> None:
    data = grey([100, 900], [1, 0])
    result = evaluate(model, data, THREAT, ["pgd", "square"])
    assert result.clean_accuracy == result.robust_accuracy == 0
    assert result.summary()["attacks"][0]["accuracy"] == 0
    checks = masking_checks(model, data, THREAT)
    assert [check.passed for check in checks] == [False] and "0 of 2" in checks[0].detail
    examples = strongest_examples(model, data, THREAT, "pgd")
    assert examples["originals"].shape == (0, 1, 1, 1) and examples["labels"].shape == (0,)


def test_the_curve_falls_where_the_boundary_enters_the_balls(model: nn.Module) -> None:
    epsilons = [0.3, 0.0, 0.05, 0.1]
    curve = robustness_curve(model, grey(SHADES), THREAT, epsilons, PGD(steps=5), batch_size=4)
    assert [point["epsilon"] for point in curve] == [0.0, 0.05, 0.1, 0.3]
    assert [point["accuracy"] for point in curve] == [float((distance > e).sum()) / 10 for e in (0, 0.05, 0.1, 0.3)]


def test_an_image_that_fell_at_a_smaller_radius_is_not_attacked_again(model: nn.Module) -> None:
    attack = Scripted(breaks=(470, 540))
    curve = robustness_curve(model, grey(SHADES), THREAT, [0.05, 0.1], attack)
    assert [point["accuracy"] for point in curve] == [0.8, 0.8]
    assert [470 in shades for shades, _ in attack.calls] == [True, False]


def test_examples_are_the_surest_of_every_class_first(model: nn.Module) -> None:
    data = grey([480, 495, 720, 510, 900])
    found = strongest_examples(model, data, THREAT, FGSM(), count=3)
    # The first, second and fourth fall; the nearer to the boundary an image is, the farther beyond it its example ends.
    assert (found["originals"].flatten() * 1000).round().tolist() == [495, 510, 480]
    assert found["labels"].tolist() == found["clean_predictions"].tolist() == [0, 1, 0]
    assert found["predictions"].tolist() == [1, 0, 1]
    assert found["adversarial"].flatten().tolist() == pytest.approx([0.595, 0.41, 0.58], abs=1e-6)
    assert (found["attack"], found["epsilon"]) == ("fgsm", 0.1)


# --- the checks that expose gradient masking ---


@pytest.fixture(scope="module")
def sound() -> tuple[nn.Module, ImageSet]:
    """Return a smooth network and images that it classifies correctly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 3))
        images = torch.randint(0, 256, (60, 1, 6, 6))
        labels = model(images / 255).argmax(1)
    return model, ImageSet(images, labels)


class Scaled(nn.Module):
    """Logits times 1e6: the softmax is exactly 0 or 1, and the cross-entropy's gradient vanishes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return 1e6 * self.inner(images)


class Quantised(Scaled):
    """Pixels rounded to 32 levels: the gradient is zero everywhere, and steps still change the prediction."""

    def forward(self, images: Tensor) -> Tensor:
        return self.inner((images * 31).round() / 31)


class Saturated(Scaled):
    """Input squashed so that its gradient, not its value, points the wrong way."""

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(2 * images.detach() - images)


def failed(model: nn.Module, data: ImageSet) -> set[str]:
    checks = masking_checks(model, data, ThreatModel(epsilon=0.05), queries=200)
    assert len(checks) == 6 and all(check.detail for check in checks)
    return {check.check for check in checks if not check.passed}


def test_on_an_l1_ball_all_checks_but_the_black_box_are_made(sound: tuple[nn.Module, ImageSet]) -> None:
    checks = masking_checks(*sound, ThreatModel(norm="l1", epsilon=0.05))
    assert len(checks) == 5 and not any("black box" in check.check for check in checks)


def test_a_sound_model_passes_every_masking_check(sound: tuple[nn.Module, ImageSet]) -> None:
    assert failed(*sound) == set()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (Scaled, "The input gradients are not zero."),
        (Quantised, "The input gradients are not zero."),
        (Quantised, "The black box never beats the white box."),
        (Saturated, "An unbounded attack leaves nothing."),
        (Saturated, "The black box never beats the white box."),
        (Saturated, "Random noise is not stronger than gradients."),
    ],
)
def test_a_masked_model_fails_the_check_that_its_mask_calls_for(
    sound: tuple[nn.Module, ImageSet], mask: type[Scaled], expected: str
) -> None:
    model, data = sound
    assert expected in failed(mask(model), data)


def test_the_masking_checks_use_no_more_images_than_told(model: nn.Module) -> None:
    checks = masking_checks(model, grey(list(range(0, 480, 2))), THREAT, num_images=7, queries=5)
    assert all("of 7 correctly classified" in check.detail for check in checks)
