"""The checks that expose gradient masking: sound models pass them all, and every mask is seen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas import datasets
from robust_nas.attacks import Attack
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.autoattack import AutoAttack
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.square import Square
from robust_nas.core.errors import InputError
from robust_nas.datasets import ImageSet
from robust_nas.evaluation import EvaluationPlan, MaskingCheck, evaluate, masking_checks
from robust_nas.evaluation.masking import _stronger_beyond_chance, linearity_error
from robust_nas.models.frozen import frozen
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import ThreatModel
from robust_nas.training import Training, fit
from robust_nas.training.pgd_at import PGDAT

# A whole number of the 255 steps between black and white: the images' own pixels, and FGSM's, are on that grid.
THREAT = ThreatModel(epsilon=13 / 255)

REPEATS = "The same images always get the same logits."
UNBOUNDED = "An unbounded attack leaves nothing."
RADII = "A larger ball leaves no more images."
STEPS = "More steps never help the defender."
ONE_STEP = "One step is not stronger than many."
BLACK_BOX = "The black box never beats the white box."
NOISE = "Random noise is not stronger than gradients."
GRADIENTS = "The input gradients are not zero."
LINEARITY = "The loss is locally linear."
ALL = [REPEATS, UNBOUNDED, RADII, STEPS, ONE_STEP, BLACK_BOX, NOISE, GRADIENTS, LINEARITY]


@pytest.fixture(scope="module")
def sound() -> tuple[nn.Module, ImageSet]:
    """Return a smooth network and images that it classifies correctly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 3))
        images = torch.randint(0, 256, (120, 1, 6, 6))
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


class Rippled(Scaled):
    """Pixels changed by at most 0.006, in waves that turn the gradient of all but the images' own values around."""

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images + 10 / (2 * math.pi * 255) * (2 * math.pi * 255 * images).sin())


class Detached(Scaled):
    """Nothing ties the logits to the images."""

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images.detach())


class OneHot(Scaled):
    """Only the decision is given, without a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        return F.one_hot(self.inner(images).argmax(1), 3).float()


class Dropping(Scaled):
    """Pixels dropped at test time as well."""

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(F.dropout(images, 0.1, training=True))


class Noisy(Scaled):
    """Noise too small to be seen in the predictions."""

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images + 1e-3 * torch.randn_like(images))


class Resized(Scaled):
    """Half of the times, all images are enlarged and made small again."""

    def forward(self, images: Tensor) -> Tensor:
        larger = F.interpolate(images, size=(9, 9), mode="bilinear")
        return self.inner(F.interpolate(larger, size=(6, 6), mode="bilinear") if torch.rand(()) < 0.5 else images)


def checks_by_name(model: nn.Module, data: ImageSet, threat: ThreatModel = THREAT) -> dict[str, MaskingCheck]:
    checks = masking_checks(model, data, threat, queries=100)
    assert all(check.detail for check in checks)
    return {check.check: check for check in checks}


def failed(checks: dict[str, MaskingCheck]) -> set[str]:
    return {name for name, check in checks.items() if not check.passed}


@pytest.mark.parametrize(
    "threat", [THREAT, ThreatModel(norm="l2", epsilon=0.3), ThreatModel(norm="l1", epsilon=1.0)], ids=lambda t: t.norm
)
def test_a_sound_model_passes_every_check(sound: tuple[nn.Module, ImageSet], threat: ThreatModel) -> None:
    checks = checks_by_name(*sound, threat)
    assert list(checks) == list(ALL)
    assert failed(checks) == set()
    assert [json.loads(json.dumps(vars(check)))["check"] for check in checks.values()] == list(checks)


def test_an_adversarially_trained_network_passes_every_check() -> None:
    data, threat = datasets.load("digits"), ThreatModel(epsilon=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(128, 10)
        )
        attack = PGD(steps=2, step_size=0.08)
        training = Training(
            method=PGDAT(attack=attack), selection_attack=attack, epochs=4, batch_size=64, learning_rate=0.05
        )
        model = fit(model, data, threat, training, Stage("train", 0, World(), Progress(quiet=True))).model
    # Its dropout layer is silent at test time, also if it is handed over in training mode.
    checks = checks_by_name(model.train(), data.test[:64], threat)
    assert list(checks) == ALL and failed(checks) == set()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (Scaled, {GRADIENTS, UNBOUNDED}),
        (Quantised, {GRADIENTS, UNBOUNDED, BLACK_BOX, LINEARITY}),
        (Saturated, {UNBOUNDED, BLACK_BOX, NOISE, LINEARITY}),
        (Rippled, {STEPS, ONE_STEP, NOISE, LINEARITY}),
        (Detached, {GRADIENTS, UNBOUNDED, BLACK_BOX, LINEARITY}),
        (OneHot, {GRADIENTS, UNBOUNDED, LINEARITY}),
        (Dropping, {REPEATS}),
        (Noisy, {REPEATS}),
        (Resized, {REPEATS}),
    ],
)
def test_a_masked_model_fails_the_checks_that_its_mask_calls_for(
    sound: tuple[nn.Module, ImageSet], mask: type[Scaled], expected: set[str]
) -> None:
    model, data = sound
    checks = checks_by_name(mask(model), data)
    assert list(checks) == ALL and expected <= failed(checks)


class Pocket(nn.Module):
    """Class 1 if the one pixel is in (0.6, 0.7), with a gradient that always leads up, also out of there."""

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)[:, 0]
        f = torch.where((x > 0.6) & (x < 0.7), 1.0, -1.0) + (x - x.detach())
        return torch.stack([-f, f], dim=1)


def test_attacks_that_lead_past_what_they_look_for_are_seen_at_other_radii() -> None:
    data = ImageSet(torch.full((20, 1, 1, 1), 500, dtype=torch.int32), torch.zeros(20, dtype=torch.int64), 1000)
    check = checks_by_name(Pocket(), data, ThreatModel(epsilon=0.15))[RADII]
    assert not check.passed and "leaves 20 at 0.0375, 20 at 0.075, 0 at 0.15, 20 at 0.3, 20 at 0.6" in check.detail


class Slope(nn.Module):
    """Two logits whose margin is `slope` times the distance of the one pixel from 1/2."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.forwards = self.backwards = 0

    def forward(self, images: Tensor) -> Tensor:
        f = self.slope / 2 * (images.flatten(1)[:, 0] - 0.5)
        logits = torch.stack([-f, f], dim=1)
        self.forwards += len(images)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def test_the_margins_at_which_single_precision_loses_the_cross_entropy_are_those_of_the_exponential() -> None:
    # Margins of 10, 20, 50, 200 and 200: exp(-20) is lost beside 1, and exp(-200) is no number above zero.
    shades = torch.tensor([510, 520, 550, 700, 300], dtype=torch.int32)
    data = ImageSet(shades.view(-1, 1, 1, 1), (shades > 500).long(), 1000)
    check = checks_by_name(Slope(1000.0), data)[GRADIENTS]
    assert not check.passed
    assert "vanishes at 2 of 5" in check.detail and "attack, at 2 " in check.detail
    assert "rounds to zero at 4;" in check.detail and "40.0 % of the gradients' entries" in check.detail


@pytest.mark.parametrize(
    ("threat", "both", "forward_only"),
    [(ThreatModel(epsilon=0.3), 605, 41 + 30), (ThreatModel(norm="l1", epsilon=0.2), 607, 41 + 30)],
)
def test_the_checks_cost_what_their_docstring_says(threat: ThreatModel, both: int, forward_only: int) -> None:
    # The boundary is outside the ball, so that no image leaves before all attacks were tried.
    data = ImageSet(torch.full((4, 1, 1, 1), 1000, dtype=torch.int32), torch.ones(4, dtype=torch.int64), 1001)
    model = Slope(10.0)
    masking_checks(model, data, threat, queries=30)
    assert model.backwards == 4 * both + 1
    # In l1 some proposals are kept, and those that were looked at together with them are in vain.
    further = (model.forwards - model.backwards) / 4
    assert forward_only <= further <= forward_only * (1.2 if threat.norm == "l1" else 1)


def test_attacks_that_were_run_before_are_not_run_again_and_what_they_broke_is_left_alone() -> None:
    data = ImageSet(torch.full((4, 1, 1, 1), 1000, dtype=torch.int32), torch.ones(4, dtype=torch.int64), 1001)
    threat, all_stand = ThreatModel(epsilon=0.3), torch.ones(4, dtype=torch.bool)

    def passes(work: Callable[[Slope], object]) -> int:
        model = Slope(10.0)
        work(model)
        return model.backwards

    def checked(*known: tuple[Attack, Tensor]) -> int:
        return passes(lambda model: masking_checks(model, data, threat, queries=5, known=known))

    alone = passes(lambda model: evaluate(model, data, threat, [APGD()]))
    assert checked((APGD(), all_stand)) == checked() - alone
    # Restarts, the margin's and APGD: 120, 120 and its own passes for each image that stands so far.
    one_fell = all_stand.clone()
    one_fell[2] = False
    assert checked((PGD(steps=7), one_fell)) == checked() - (120 + 120 + alone // 4)
    # A black box that broke an image proves nothing about gradients. Where it failed, it is not tried again, and
    # nothing depends on whether gradients break these images.
    several = 120 + 120 + alone // 4
    assert checked((Square(), ~all_stand)) == checked() == checked((Square(queries=4), all_stand))
    assert checked((Square(), one_fell)) == checked() - 3 * several == checked((AutoAttack(), one_fell))


@pytest.mark.parametrize("only_other", [0, 1, 5, 60])
@pytest.mark.parametrize("only_one", [0, 1, 6, 7, 20, 100])
def test_chance_is_what_the_sign_test_says(only_one: int, only_other: int) -> None:
    one, other = torch.ones(400, dtype=torch.bool), torch.ones(400, dtype=torch.bool)
    one[:only_one] = False
    other[200 : 200 + only_other] = False
    expected = False
    if only_one + only_other:
        expected = binomtest(only_one, only_one + only_other, alternative="greater").pvalue < 0.01
    assert _stronger_beyond_chance(one, other) == expected


@pytest.mark.parametrize("threat", [THREAT, ThreatModel(norm="l2", epsilon=0.3), ThreatModel(norm="l1", epsilon=1.0)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_linear_model_has_no_linearity_error_at_any_scale_of_its_logits(threat: ThreatModel, scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2).double())
    images, labels = torch.rand(20, 1, 6, 6, dtype=torch.float64), torch.arange(20) % 2
    with torch.no_grad():
        model[1].weight *= scale
    with frozen(model):
        assert linearity_error(model, images, labels, threat).max() < 1e-7


@pytest.mark.parametrize("threat", [ThreatModel(norm=norm, epsilon=0.1) for norm in ("linf", "l2", "l1")])  # type: ignore[arg-type]
def test_the_linearity_error_of_a_parabola_is_its_curvature(threat: ThreatModel) -> None:
    class Parabola(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            square = 1000 * images.flatten(1) ** 2
            return torch.cat([torch.zeros_like(square), square], dim=1)

    x, d = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64), 0.1
    # The margin rises by 2 x d + d^2, and its gradient promises 2 x d.
    found = linearity_error(Parabola(), x.view(-1, 1, 1, 1), torch.zeros(3, dtype=torch.int64), threat)
    assert found.tolist() == pytest.approx((d / (4 * x + d)).tolist(), abs=1e-5)


def test_the_checks_use_no_more_images_than_told() -> None:
    shades = torch.arange(0, 480, 2, dtype=torch.int32)
    data = ImageSet(shades.view(-1, 1, 1, 1), torch.zeros(len(shades), dtype=torch.int64), 1000)
    checks = masking_checks(Slope(10.0), data, THREAT, num_images=7, queries=5)
    assert len(checks) == len(ALL) and all("of 7 correctly classified" in check.detail for check in checks)


class Claiming(torch.autograd.Function):
    """Logits that claim to have a gradient, as those of quantised layers do, and have none."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, scale: Tensor) -> Tensor:
        return images.flatten(1)[:, :2] * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, gradient.sum()


def test_a_model_whose_logits_claim_a_gradient_and_have_none_is_attacked_as_the_message_says() -> None:
    class Model(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = Claiming.apply(images, torch.ones((), requires_grad=True))  # type: ignore[no-untyped-call]
            return logits

    images = torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    data = ImageSet(images, images.flatten(1)[:, :2].argmax(1))
    plan = EvaluationPlan(attacks=(Square(queries=5),), strongest=())
    alone = Stage("test", 0, World(), Progress(quiet=True))
    with pytest.raises(InputError, match=r"nothing that has a gradient.*evaluation.curve_attack=square"):
        plan.assess(Model(), data, [THREAT], alone)
    found = replace(plan, curve_attack=Square(queries=5)).assess(Model(), data, [THREAT], alone)
    failed = {check.check for check in found.masking if not check.passed}
    assert GRADIENTS in failed
