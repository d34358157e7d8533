"""A plan: everything that is measured of one model."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.autoattack_reference import AutoAttackReference
from robust_nas.attacks.fab import FAB
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.szvr_g import SZVRG
from robust_nas.attacks.transfer import Transfer
from robust_nas.core.errors import InputError
from robust_nas.datasets import DataForm, ImageSet
from robust_nas.evaluation import EvaluationPlan
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.threat import Norm, ThreatModel

LINF, L2 = ThreatModel(epsilon=0.1), ThreatModel(norm="l2", epsilon=0.3)


@pytest.fixture(scope="module")
def bends() -> tuple[nn.Module, ImageSet]:
    """Return a network on which one step finds far less than many, and images that it classifies correctly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
        )
        with torch.no_grad():
            model[1].weight *= 4
        pixels = torch.randint(0, 256, (80, 1, 6, 6)).to(torch.uint8)
        return model, ImageSet(pixels, model(pixels / 255).argmax(1))


def stage() -> Stage:
    return Stage("attack-model-0", 0, World(), Progress(quiet=True))


def test_the_worst_case_counts_what_the_curve_and_the_nearest_examples_broke(bends: tuple[nn.Module, ImageSet]) -> None:
    model, data = bends
    plan = EvaluationPlan(
        attacks=(FGSM(),), strongest=(), curve_attack=PGD(steps=10), distortion=FAB(targets=3), masking_images=8
    )
    found = plan.assess(model, data, [LINF, L2], stage())
    for threat in (LINF, L2):
        own = [attack for attack in found.evaluation.attacks if attack.threat == threat]
        assert [attack.label for attack in own] == ["fgsm", "pgd over epsilon", "fab distances"]
        expected = torch.stack([attack.correct for attack in own]).all(0)
        assert torch.equal(found.evaluation.under(threat), expected)
        # The curve and the distances say the same as their outcomes, counted another way.
        (at_radius,) = [point for point in found.curve if point.norm == threat.norm and point.epsilon == threat.epsilon]
        assert at_radius.accuracy == int(own[1].correct.sum()) / 80
        (nearest,) = [item for item in found.distortions if item.norm == threat.norm]
        assert nearest.accuracy(threat.epsilon) == int(own[2].correct.sum()) / 80
        assert int(expected.sum()) < int(own[0].correct.sum())
    for attack in found.evaluation.attacks:
        assert torch.equal(attack.correct, attack.predictions == data.labels)


def test_a_curve_at_given_radii_has_the_threats_own_so_that_its_row_is_not_of_a_smaller_ball(
    bends: tuple[nn.Module, ImageSet],
) -> None:
    model, data = bends
    plan = EvaluationPlan(
        attacks=(FGSM(),), strongest=(), curve_attack=PGD(steps=2), curve_epsilons=(1e-6, 0.4), masking_images=4
    )
    found = plan.assess(model, data, [LINF], stage())
    assert [point.epsilon for point in found.curve] == [1e-6, 0.1, 0.4]
    assert found.curve[0].accuracy == 1  # by the fixture: the labels are the model's
    assert float(found.evaluation.attacks[1].correct.double().mean()) == found.curve[1].accuracy < 1


def test_the_worst_case_counts_what_a_long_ascent_broke_and_its_curve_is_in_the_record(
    bends: tuple[nn.Module, ImageSet],
) -> None:
    model, data = bends
    plan = EvaluationPlan(
        attacks=(FGSM(),), strongest=(), curve_attack=PGD(steps=1), curve_steps=(30, 2), masking_images=0
    )
    found = plan.assess(model, data, [LINF, L2], stage())
    points = found.summary().steps
    assert [(point.norm, point.steps) for point in points] == [("linf", 2), ("linf", 30), ("l2", 2), ("l2", 30)]
    for threat, point in ((LINF, points[1]), (L2, points[3])):
        *_, last = [attack for attack in found.evaluation.attacks if attack.threat == threat]
        assert last.label == "pgd over steps" and int(last.correct.sum()) == point.accuracy * 80
        assert not bool((found.evaluation.under(threat) & ~last.correct).any())
    names = [cost.label for cost in plan.costs(model, data, [LINF], World(), 0)]
    assert "pgd over 30 steps, linf 0.1" in names


@pytest.mark.parametrize(
    ("plan", "threat", "message"),
    [
        (EvaluationPlan(attacks=(SZVRG(),)), ThreatModel(norm="l1", epsilon=3), "SZVRG is for linf and l2"),
        (EvaluationPlan(distortion=PGD()), LINF, "looks for no smallest change"),
        (EvaluationPlan(curve_epsilons=(0.0, 2.0)), LINF, "did you mean 2/255"),
        (EvaluationPlan(curve_epsilons=(-0.1,)), LINF, "must be in"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_has_run(
    plan: EvaluationPlan, threat: ThreatModel, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plan.check([threat])


def test_a_model_that_cannot_take_the_images_is_named_before_the_attacks() -> None:
    class Strange(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise ValueError("three channels, please")

    data = ImageSet(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4))
    with pytest.raises(InputError, match="cannot take images of 1 x 2 x 2 pixels"):
        EvaluationPlan().assess(Strange(), data, [LINF], stage())


@pytest.mark.parametrize(
    ("num_classes", "side", "norm", "settings", "message"),
    [
        (2, 8, "linf", {}, None),
        (3, 8, "linf", {"strongest": (APGD(loss="dlr"),)}, None),
        (2, 8, "linf", {"strongest": (APGD(loss="dlr"),)}, "APGD needs at least 3 classes"),
        (3, 8, "linf", {"curve_attack": PGD(loss="dlr", targets=2)}, "PGD needs at least 4 classes"),
        (3, 8, "linf", {"strongest": (Transfer(surrogates=(nn.Flatten(),), attack=APGD(loss="dlr", targets=2)),)}, "4"),
        (5, 4, "l2", {"strongest": (AutoAttackReference(),)}, "at least 5 pixels a side"),
        (5, 8, "l2", {"strongest": (AutoAttackReference(),)}, None),
    ],
)
def test_what_a_data_set_has_too_little_for_is_refused_before_anything_is_searched(
    num_classes: int, side: int, norm: Norm, settings: dict[str, Any], message: str | None
) -> None:
    data = DataForm("small", tuple(map(str, range(num_classes))), (1, side, side))
    refused = contextlib.nullcontext() if message is None else pytest.raises(InputError, match=message)
    with refused:
        EvaluationPlan(**settings).check_data(ThreatModel(norm=norm, epsilon=0.1), data)
