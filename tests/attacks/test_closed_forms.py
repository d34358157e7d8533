"""Attacks on models whose strongest perturbation is known: linear ones by formula, tiny ones by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from robust_nas.attacks import Attack
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.autoattack import AutoAttack
from robust_nas.attacks.fab import FAB, _to_plane
from robust_nas.attacks.fgsm import FGSM
from robust_nas.attacks.pgd import PGD
from robust_nas.attacks.square import Square, _Chance, _flip_square
from robust_nas.models.losses import margin
from robust_nas.threat import Norm, ThreatModel


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
        PGD(targets=1),
        PGD(targets=1, loss="margin", momentum=1.0),
        PGD(steps=40, schedule="cosine"),
        APGD(),
        APGD(targets=1),
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
@pytest.mark.parametrize(
    "attack",
    [FGSM(), PGD(step_size=0.4, steps=30), PGD(step_size=0.4, steps=30, momentum=0.5), APGD(), APGD(targets=1)],
    ids=repr,
)
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


@pytest.mark.parametrize(
    "attack", [FGSM(), PGD(steps=100), PGD(steps=100, targets=1), APGD(), APGD(targets=1)], ids=repr
)
def test_l1_attacks_reach_the_closed_form_optimum_of_a_linear_model(
    attack: Attack, weights: Tensor, images: Tensor
) -> None:
    labels, threat = torch.arange(8) % 2, ThreatModel(norm="l1", epsilon=2.5)
    model = TwoClasses(weights, 20.0)
    # The steepest pixels go to their ends, one after the other, until the length is used up.
    direction = (weights * (2.0 * labels - 1).view(-1, 1, 1, 1)).flatten(1)
    expected = images.flatten(1).clone()
    for point, ascent in zip(expected, direction, strict=True):
        length = threat.epsilon
        for pixel in ascent.abs().argsort(descending=True):
            end = float(ascent[pixel] > 0)
            taken = min(length, abs(end - float(point[pixel])))
            point[pixel] += taken if end else -taken
            length -= taken
    reached = margin(model(attack.perturb(model, images, labels, threat)), labels)
    best, before = margin(model(expected.view_as(images)), labels), margin(model(images), labels)
    assert (reached <= best + 1e-4).all()
    # PGD's last step is cut off by the projection.
    assert (reached - before >= 0.97 * (best - before)).all()


def test_fab_finds_the_smallest_change_of_a_linear_model(images: Tensor) -> None:
    images, model = 0.4 + 0.2 * images, nn.Sequential(nn.Flatten(), nn.Linear(32, 4)).requires_grad_(False)
    model[1].weight[:] = 0.1 * torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    # All classes but one meet in the middle of the box.
    model[1].bias[:] = -0.5 * model[1].weight.sum(1) + torch.tensor([0.08, 0.0, 0.0, 0.0])
    logits = model(images)
    labels, rows = logits.argmax(1), torch.arange(8)
    for norm, dual in (("linf", 1), ("l2", 2), ("l1", torch.inf)):
        # The distance to a hyperplane is the difference of logits over the dual norm of the difference of weights.
        planes = (model[1].weight[labels].unsqueeze(1) - model[1].weight).norm(p=dual, dim=2)
        distances = (logits[rows, labels].unsqueeze(1) - logits) / planes
        distances[rows, labels] = torch.inf
        nearest = distances.amin(1)
        assert nearest.max() < (0.4 if norm != "l2" else 1.0)  # inside the box, where the formula holds
        points, found = FAB(steps=40).closest(model, images, labels, ThreatModel(norm=norm, epsilon=1.0))  # type: ignore[arg-type]
        assert (model(points).argmax(1) != labels).all()
        assert torch.allclose(found.float(), nearest, rtol=5e-3) and (found > nearest * (1 - 1e-4)).all()
        # At a radius between the smallest changes, it fools just those with smaller ones.
        radius = float(nearest.sort().values[3:5].mean())
        fooled = model(FAB().perturb(model, images, labels, ThreatModel(norm=norm, epsilon=radius))).argmax(1) != labels  # type: ignore[arg-type]
        assert fooled.tolist() == (nearest < radius).tolist()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_way_to_a_plane_inside_the_box_is_the_shortest(norm: Norm) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(20, 1, 2, 3, generator=generator)
    normals = torch.randn(20, 1, 2, 3, generator=generator)
    values = torch.randn(20, generator=generator)
    found = _to_plane(points, normals, values, norm)
    lengths, unreachable = ThreatModel(norm=norm, epsilon=1.0).lengths(found), 0
    for index in range(20):
        x, w = points[index].flatten().double().numpy(), normals[index].flatten().double().numpy()
        change, value = found[index].flatten().double().numpy(), float(values[index])
        assert (x + change > -1e-6).all() and (x + change < 1 + 1e-6).all()
        # Variables: the change, and a bound of each of its entries (of all of them, for linf).
        eye, bound = np.eye(6), np.ones((6, 1)) if norm == "linf" else np.eye(6)
        lp = linprog(
            np.concatenate([np.zeros(6), np.ones(bound.shape[1])]),
            np.block([[eye, -bound], [-eye, -bound]]),
            np.zeros(12),
            np.concatenate([w, np.zeros(bound.shape[1])])[None],
            [-value],
            [*zip(-x, 1 - x, strict=True), *[(0, None)] * bound.shape[1]],
        )
        if lp.status == 2:
            unreachable += 1
            corner = np.where(w * value > 0, -x, 1 - x)
            assert np.allclose(change, corner, atol=1e-6)
            continue
        assert abs(value + w @ change) < 1e-5
        expected = lp.fun
        if norm == "l2":
            plane = {"type": "eq", "fun": lambda z, w=w, value=value: value + w @ z}
            solved = minimize(lambda z: z @ z, lp.x[:6], bounds=[*zip(-x, 1 - x, strict=True)], constraints=plane)
            expected = float(np.sqrt(solved.fun))
        assert float(lengths[index]) == pytest.approx(expected, abs=1e-4)
    assert 0 < unreachable < 10


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
def test_autoattack_breaks_exactly_what_can_be_broken_of_a_linear_model(threat: ThreatModel) -> None:
    generator = torch.Generator().manual_seed(5)
    images = 0.4 + 0.2 * torch.rand(60, 2, 4, 4, generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 5)).requires_grad_(False)
    model[1].weight[:] = 0.3 * torch.randn(5, 32, generator=generator)
    model[1].bias[:] = 0
    logits = model(images)
    labels, rows = logits.argmax(1), torch.arange(60)
    dual = 1 if threat.norm == "linf" else 2
    planes = (model[1].weight[labels].unsqueeze(1) - model[1].weight).norm(p=dual, dim=2)
    distances = (logits[rows, labels].unsqueeze(1) - logits) / planes
    distances[rows, labels] = torch.inf
    nearest = distances.amin(1)
    threat = threat.with_epsilon(float(nearest.median()))
    sure = (nearest / threat.epsilon - 1).abs() > 0.003
    found = AutoAttack(queries=50).perturb(model, images, labels, threat)
    fooled = model(found).argmax(1) != labels
    assert fooled[sure].tolist() == (nearest < threat.epsilon)[sure].tolist()
    assert 20 < int(fooled.sum()) < 40


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
        chance = _Chance(torch.rand(400, 3, generator=generator))
        proposed = _flip_square(delta, 0.1, side, chance, order=torch.inf).clamp(-0.1, 0.1)
        changed = ~torch.isclose(proposed, delta)
        assert changed.flatten(1).any(1).all() and (changed.flatten(1).sum(1) <= side**2).all()


def test_square_finds_the_closed_form_optimum_of_a_linear_model_by_scores_alone(
    weights: Tensor, images: Tensor
) -> None:
    for label in (0, 1):
        expected = (images + LINF.epsilon * (2.0 * label - 1) * weights.sign()).clamp(0, 1)

        class Unfoolable(TwoClasses):
            def forward(self, images: Tensor, label: int = label) -> Tensor:
                # A bonus for the label: only the margins move, so that the search uses its whole budget.
                return super().forward(images) + 100 * torch.eye(2)[label]

        labels = torch.full((8,), label)
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


@pytest.mark.parametrize(
    "threat",
    [ThreatModel(epsilon=0.2), ThreatModel(norm="l2", epsilon=0.25), ThreatModel(norm="l1", epsilon=0.3)],
    ids=lambda threat: threat.norm,
)
def test_no_attack_beats_a_grid_over_the_ball_and_the_strong_ones_reach_it(threat: ThreatModel) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)).requires_grad_(False)
    model[1].weight *= 6
    images = torch.rand(6, 1, 1, 2)
    labels = model(images).argmax(1)
    # All points of a 401 x 401 grid over the ball.
    line = torch.linspace(-threat.epsilon, threat.epsilon, 401)
    offsets = torch.cartesian_prod(line, line)
    if threat.norm != "linf":
        offsets = offsets[offsets.norm(p=1 if threat.norm == "l1" else 2, dim=1) <= threat.epsilon]
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
        (FAB(), False),
        (PGD(loss="kl", momentum=0.9), False),
        (PGD(targets=1, early_stop=True), False),
        (PGD(loss="margin", steps=50, restarts=10, batch_norm="batch"), True),
        (APGD(restarts=10, batch_norm="batch"), True),
    ]:
        reached = margin(model(attack.perturb(model, images, labels, threat)), labels)
        assert (reached <= best + slack).all(), attack
        if is_strong:
            assert (reached >= best - 0.02).all(), attack


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_finds_about_the_nearest_misclassified_point_of_a_grid_and_none_nearer(norm: Norm) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)).requires_grad_(False)
    model[1].weight *= 6
    images = torch.rand(12, 1, 1, 2)
    labels = model(images).argmax(1)
    line = torch.linspace(0, 1, 801)
    grid = torch.cartesian_prod(line, line)
    predicted = model(grid.view(-1, 1, 1, 2)).argmax(1)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    distances = (grid - images.view(12, 1, 2)).norm(p=order, dim=2)
    nearest = distances.masked_fill(predicted == labels.unsqueeze(1), torch.inf).amin(1)
    _, found = FAB(restarts=5).closest(model, images, labels, ThreatModel(norm=norm, epsilon=0.5))
    # A point of the plane is within one spacing of the grid in every norm but l1, where it is within two.
    assert (found > nearest - 2 / 800).all()
    assert float((found < nearest * 1.02 + 2 / 800).double().mean()) >= 0.9


def test_fgsm_with_a_random_start_moves_every_pixel_by_the_published_distribution(weights: Tensor) -> None:
    # Equal images would get equal starts.
    images = 0.5 + 1e-5 * torch.rand(500, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(500, dtype=torch.int64)
    found = FGSM(random_start=True).perturb(TwoClasses(weights, 0.0), images, labels, LINF)
    moved = ((images - found) * weights.sign() / LINF.epsilon).flatten()
    # In epsilons, a start U(-1, 1) goes 1.25 ahead and is stopped at 1: at least 1/4, and 1 with probability 5/8.
    assert moved.min() == pytest.approx(0.25, abs=0.01) and moved.max() == pytest.approx(1.0, abs=1e-6)
    assert (moved > 1 - 1e-6).float().mean() == pytest.approx(5 / 8, abs=0.02)
    assert moved[moved < 1 - 1e-6].mean() == pytest.approx(0.625, abs=0.02)
