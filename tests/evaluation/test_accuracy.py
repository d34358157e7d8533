"""Clean and attacked accuracy, several threat models, resuming, saving, the curve and the examples."""

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

from robust_nas.attacks import Attack
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.square import Square
from robust_nas.attacks.transfer import Transfer
from robust_nas.core.errors import InputError
from robust_nas.core.files import read_json
from robust_nas.datasets import ImageSet
from robust_nas.evaluation import (
    Evaluation,
    attack_labels,
    digest_of,
    evaluate,
    masking_checks,
    robustness_curve,
    strongest_examples,
    wilson_interval,
)
from robust_nas.intake import load_models
from robust_nas.runtime.distributed import World
from robust_nas.runtime.per_sample import read_outcomes
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
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
    return ImageSet(pixels, torch.tensor(own if labels is None else labels, dtype=torch.int64), 1000)


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
class Scripted(Attack):
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
    assert result.robust_accuracy == 0.7 and result.summary().worst_case.accuracy == 0.7


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
    for name, epsilon, entry in [
        ("clean", 0.0, summary.clean),
        *((entry.name, entry.epsilon, entry) for entry in summary.attacks),
    ]:
        own = by_attack[name]
        successes = sum(row["correct"] for row in own)
        assert entry.count == 10 and entry.accuracy == successes / 10
        assert (entry.low, entry.high) == wilson_interval(successes, 10)
        assert {row["epsilon"] for row in own} == {epsilon}
        assert [row["label"] for row in own] == grey(SHADES).labels.tolist()
    survivors = set(range(10)) - {row["image"] for row in rows if not row["correct"]}
    assert summary.worst_case.accuracy == len(survivors) / 10
    assert (summary.worst_case.norm, summary.worst_case.epsilon) == (THREAT.norm, THREAT.epsilon)


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
    with pytest.raises(InputError, match="The labels are 5 to 5, but the model has 2 classes"):
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
    assert result.summary().attacks[0].accuracy == 0
    checks = masking_checks(model, data, THREAT)
    assert [check.passed for check in checks] == [False] and "0 of 2" in checks[0].detail
    examples = strongest_examples(model, data, THREAT, "pgd")
    assert examples["originals"].shape == (0, 1, 1, 1) and examples["labels"].shape == (0,)


def test_the_curve_falls_where_the_boundary_enters_the_balls(model: nn.Module) -> None:
    epsilons = [0.3, 0.0, 0.05, 0.1]
    curve = robustness_curve(model, grey(SHADES), THREAT, epsilons, PGD(steps=5), batch_size=4).points()
    assert [point.epsilon for point in curve] == [0.0, 0.05, 0.1, 0.3]
    assert [point.accuracy for point in curve] == [float((distance > e).sum()) / 10 for e in (0, 0.05, 0.1, 0.3)]


def test_an_image_that_fell_at_a_smaller_radius_is_not_attacked_again(model: nn.Module) -> None:
    attack = Scripted(breaks=(470, 540))
    curve = robustness_curve(model, grey(SHADES), THREAT, [0.05, 0.1], attack).points()
    assert [point.accuracy for point in curve] == [0.8, 0.8]
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


# --- several threat models, predictions, saving ---


def test_several_threat_models_give_an_average_and_a_union(model: nn.Module) -> None:
    threats = [ThreatModel(epsilon=0.04), ThreatModel(norm="l2", epsilon=0.085), ThreatModel(norm="l1", epsilon=0.125)]
    labels = [int(shade > 500) ^ (index == 9) for index, shade in enumerate(SHADES)]
    result = evaluate(model, grey(SHADES, labels), threats, ["fgsm", PGD(steps=5)])
    # With one pixel all norms are its change.
    clean = torch.tensor([index != 9 for index in range(10)])
    expected = [clean & (distance > threat.epsilon) for threat in threats]
    assert all(torch.equal(result.under(threat), own) for threat, own in zip(threats, expected, strict=True))
    assert torch.equal(result.worst_case, expected[2])
    assert result.average_accuracy == pytest.approx(sum(int(own.sum()) for own in expected) / 30)
    summary = result.summary()
    assert [(entry.norm, entry.epsilon) for entry in summary.threats] == [
        (threat.norm, threat.epsilon) for threat in threats
    ]
    assert [entry.accuracy for entry in summary.threats] == [int(own.sum()) / 10 for own in expected]
    assert len(summary.attacks) == 6 and len(result.rows()) == 7 * 10
    assert summary.worst_case.name == "worst-case union" and summary.worst_case.norm is None
    assert summary.average == result.average_accuracy
    with pytest.raises(InputError, match="several different ones"):
        evaluate(model, grey(SHADES), [THREAT, THREAT], ["fgsm"])


def test_a_threat_model_gives_the_same_outcome_alone_and_among_others() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 3))
    pixels = torch.randint(0, 256, (60, 1, 3, 3))
    data = ImageSet(pixels, model(pixels / 255).argmax(1))
    attacks = [PGD(steps=1), Square(queries=10)]
    l2 = ThreatModel(norm="l2", epsilon=0.3)
    joint, alone = evaluate(model, data, [THREAT, l2], attacks), evaluate(model, data, l2, attacks)
    assert torch.equal(joint.under(l2), alone.worst_case)


def test_an_attack_that_is_not_for_a_norm_is_refused_before_anything_has_run(model: nn.Module) -> None:
    attack = Scripted()

    @dataclass(frozen=True)
    class LinfOnly(Scripted):
        norms = ("linf",)

    with pytest.raises(InputError, match="LinfOnly is for linf, but got an l1 threat model"):
        evaluate(model, grey(SHADES), [THREAT, ThreatModel(norm="l1", epsilon=0.1)], [attack, LinfOnly(breaks=(1,))])
    assert not attack.calls


def test_confusion_says_what_the_first_attack_that_broke_an_image_made_of_it() -> None:
    class Thirds(nn.Module):
        """Three classes on a line, of which the middle one is between the others."""

        def forward(self, images: Tensor) -> Tensor:
            x = images.flatten(1)[:, 0]
            return torch.stack([0.4 - x, torch.zeros_like(x), x - 0.6], dim=1)

    shades, labels = [100, 350, 450, 500, 580, 900, 620], [0, 0, 1, 1, 1, 2, 1]
    result = evaluate(Thirds(), grey(shades, labels), THREAT, [PGD(steps=5, loss="margin"), "fgsm"])
    # 350 crosses 0.4, 450 goes below it, 580 above 0.6; 620 is wrong as it is; the others stand.
    assert result.confusion() == [[1, 1, 0], [1, 1, 2], [0, 0, 1]]
    assert sum(map(sum, result.confusion())) == 7
    assert sum(result.confusion()[own][own] for own in range(3)) == result.worst_case.sum()
    assert [len(row) for row in result.confusion(5)] == [5] * 5


def test_predictions_agree_with_outcomes_row_by_row(model: nn.Module) -> None:
    labels = [int(shade > 500) ^ (index in (2, 5)) for index, shade in enumerate(SHADES)]
    rows = evaluate(model, grey(SHADES, labels), THREAT, ["fgsm", "pgd"]).rows()
    assert all(row["correct"] == (row["prediction"] == row["label"]) for row in rows)
    # What was wrong before is not attacked, and keeps its prediction.
    wrong = [row["prediction"] for row in rows if row["image"] in (2, 5)]
    assert wrong == [0, 1] * 3


def test_a_saved_evaluation_stands_beside_others_and_replaces_its_own_older_one(
    model: nn.Module, tmp_path: Path
) -> None:
    one, other = (evaluate(model, grey(SHADES), THREAT.with_epsilon(epsilon), ["fgsm"]) for epsilon in (0.05, 0.2))
    one.save(tmp_path, "a")
    one.save(tmp_path, "b")
    other.save(tmp_path, "a")
    saved = read_json(tmp_path / "evaluation.json")["models"]
    assert {name: saved[name]["worst_case"]["accuracy"] for name in saved} == {
        "a": other.robust_accuracy,
        "b": one.robust_accuracy,
    }
    outcomes = read_outcomes(tmp_path / "evaluation.parquet").to_pylist()
    assert [row["correct"] for row in outcomes if row["model"] == "a" and row["attack"] == "fgsm"] == (
        other.worst_case.tolist()
    )
    assert len(outcomes) == 2 * 2 * len(SHADES)


def test_only_attacks_that_lose_nothing_by_it_stop_early() -> None:
    assert PGD().stopping_early() == PGD(early_stop=True) and APGD().stopping_early() == APGD(early_stop=True)
    assert PGD(batch_norm="batch").stopping_early() == PGD(batch_norm="batch")
    # A surrogate that is fooled early is no model that is.
    transfer = Transfer(surrogates=("runs/a",), attack=PGD())
    assert transfer.stopping_early() == transfer and Square().stopping_early() == Square()


def test_an_interrupted_transfer_is_not_continued_with_other_surrogates(model: nn.Module, tmp_path: Path) -> None:
    weak, strong = Threshold(), Threshold()
    with torch.no_grad():
        strong.slope += 1

    def run(surrogate: nn.Module) -> Evaluation:
        return evaluate(model, grey(SHADES), THREAT, [Transfer(surrogates=(surrogate,))], stage=stage(tmp_path))

    run(weak)
    with pytest.raises(InputError, match="interrupted under other settings"):
        run(strong)


# --- attacks of one's own ---


@dataclass(frozen=True)
class Careless(Attack):
    """An attack that does what an attack must not."""

    what: str

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0) -> Any:
        if self.what == "moves its input":
            return images.copy_(1 - images)
        if self.what == "changes a weight":
            next(model.parameters()).data.mul_(0.5)
        return (images, labels) if self.what == "returns a pair" else images


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("moves its input", "returned images outside the linf ball"),
        ("changes a weight", "has changed the model"),
        ("returns a pair", r"returned a tuple; perturb\(\) must return images"),
    ],
)
def test_a_careless_attack_is_found_out(model: nn.Module, what: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(model, grey(SHADES), THREAT, [Careless(what)])


def test_an_attack_that_is_no_dataclass_is_used_as_it_is_and_cannot_be_told_from_another(model: nn.Module) -> None:
    class Plain(Attack):
        def perturb(self, model: nn.Module, images: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return images

    assert evaluate(model, grey(SHADES), THREAT, [Plain()]).robust_accuracy == 1
    with pytest.raises(InputError, match="Plain must be a frozen dataclass"):
        evaluate(model, grey(SHADES), THREAT, [Plain(), Plain()])


def test_nothing_two_of_one_name_and_words_are_no_attacks(model: nn.Module) -> None:
    for wrong in ([], "pgd"):
        with pytest.raises(InputError, match=r"one attack or several|list of attacks"):
            evaluate(model, grey(SHADES), THREAT, wrong)
    with pytest.raises(InputError, match="of different names"):
        evaluate(model, grey(SHADES), THREAT, ["fgsm", "pgd"], labels=["a", "a"])
    with pytest.raises(InputError, match=r"but got '0\.1'"):
        evaluate(model, grey(SHADES), "0.1", ["fgsm"])


def test_too_few_classes_for_an_attack_are_said_before_the_others_have_run(model: nn.Module) -> None:
    attack = Scripted()
    with pytest.raises(InputError, match="needs at least 4 classes"):
        evaluate(model, grey(SHADES), THREAT, [attack, PGD(loss="dlr", targets=2)])
    assert not attack.calls


def test_logits_that_are_nan_at_an_attacked_image_do_not_pass_for_a_wrong_class() -> None:
    class Edge(Threshold):
        """NaN above a half."""

        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return torch.where(images.flatten(1) > 0.5, torch.nan, logits)

    with pytest.raises(InputError, match="NaN at images that scripted found"):
        evaluate(Edge(), grey([420, 450]), THREAT, [Named(breaks=(420,))])


@dataclass(frozen=True, kw_only=True)
class Named(Scripted):
    name: str = "scripted"

    def perturb(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seed: int = 0
    ) -> Tensor:
        return threat.around(images).project(images + 0.1)


def test_a_model_without_a_gradient_is_named_and_can_be_attacked_without_one() -> None:
    class Hard(Threshold):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).detach()

    with pytest.raises(InputError, match="nothing that has a gradient"):
        evaluate(Hard(), grey(SHADES), THREAT, ["pgd"])
    found = evaluate(Hard(), grey(SHADES), THREAT, [Square(queries=50)])
    assert torch.equal(found.worst_case, distance > THREAT.epsilon)


# --- what an evaluation is recognised by ---


def test_weights_buffers_attributes_code_and_surrogates_make_another_evaluation(tmp_path: Path) -> None:
    data, model = grey(SHADES), Threshold()
    before = digest_of(model, data, PGD())
    assert digest_of(copy.deepcopy(model), data, PGD()) == before
    changed = [copy.deepcopy(model) for _ in range(3)]
    with torch.no_grad():
        changed[0].slope += 1
    changed[1].register_buffer("mean", torch.zeros(1), persistent=False)
    changed[2].temperature = 2.0
    others = [digest_of(other, data, PGD()) for other in changed]
    others += [digest_of(model, data[:9], PGD()), digest_of(model, data, PGD(steps=3))]
    # A surrogate by its file's name, before and after the file has changed.
    file = tmp_path / "weights.safetensors"
    for content in (b"one", b"two"):
        file.write_bytes(content)
        others.append(digest_of(model, data, Transfer(surrogates=(f"net.py:other@{file}",))))
    # Code of the user's, before and after it has changed.
    for number, code in enumerate(("images", "(31 * images).round() / 31")):
        source = tmp_path / f"v{number}" / "net.py"
        source.parent.mkdir()
        source.write_text(
            "import torch\n\n\nclass Net(torch.nn.Module):\n"
            f"    def forward(self, images):\n        return ({code}).flatten(1)\n"
        )
        (own,) = load_models(f"{source}:Net", device="cpu").values()
        others.append(digest_of(own, data))
    assert len({before, *others}) == 1 + len(others)


def test_another_seed_of_a_random_attack_gives_other_images() -> None:
    images, labels = grey(SHADES).images.expand(-1, 1, 4, 4), grey(SHADES).labels
    one, same, other = (PGD(steps=0).perturb(Threshold(), images, labels, THREAT, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
