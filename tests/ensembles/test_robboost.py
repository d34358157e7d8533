import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from robust_nas.bounds import LinearMargins
from robust_nas.core.errors import InputError
from robust_nas.ensembles import joint_margins
from robust_nas.ensembles._objective import MarginHinge
from robust_nas.ensembles.robboost import RobBoost
from robust_nas.ensembles.uniform import Uniform
from robust_nas.threat import ThreatModel

LINF, L2 = ThreatModel(norm="linf", epsilon=0.1), ThreatModel(norm="l2", epsilon=0.4)
KINDS = ["intervals", "linf", "l2"]


def members(
    num: int, kind: str, seed: int = 0, num_images: int = 6, pixels: int = 5
) -> tuple[list[LinearMargins], ThreatModel]:
    """Return bounds of `num` members on the same images, with margins of both signs, and the threat model."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % 3
    bounds = []
    for t in range(num):
        # Members of different sizes: without scales, the largest one would win.
        size = 10.0**t
        offsets = size * (0.3 + torch.randn(num_images, 3, generator=generator, dtype=torch.float64))
        slopes = (
            None if kind == "intervals" else size * 2 * torch.randn(num_images, 3, pixels, generator=generator).double()
        )
        bounds.append(LinearMargins(offsets.scatter(1, labels[:, None], torch.inf), slopes))
    return bounds, L2 if kind == "l2" else LINF


def hinge(bounds: list[LinearMargins], weights: np.ndarray, threat: ThreatModel) -> float:
    """Return the objective from the formula, in numpy."""
    wrong = np.isfinite(bounds[0].offsets.numpy())
    c = [bound.offsets.numpy()[wrong] for bound in bounds]
    scales = [np.abs(offsets).mean() for offsets in c]
    margins = sum(w * offsets / z for w, offsets, z in zip(weights, c, scales, strict=True))
    if bounds[0].slopes is not None:
        a = [bound.slopes.numpy()[wrong] for bound in bounds if bound.slopes is not None]
        joint = sum(w * slopes / z for w, slopes, z in zip(weights, a, scales, strict=True))
        margins = margins - threat.epsilon * np.linalg.norm(joint, ord=1 if threat.norm == "linf" else 2, axis=1)
    return float(np.maximum(1 - margins, 0).mean())


def linear_programme(bounds: list[LinearMargins], threat: ThreatModel) -> float:
    """Return the least objective over the simplex for intervals or the linf ball, by an independent solver."""
    wrong = np.isfinite(bounds[0].offsets.numpy())
    c = np.stack([bound.offsets.numpy()[wrong] for bound in bounds])
    scales = np.abs(c).mean(1)
    a = np.zeros((*c.shape, 1))
    if bounds[0].slopes is not None:
        a = np.stack([bound.slopes.numpy()[wrong] for bound in bounds if bound.slopes is not None])
    c, a = c / scales[:, None], a / scales[:, None, None]
    num, pairs, pixels = a.shape
    # Variables: w [T], the hinges h [M], and u [M, D] >= |sum_t w_t A_t|.
    width = num + pairs + pairs * pixels
    rows, limits = [], []
    for m in range(pairs):
        row = np.zeros(width)
        row[:num], row[num + m] = -c[:, m], -1
        row[num + pairs + m * pixels : num + pairs + (m + 1) * pixels] = threat.epsilon
        rows.append(row)
        limits.append(-1.0)
        for d, sign in itertools.product(range(pixels), (-1, 1)):
            row = np.zeros(width)
            row[:num], row[num + pairs + m * pixels + d] = sign * a[:, m, d], -1
            rows.append(row)
            limits.append(0.0)
    cost = np.zeros(width)
    cost[num : num + pairs] = 1 / pairs
    simplex = np.zeros((1, width))
    simplex[0, :num] = 1
    return float(linprog(cost, A_ub=np.array(rows), b_ub=limits, A_eq=simplex, b_eq=[1.0]).fun)


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_is_the_papers_formula(kind: str) -> None:
    bounds, threat = members(3, kind)
    for weights in ([1 / 3, 1 / 3, 1 / 3], [0.7, 0.0, 0.3], [0.0, 1.0, 0.0]):
        assert MarginHinge.of(bounds, threat).at(weights) == pytest.approx(
            hinge(bounds, np.array(weights), threat), rel=1e-12
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_the_line_search_finds_what_a_dense_grid_and_all_break_points_find(kind: str, seed: int) -> None:
    bounds, threat = members(3, kind, seed)
    start, end = [0.0, 0.4, 0.6], [1.0, 0.0, 0.0]
    segment = MarginHinge.of(bounds, threat).towards(0, start)
    q, value = segment.minimum()
    assert 0 <= q <= 1 and value == pytest.approx(segment(q)[0], abs=1e-15)
    grid = np.linspace(0, 1, 401)
    at = lambda q: hinge(bounds, (1 - q) * np.array(start) + q * np.array(end), threat)  # noqa: E731
    assert value <= min(map(at, grid)) + 1e-12
    if kind != "l2":
        assert value == pytest.approx(min(map(at, break_points(bounds, start, threat.epsilon))), abs=1e-12)


def break_points(bounds: list[LinearMargins], start: list[float], epsilon: float) -> list[float]:
    """Return all q in [0, 1] where the objective on the way from `start` to member 0 can bend.

    There a slope changes its sign, or a hinge opens.
    """
    wrong = np.isfinite(bounds[0].offsets.numpy())
    scales = [np.abs(bound.offsets.numpy()[wrong]).mean() for bound in bounds]

    def ends(of: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        scaled = [part / z for part, z in zip(of, scales, strict=True)]
        return sum(w * part for w, part in zip(start, scaled, strict=True)), scaled[0]

    c0, c1 = ends([bound.offsets.numpy()[wrong] for bound in bounds])
    slopes = [bound.slopes.numpy()[wrong] for bound in bounds if bound.slopes is not None]
    a0, a1 = ends(slopes) if slopes else np.zeros((2, len(c0), 1))
    points = [0.0, 1.0]
    for m in range(len(c0)):
        crossings = [float(s / (s - e)) for s, e in zip(a0[m], a1[m], strict=True) if s != e and 0 < s / (s - e) < 1]
        inner = sorted([0.0, 1.0, *crossings])

        def margin(q: float, m: int = m) -> float:
            return (1 - q) * c0[m] + q * c1[m] - epsilon * np.abs((1 - q) * a0[m] + q * a1[m]).sum()

        points += inner
        # Between two sign changes the margin is linear: it meets 1 at most once.
        for low, high in itertools.pairwise(inner):
            at_low, at_high = margin(low) - 1, margin(high) - 1
            if at_low * at_high < 0:
                points.append(low + (high - low) * at_low / (at_low - at_high))
    return points


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["cyclic", "random"])
def test_the_objective_never_rises_and_the_weights_stay_on_the_simplex(kind: str, order: str) -> None:
    bounds, threat = members(6, kind, seed=3)
    fitted = RobBoost(solver="coordinate", order=order, sweeps=5).fit(bounds, threat)  # type: ignore[arg-type]
    assert all(later <= earlier for earlier, later in itertools.pairwise(fitted.objectives))
    assert fitted.objectives[0] == Uniform().fit(bounds, threat).objective
    assert fitted.objective < fitted.objectives[0]
    assert (fitted.weights >= 0).all() and abs(float(fitted.weights.sum()) - 1) <= 1e-12
    assert fitted.objective == pytest.approx(hinge(bounds, fitted.weights.numpy(), threat), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_two_members_get_the_best_weights_of_a_fine_grid(kind: str, seed: int) -> None:
    bounds, threat = members(2, kind, seed)
    fitted = RobBoost(solver="coordinate").fit(bounds, threat)
    grid = min(hinge(bounds, np.array([q, 1 - q]), threat) for q in np.linspace(0, 1, 501))
    assert grid - 1e-2 <= fitted.objective <= grid + 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_three_members_get_weights_near_the_best_of_a_grid_over_the_simplex(kind: str) -> None:
    bounds, threat = members(3, kind, seed=1, num_images=12)
    best = min(
        hinge(bounds, np.array([i, j, 40 - i - j]) / 40, threat) for i in range(41) for j in range(41 - i)
    )  # fmt: skip
    # Coordinate descent may stop above the minimum of a function that is not smooth.
    assert RobBoost(solver="coordinate", sweeps=10).fit(bounds, threat).objective <= 1.05 * best


@pytest.mark.parametrize("kind", ["intervals", "linf"])
@pytest.mark.parametrize("seed", range(4))
def test_the_objective_is_the_linear_programmes_for_two_members_and_no_better_for_more(kind: str, seed: int) -> None:
    for num in (2, 4):
        bounds, threat = members(num, kind, seed)
        optimum, fitted = linear_programme(bounds, threat), RobBoost(solver="coordinate", sweeps=10).fit(bounds, threat)
        assert optimum - 1e-9 <= fitted.objective <= fitted.objectives[0]
        if num == 2:
            assert fitted.objective == pytest.approx(optimum, abs=1e-9)


def test_images_on_which_every_member_fails_count_because_opposite_slopes_cancel() -> None:
    # Alone, each member's margin is .5 - .1 * 100 < 0; the average's slopes are 0 and its margin .5.
    labels = torch.tensor([[torch.inf, 0.5]], dtype=torch.float64)
    slopes = torch.tensor([[[0.0], [100.0]]], dtype=torch.float64)
    bounds = [LinearMargins(labels, slopes), LinearMargins(labels, -slopes), LinearMargins(labels, -3 * slopes)]
    fitted = RobBoost(solver="coordinate", sweeps=20).fit(bounds, LINF)
    joint = joint_margins(bounds, fitted.weights, fitted.scales).lower(LINF)[0, 1]
    assert joint == pytest.approx(0.5, abs=1e-6)
    single = [bound.lower(LINF)[0, 1] for bound in bounds]
    assert max(single) < 0


def test_a_start_at_one_member_alone_does_not_divide_by_zero() -> None:
    # Member 0 is best by far: after the first step it has all the weight, and there is none to rescale.
    offsets = torch.tensor([[torch.inf, 1.0, 1.0]], dtype=torch.float64)
    bounds = [LinearMargins(offsets), LinearMargins(-offsets.abs()), LinearMargins(-offsets.abs())]
    bounds = [bounds[0], *(LinearMargins(b.offsets.where(offsets < torch.inf, torch.inf)) for b in bounds[1:])]
    fitted = RobBoost(solver="coordinate", sweeps=3).fit(bounds, LINF)
    assert fitted.weights.tolist() == [1.0, 0.0, 0.0] and fitted.objective == 0


def test_scales_are_positive_and_the_papers_where_all_bounds_are_positive() -> None:
    bounds, _ = members(1, "intervals")
    positive = LinearMargins(bounds[0].offsets.abs())
    finite = positive.offsets[positive.offsets.isfinite()]
    assert RobBoost().fit([positive], LINF).scales.item() == pytest.approx(float(finite.mean()))
    negative = LinearMargins(torch.where(positive.offsets == torch.inf, torch.inf, -positive.offsets))
    assert RobBoost().fit([negative], LINF).scales.item() == pytest.approx(float(finite.mean()))


def test_members_are_scaled_by_their_clean_margins_however_loose_their_bounds_are() -> None:
    inf = torch.inf
    loose = LinearMargins(torch.tensor([[inf, -1e9, -1e12]]), clean=torch.tensor([[inf, 3.0, -1.0]]))
    assert RobBoost().fit([loose], LINF).scales.item() == 2.0


def test_the_result_does_not_depend_on_the_members_units() -> None:
    bounds, threat = members(3, "linf", seed=2)
    scaled = [LinearMargins(7 * b.offsets, 7 * b.slopes) for b in bounds if b.slopes is not None]
    torch.testing.assert_close(RobBoost().fit(bounds, threat).weights, RobBoost().fit(scaled, threat).weights)


def test_random_orders_are_those_of_the_seed() -> None:
    bounds, threat = members(6, "linf", seed=5)

    def objectives(seed: int) -> tuple[float, ...]:
        return RobBoost(solver="coordinate", order="random", seed=seed).fit(bounds, threat).objectives

    state = torch.get_rng_state()
    assert objectives(1) == objectives(1) != objectives(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"RobBoost\.order"):
        RobBoost(order="sorted")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"RobBoost\.sweeps"):
        RobBoost(sweeps=0)
