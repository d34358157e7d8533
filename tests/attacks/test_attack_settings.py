"""Settings that cannot be meant are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from robust_nas.attacks.apgd import APGD, checkpoint_steps
from robust_nas.attacks.autoattack import AutoAttack
from robust_nas.attacks.autoattack_reference import AutoAttackReference
from robust_nas.attacks.fab import FAB
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.square import Square, _bump, _bumps, _Chance, _move_square, _tiles
from robust_nas.core.errors import InputError
from robust_nas.core.registry import name_of
from robust_nas.datasets import ImageSet
from robust_nas.evaluation import evaluate
from robust_nas.threat import ThreatModel


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(step_size=2), r"PGD.step_size must be in \(0, 1\] .* did you mean 2/255\?"),
        (lambda: FGSM(step_size=0), "FGSM.step_size must be in"),
        (lambda: PGD(steps=-1), "PGD.steps must be a whole number of at least 0, but got -1"),
        (lambda: PGD(steps=2.5), "PGD.steps must be a whole number"),  # type: ignore[arg-type]
        (lambda: PGD(restarts=0), "PGD.restarts must be a whole number of at least 1"),
        (lambda: PGD(restarts=2, random_start=False), "set random_start=true"),
        (lambda: PGD(loss="hinge"), "PGD.loss must be one of cross_entropy, margin, dlr, kl, but got 'hinge'"),  # type: ignore[arg-type]
        (lambda: PGD(loss="kl", random_start=False), "set targets=0 and random_start=true"),
        (lambda: PGD(loss="kl", targets=2), "set targets=0 and random_start=true"),
        (lambda: PGD(random_target=True, targets=2), "set targets=0 or random_target=false"),
        (lambda: PGD(random_target=True, loss="kl"), "set random_target=false and clean_start=0"),
        (lambda: PGD(clean_start=1.2), r"PGD.clean_start is a share of the samples in \[0, 1\], but got 1.2"),
        (lambda: PGD(clean_start=0.2, random_start=False), "set clean_start=0 or random_start=true"),
        (lambda: PGD(clean_start=0.2, loss="kl"), "set random_target=false and clean_start=0"),
        (lambda: PGD(momentum=-1), "PGD.momentum must be at least 0"),
        (lambda: PGD(schedule="linear"), "PGD.schedule must be one of constant, cosine"),  # type: ignore[arg-type]
        (lambda: PGD(early_stop=True, batch_norm="batch"), "set batch_norm='running'"),
        (lambda: APGD(early_stop=True, batch_norm="batch"), "set batch_norm='running'"),
        (lambda: APGD(targets=-1), "APGD.targets must be a whole number of at least 0"),
        (lambda: FAB(targets=0), "FAB.targets must be a whole number of at least 1"),
        (lambda: AutoAttack(queries=0), "AutoAttack.queries must be a whole number of at least 1"),
        (lambda: PGD(batch_norm="eval"), "PGD.batch_norm must be one of running, batch"),  # type: ignore[arg-type]
        (lambda: APGD(steps=0), "APGD.steps must be a whole number of at least 1"),
        (lambda: Square(queries=0), "Square.queries must be a whole number of at least 1"),
        (lambda: Square(schedule=0), "Square.schedule must be a whole number of at least 1"),
        (lambda: Square(first_share=1.5), r"Square.first_share must be in \(0, 1\]"),
        (lambda: AutoAttackReference(version="custom"), "must be one of standard, plus, rand"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range_are_refused_with_what_to_do(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_step_size_may_be_written_as_a_fraction() -> None:
    assert PGD(step_size="2/255").step_size == 2 / 255  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attack", "num_classes", "missing"),
    [
        (AutoAttack(steps=5, queries=20), 2, ["apgd-t"]),
        (AutoAttack(steps=5, queries=20), 3, ["apgd-t"]),
        (AutoAttack(steps=5, queries=20), 4, []),
        (AutoAttackReference(), 2, ["apgd-t"]),
        (AutoAttackReference(), 4, []),
        (AutoAttackReference(version="plus"), 2, ["apgd-dlr", "apgd-t"]),
        (AutoAttackReference(version="plus"), 3, ["apgd-t"]),
    ],
)
def test_autoattack_leaves_out_what_needs_more_classes_and_results_name_it(
    attack: AutoAttack | AutoAttackReference, num_classes: int, missing: list[str]
) -> None:
    assert AutoAttackReference(version="rand").left_out(2) == ("apgd-dlr",)
    # The first logit leads the second by `lead`, and less by 0.2 at most in the ball of radius 0.1.
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, num_classes))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[0, :6], model[1].weight[1, :6] = -1 / 6, 1 / 6
    images, labels, threat = torch.full((1, 1, 6, 6), 0.5), torch.tensor([0]), ThreatModel(epsilon=0.1)
    # What the package's attacks do not break at once takes them all their steps.
    for lead, survives in ((0.15, False), (0.25, True))[: 2 if isinstance(attack, AutoAttack) else 1]:
        with torch.no_grad():
            model[1].bias.copy_(torch.tensor([1 + lead, 0.0, *[-5.0] * (num_classes - 2)]))
        result = evaluate(model, ImageSet(images, labels), threat, [attack])
        assert result.worst_case.tolist() == [survives]
        (outcome,) = result.attacks
        assert list(outcome.left_out) == missing
        assert outcome.label == name_of(attack) + (f"[without={'+'.join(missing)}]" if missing else "")
        assert outcome.label in str(result) and result.summary().attacks[0].name == outcome.label


def test_autoattack_takes_every_other_class_as_a_target_where_there_are_fewer_than_nine() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    with torch.no_grad():
        model[1].bias[:] = torch.tensor([9.0, 1.0, 2.0, 3.0])  # never fooled: every attack runs
    images = torch.full((1, 1, 6, 6), 0.5)
    found = AutoAttackReference().perturb(model, images, torch.tensor([0]), ThreatModel(epsilon=0.01))
    assert torch.equal(found, images)


def test_autoattack_in_l2_says_how_large_images_must_be() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    with pytest.raises(InputError, match="at least 5 pixels a side"):
        AutoAttackReference().perturb(
            model, torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), ThreatModel(norm="l2", epsilon=0.1)
        )


def test_apgd_reviews_its_steps_at_the_published_checkpoints() -> None:
    # Section 3.1: p = 0, .22, .41, .57, .70, .80, .87, .93, .99 of the iterations.
    assert checkpoint_steps(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoint_steps(10) == [3, 5, 6, 7, 8, 9]
    assert checkpoint_steps(1) == []


def test_the_squares_shrink_at_the_published_iterations() -> None:
    # The authors' code halves the share of the image after iterations 10, 50, 200, ... of 10,000, counted from 0.
    def sides(attack: Square) -> list[int]:
        return [side for side, queries in attack._sides(100, 100) for _ in queries]

    halvings = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    expected = [round((0.8 / 2 ** sum(query > halving for halving in halvings)) ** 0.5 * 100) for query in range(9999)]
    assert sides(Square(queries=10_000)) == expected
    assert sides(Square(queries=300, schedule=10_000)) == expected[:299]
    assert sides(Square(queries=5001, schedule=5000)) == expected[::2]


def test_the_bumps_of_the_l2_square_attack_have_the_values_of_its_formula() -> None:
    # n = 1: the centre is 1/(1+1)^2 + 1/(1+1-1)^2, its neighbours 1/(1+1)^2.
    assert _bump(3, 3).tolist() == [[0.25, 0.25, 0.25], [0.25, 1.25, 0.25], [0.25, 0.25, 0.25]]
    for side in range(1, 9):
        pattern = _bumps(side)
        assert pattern.shape == (side, side)
        assert (pattern[: side // 2] > 0).all() and (pattern[side // 2 :] < 0).all()


@pytest.mark.parametrize("order", [1.0, 2.0])
def test_the_square_attack_starts_at_the_balls_edge_and_moves_length_without_adding_any(order: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(50, 3, 12, 12, generator=generator)
    delta = _tiles(images, 0.7, order, _Chance(torch.rand(50, 3 * 144, generator=generator)))
    assert torch.allclose(delta.flatten(1).norm(p=order, dim=1), torch.tensor(0.7))
    for side in (3, 5, 8):
        moved = _move_square(delta, 0.7, side, _Chance(torch.rand(50, 8, generator=generator)), order=order)
        # What two squares held is in one of them; nothing outside them has changed.
        assert (moved.flatten(1).norm(p=order, dim=1) <= 0.7 + 1e-5).all()
        changed = (moved != delta).any(1).flatten(1).sum(1)
        assert (changed > 0).all() and (changed <= 2 * (side + (side + 1) % 2) ** 2).all()
