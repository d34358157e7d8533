"""Attacks on models whose strongest perturbation is known: linear ones by formula, tiny ones by brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robust_nas.attacks import Attack
from robust_nas.attacks._model_state import margin
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.square import Square, _flip_square
from robust_nas.threat import ThreatModel


class TwoClasses(nn.Module):
    """Logits (f, -f) of the linear f(x) = <w, x> + b."""

    def __init__(self, weights: Tensor, bias: float) -> None:
        super().__init__()
        self.weights, self.bias = nn.Parameter(weights), bias

    def forward(self, images: Tensor) -> Tensor:
        f = (images * self.weights).flatten(1).sum(1) + self.bias
        return torch.stack([f, -f], dim=1)


@pytest.fixture
def weights() -> Tensor:
    return 0.2 * torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(8, 2, 4, 4, generator=torch.Generator().manual_seed(1))


LINF = ThreatModel(norm="linf", epsilon=0.1)
L2 = ThreatModel(norm="l2", epsilon=0.4)


@pytest.mark.parametrize("bias", [0.0, 10.0], ids=["fooled", "not fooled"])
@pytest.mark.parametrize(
    "attack",
    [
        FGSM(),
        FGSM(random_start=True, step_size=0.5),
        PGD(),
        PGD(restarts=2, loss="margin"),
        APGD(),
    ],
    ids=repr,
)
def test_linf_attacks_reach_the_closed_form_optimum_of_a_linear_model(
    attack: Attack, bias: float, weights: Tensor, images: Tensor
) -> None:
    labels = torch.arange(8) % 2
    sign = 2.0 * labels - 1
    # Over the box cut with [0, 1] every pixel goes to its own end.
    expected = (images + LINF.epsilon * sign.view(-1, 1, 1, 1) * weights.sign()).clamp(0, 1)
    model = TwoClasses(weights, bias)
    found = attack.perturb(model, images, labels, LINF)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("bias", [0.0, 3.0, 20.0], ids=["fooled", "not fooled", "tiny gradients"])
@pytest.mark.parametrize("attack", [FGSM(), PGD(step_size=0.4, steps=30), APGD()], ids=repr)
def test_l2_attacks_reach_the_closed_form_optimum_of_a_linear_model(
    attack: Attack, bias: float, weights: Tensor, images: Tensor
) -> None:
    images, labels = 0.4 + 0.2 * images, torch.arange(8) % 2  # far enough from 0 and 1 for the whole ball
    sign = (2.0 * labels - 1).view(-1, 1, 1, 1)
    expected = images + L2.epsilon * sign * weights / weights.norm()
    model = TwoClasses(weights, bias)
    found = attack.perturb(model, images, labels, L2)
    reached, best = margin(model(found), labels), margin(model(expected), labels)
    assert torch.allclose(reached, best, atol=1e-5)


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
def test_apgd_shortens_its_steps_to_reach_an_optimum_inside_the_ball(threat: ThreatModel, images: Tensor) -> None:
    images = 0.4 + 0.2 * images
    inside = threat.around(images).random(torch.Generator().manual_seed(2))
    hidden = images + 0.4 * (inside - images)

    class Bowl(nn.Module):
        """Class 0's logit is the squared distance to a hidden point, so that the loss is largest there."""

        def forward(self, points: Tensor) -> Tensor:
            distance = ((points - hidden) ** 2).flatten(1).sum(1)
            return torch.stack([1 + distance, torch.zeros_like(distance)], dim=1)

    found = APGD().perturb(Bowl(), images, torch.zeros(8, dtype=torch.int64), threat)
    # Steps of the first length, 2 epsilon, jump from one side of the ball to the other for ever.
    assert (found - hidden).flatten(1).norm(dim=1).max() < 0.05 * threat.epsilon


def test_apgd_takes_its_second_step_with_the_published_momentum(images: Tensor) -> None:
    visited = []

    class Bowl(nn.Module):
        """Class 0's logit is a squared distance, whose gradient changes from point to point."""

        def forward(self, points: Tensor) -> Tensor:
            visited.append(points.detach())
            distance = ((points - 0.5) ** 2).flatten(1).sum(1)
            return torch.stack([1 + distance, torch.zeros_like(distance)], dim=1)

    images, ball = 0.4 + 0.2 * images, L2.around(0.4 + 0.2 * images)
    APGD(steps=2).perturb(Bowl(), images, torch.zeros(8, dtype=torch.int64), L2)
    start, first, second = visited
    towards = [(0.5 - point) / (0.5 - point).flatten(1).norm(dim=1).view(-1, 1, 1, 1) for point in (start, first)]
    assert torch.allclose(first, ball.project(start + 2 * L2.epsilon * towards[0]), atol=1e-6)
    # Algorithm 1, lines 7 and 8, with eta = 2 epsilon and alpha = 0.75.
    ascended = ball.project(first + 2 * L2.epsilon * towards[1])
    expected = ball.project(first + 0.75 * (ascended - first) + 0.25 * (first - start))
    assert torch.allclose(second, expected, atol=1e-5)


def test_square_never_proposes_what_it_has_already() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = 0.1 * (torch.randint(0, 2, (400, 1, 4, 4), generator=generator) * 2.0 - 1)
    for side in (1, 2):
        proposed = _flip_square(delta, 0.1, side, generator).clamp(-0.1, 0.1)
        changed = ~torch.isclose(proposed, delta)
        assert changed.flatten(1).any(1).all() and (changed.flatten(1).sum(1) <= side**2).all()


def test_square_finds_the_closed_form_optimum_of_a_linear_model_by_scores_alone(
    weights: Tensor, images: Tensor
) -> None:
    labels = torch.arange(8) % 2
    sign = (2.0 * labels - 1).view(-1, 1, 1, 1)
    expected = (images + LINF.epsilon * sign * weights.sign()).clamp(0, 1)

    class Unfoolable(TwoClasses):
        def forward(self, images: Tensor) -> Tensor:
            # A bonus for each sample's own label: only the margins move, so that the search uses its whole budget.
            return super().forward(images) + 100 * nn.functional.one_hot(labels, 2)

    found = Square(queries=1500).perturb(Unfoolable(weights, 0.0), images, labels, LINF)
    assert torch.allclose(found, expected, atol=1e-6)


def test_square_goes_most_of_the_way_to_the_optimum_of_a_linear_model_in_l2(weights: Tensor, images: Tensor) -> None:
    images, labels = 0.4 + 0.2 * images, torch.zeros(8, dtype=torch.int64)
    model = TwoClasses(weights, 100.0)
    found = Square(queries=1500).perturb(model, images, labels, L2)
    with torch.no_grad():
        gained = margin(model(found), labels) - margin(model(images), labels)
    # The margin -2 <w, x> + ... gains at most 2 epsilon |w|, and nothing on average in a random direction.
    best = 2 * L2.epsilon * float(weights.norm())
    assert (gained <= best + 1e-4).all() and (gained > best / 2).all()


@pytest.mark.parametrize("threat", [ThreatModel(epsilon=0.2), ThreatModel(norm="l2", epsilon=0.25)], ids=repr)
def test_no_attack_beats_a_grid_over_the_ball_and_the_strong_ones_reach_it(threat: ThreatModel) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)).requires_grad_(False)
    model[1].weight *= 6
    images = torch.rand(6, 1, 1, 2)
    labels = model(images).argmax(1)
    # All points of a 401 x 401 grid over the ball.
    line = torch.linspace(-threat.epsilon, threat.epsilon, 401)
    offsets = torch.cartesian_prod(line, line)
    if threat.norm == "l2":
        offsets = offsets[offsets.norm(dim=1) <= threat.epsilon]
    points = images.view(6, 1, 2) + offsets
    allowed = ((points >= 0) & (points <= 1)).all(2)
    margins = margin(model(points.view(-1, 1, 1, 2)), labels.repeat_interleave(len(offsets))).view(6, -1)
    best = margins.masked_fill(~allowed, -torch.inf).amax(1)
    # The grid misses a maximum by at most its spacing times the steepest slope of the margin.
    slack = float(model[3].weight.abs().sum(0) @ model[1].weight.abs().sum(1)) * 2 * threat.epsilon / 400
    for attack, is_strong in [
        (FGSM(), False),
        (PGD(), False),
        (Square(queries=300), False),
        (APGD(), False),
        (PGD(loss="margin", steps=50, restarts=10, batch_norm="batch"), True),
        (APGD(restarts=10, batch_norm="batch"), True),
    ]:
        reached = margin(model(attack.perturb(model, images, labels, threat)), labels)
        assert (reached <= best + slack).all(), attack
        if is_strong:
            assert (reached >= best - 0.02).all(), attack


def test_fgsm_with_a_random_start_moves_every_pixel_by_the_published_distribution(weights: Tensor) -> None:
    images, labels = torch.full((500, 2, 4, 4), 0.5), torch.zeros(500, dtype=torch.int64)
    found = FGSM(random_start=True).perturb(TwoClasses(weights, 0.0), images, labels, LINF)
    moved = ((images - found) * weights.sign() / LINF.epsilon).flatten()
    # In epsilons, a start U(-1, 1) goes 1.25 ahead and is stopped at 1: at least 1/4, and 1 with probability 5/8.
    assert moved.min() == pytest.approx(0.25, abs=0.01) and moved.max() == pytest.approx(1.0, abs=1e-6)
    assert (moved > 1 - 1e-6).float().mean() == pytest.approx(5 / 8, abs=0.02)
    assert moved[moved < 1 - 1e-6].mean() == pytest.approx(0.625, abs=0.02)
