"""The weights' solvers beside cvxpy, and the choice of members."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from robust_nas.bounds import LinearMargins
from robust_nas.core.errors import InputError
from robust_nas.ensembles import _cutting_planes as cutting_planes
from robust_nas.ensembles import joint_margins
from robust_nas.ensembles._objective import MarginHinge
from robust_nas.ensembles.robboost import RobBoost
from robust_nas.threat import ThreatModel

EPSILON = {"linf": 0.1, "l2": 0.4, "l1": 0.6}
CASES = list(itertools.product(EPSILON, ["whole ball", "inside [0, 1]"], ["target", "example"]))


def members(
    num: int, num_images: int = 5, pixels: int = 4, seed: int = 0, *, inside: bool = False, slopes: bool = True
) -> list[LinearMargins]:
    """Return bounds of `num` members on the same images, with margins of both signs."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images)[:, None] % 3
    # Many pixels are nearly black or white, so that [0, 1] cuts the balls.
    images = torch.rand(num_images, 1, 1, pixels, generator=generator).double().pow(3) if inside else None
    bounds = []
    for _ in range(num):
        offsets = 0.3 + torch.randn(num_images, 3, generator=generator, dtype=torch.float64)
        a = 2 * torch.randn(num_images, 3, pixels, generator=generator) if slopes else None
        bounds.append(LinearMargins(offsets.scatter(1, labels, torch.inf), a, images=images))
    return bounds


def optimum(bounds: list[LinearMargins], threat: ThreatModel, hinge: str, weights: list[float] | None = None) -> float:
    """Return the least objective over the simplex, or the one at `weights`, by cvxpy from the formula."""
    cp = pytest.importorskip("cvxpy")
    wrong = np.isfinite(bounds[0].offsets.numpy())
    c = [bound.offsets.numpy()[wrong] for bound in bounds]
    scales = [np.abs(offsets).mean() for offsets in c]
    w = cp.Variable(len(bounds), nonneg=True)
    constraints = [cp.sum(w) == 1] if weights is None else [w == weights]
    order = {"linf": 1, "l2": 2, "l1": "inf"}[threat.norm]
    terms: dict[int, list[object]] = {}
    for m, (k, j) in enumerate(np.argwhere(wrong)):
        margin = sum(w[t] * c[t][m] / scales[t] for t in range(len(bounds)))
        slopes = sum(w[t] * (b.slopes[k, j].double().numpy() / scales[t]) for t, b in enumerate(bounds))  # type: ignore[index]
        if bounds[0].images is None:
            margin -= threat.epsilon * cp.norm(slopes, order)
        else:
            # The least over ball and box together: the slopes are shared out between the two in the best way.
            pixels = bounds[0].images[k].flatten().numpy()
            in_box = cp.Variable(len(pixels))
            margin += in_box @ (0.5 - pixels) - cp.norm1(in_box) / 2
            margin -= threat.epsilon * cp.norm(slopes - in_box, order)
        terms.setdefault(int(k), []).append(cp.pos(1 - margin))
    if hinge == "target":
        objective = sum(term for image in terms.values() for term in image) / wrong.sum()
    else:
        objective = sum(cp.maximum(*image) for image in terms.values()) / len(terms)
    problem = cp.Problem(cp.Minimize(objective), constraints)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    return float(problem.value)


@pytest.mark.parametrize(("norm", "where", "hinge"), CASES)
def test_cutting_planes_enclose_the_optimum_and_coordinate_descent_is_above_it(
    norm: str, where: str, hinge: str
) -> None:
    threat = ThreatModel(norm=norm, epsilon=EPSILON[norm])  # type: ignore[arg-type]
    for seed in range(2):
        bounds = members(4, num_images=4, seed=seed, inside=where != "whole ball")
        best = optimum(bounds, threat, hinge)
        fitted = RobBoost(hinge=hinge).fit(bounds, threat)  # type: ignore[arg-type]
        assert fitted.lower is not None
        assert fitted.lower - 1e-8 <= best <= fitted.objective + 1e-8
        assert fitted.objective - fitted.lower <= 1e-7 * max(1, fitted.objective)
        descent = RobBoost(hinge=hinge, solver="coordinate", sweeps=1).fit(bounds, threat)  # type: ignore[arg-type]
        assert descent.objective >= best - 1e-8 and descent.lower is None
        assert descent.objective <= descent.objectives[0] == pytest.approx(fitted.objectives[0], rel=1e-12)


@pytest.mark.parametrize(("norm", "where", "hinge"), CASES)
def test_the_objective_at_given_weights_is_the_formulas(norm: str, where: str, hinge: str) -> None:
    threat, weights = ThreatModel(norm=norm, epsilon=EPSILON[norm]), [0.5, 0.0, 0.2, 0.3]  # type: ignore[arg-type]
    bounds = members(4, seed=3, inside=where != "whole ball")
    objective = MarginHinge.of(bounds, threat, hinge=hinge)  # type: ignore[arg-type]
    assert objective.at(weights) == pytest.approx(optimum(bounds, threat, hinge, weights), abs=1e-7)
    # The joint bound that certifies has the same margins, up to the ensemble's own scale.
    joint = joint_margins(bounds, weights, objective.scales)
    size = sum(w / float(z) for w, z in zip(weights, objective.scales, strict=True))
    hinges = (1 - size * joint.lower(threat)).clamp_min(0).where(joint.offsets.isfinite(), 0.0)
    expected = hinges.sum() / 10 if hinge == "target" else hinges.amax(1).mean()
    assert objective.at(weights) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("norm", "where", "hinge"), CASES)
def test_planes_touch_the_objective_and_are_below_it(norm: str, where: str, hinge: str) -> None:
    threat = ThreatModel(norm=norm, epsilon=EPSILON[norm])  # type: ignore[arg-type]
    objective = MarginHinge.of(members(4, inside=where != "whole ball"), threat, hinge=hinge)  # type: ignore[arg-type]
    points = np.random.default_rng(0).dirichlet(np.ones(4), size=12)
    for point in points:
        heights = objective.planes(point).sum(0)
        assert heights @ point == pytest.approx(objective.at(point), rel=1e-12)
        for other in points:
            assert heights @ other <= objective.at(other) + 1e-12


@pytest.mark.parametrize(("norm", "where", "hinge"), CASES)
def test_chunks_change_nothing(norm: str, where: str, hinge: str) -> None:
    threat, weights = ThreatModel(norm=norm, epsilon=EPSILON[norm]), [0.1, 0.6, 0.0, 0.3]  # type: ignore[arg-type]
    bounds = members(4, num_images=9, inside=where != "whole ball")
    whole, pieces = (
        MarginHinge.of(bounds, threat, hinge=hinge, chunk=chunk, groups=3)  # type: ignore[arg-type]
        for chunk in (10**6, 1)
    )
    assert len(whole.chunks) == 1 and len(whole.parts) == 3 and len(pieces.chunks) == len(pieces.parts) == 9
    assert whole.at(weights) == pytest.approx(pieces.at(weights), rel=1e-13)
    np.testing.assert_allclose(whole.planes(weights), pieces.planes(weights), atol=1e-14)
    assert whole.towards(2, weights)(0.3) == pytest.approx(pieces.towards(2, weights)(0.3), rel=1e-12)


def test_pairs_that_every_member_proves_are_not_evaluated_and_others_are() -> None:
    inf = torch.inf
    sure, slope = torch.tensor([[inf, 3.0], [inf, 0.5]]), torch.tensor([[[0.0], [5.0]], [[0.0], [100.0]]])
    bounds = [LinearMargins(sure, slope, clean=sure * 0 + 1), LinearMargins(sure, -slope, clean=sure * 0 + 1)]
    bounds = [replace(b, clean=torch.ones(2, 2)) for b in bounds]
    objective = MarginHinge.of(bounds, ThreatModel(epsilon=0.1))
    # The first image's margin is 3 - .1 * 5 for either; the second's is .5 - .1 * 100, and .5 for their average.
    assert objective.rows.tolist() == [3]
    assert objective.at([1.0, 0.0]) == pytest.approx(10.5 / 2) and objective.at([0.5, 0.5]) == pytest.approx(0.5 / 2)
    fitted = RobBoost().fit(bounds, ThreatModel(epsilon=0.1))
    assert fitted.weights.tolist() == pytest.approx([0.5, 0.5], abs=1e-6) and fitted.objective == pytest.approx(0.25)


def test_where_every_pair_is_proved_by_every_member_the_objective_is_zero() -> None:
    bound = LinearMargins(torch.tensor([[torch.inf, 2.0]]), clean=torch.tensor([[torch.inf, 1.0]]))
    for solver in ("cutting_planes", "coordinate"):
        assert RobBoost(solver=solver).fit([bound, bound], ThreatModel()).objective == 0  # type: ignore[arg-type]


def test_coordinate_descent_stalls_where_cutting_planes_go_on() -> None:
    threat = ThreatModel(epsilon=EPSILON["linf"])
    bounds = members(5, num_images=1, pixels=3, seed=5)
    descent = RobBoost(solver="coordinate", sweeps=100, hinge="example").fit(bounds, threat)
    fitted = RobBoost(hinge="example").fit(bounds, threat)
    assert len(descent.objectives) < 1 + 5 * 100, "it stopped because a sweep changed nothing"
    assert descent.objective > 1.05 * fitted.objective
    assert fitted.objective == pytest.approx(optimum(bounds, threat, "example"), abs=2e-7)


@pytest.mark.parametrize("norm", EPSILON)
def test_permuted_members_get_the_permuted_weights(norm: str) -> None:
    threat, order = ThreatModel(norm=norm, epsilon=EPSILON[norm]), [3, 0, 4, 1, 2]  # type: ignore[arg-type]
    bounds = members(5, num_images=12, seed=1)
    fitted = RobBoost(tolerance=1e-9).fit(bounds, threat)
    permuted = RobBoost(tolerance=1e-9).fit([bounds[t] for t in order], threat)
    assert permuted.objective == pytest.approx(fitted.objective, abs=2e-9)
    # Near the minimum the objective of the l2 ball is smooth: weights this far apart differ by 1e-9 in it.
    torch.testing.assert_close(permuted.weights, fitted.weights[order], atol=5e-4, rtol=0)


def test_large_numbers_of_members_and_images_end_within_the_tolerance() -> None:
    for norm, hinge in (("linf", "target"), ("l2", "example")):
        bounds = members(20, num_images=30, pixels=10, seed=2)
        fitted = RobBoost(hinge=hinge, tolerance=1e-9).fit(bounds, ThreatModel(norm=norm, epsilon=EPSILON[norm]))  # type: ignore[arg-type]
        assert fitted.lower is not None and 0 <= fitted.objective - fitted.lower <= 1e-9 * max(1, fitted.objective)


@pytest.mark.parametrize("sizes", [[1e12] * 4, [1.0, 1e3, 1e8, 1e12]])
def test_bounds_as_large_as_interval_bounds_of_deep_networks_end_within_the_tolerance(sizes: list[float]) -> None:
    for seed in range(3):
        bounds = members(4, seed=seed, slopes=False)
        clean = torch.ones_like(bounds[0].offsets)
        # The larger ones are too loose to prove anything.
        shifts = [0 if size == min(sizes) else 1 for size in sizes]
        bounds = [
            replace(b, offsets=(b.offsets - shift) * size, clean=clean)
            for b, size, shift in zip(bounds, sizes, shifts, strict=True)
        ]
        fitted = RobBoost().fit(bounds, ThreatModel())
        assert fitted.lower is not None and fitted.objective - fitted.lower <= 1e-7 * max(1, fitted.objective)


def test_a_search_that_is_cut_short_has_a_lower_bound_all_the_same() -> None:
    threat = ThreatModel(epsilon=0.1)
    fitted, whole = (RobBoost(planes=planes).fit(members(6, num_images=20), threat) for planes in (3, 200))
    assert len(fitted.objectives) == 3
    assert fitted.lower is not None and whole.lower is not None
    assert fitted.lower <= whole.objective <= fitted.objective and fitted.lower < whole.lower


def test_the_nearest_point_below_the_planes_is_the_quadratic_programmes() -> None:
    cp = pytest.importorskip("cvxpy")
    random = np.random.default_rng(0)
    for _ in range(20):
        point, inner = random.dirichlet(np.ones(6)), random.dirichlet(np.ones(6))
        slopes = random.normal(size=(5, 6))
        slopes -= (slopes @ inner)[:, None] - 0.1
        w = cp.Variable(6, nonneg=True)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(w - point)), [cp.sum(w) == 1, slopes @ w <= 0.11])
        problem.solve(solver=cp.CLARABEL)
        found = cutting_planes._nearest(point, np.ones(6), slopes, 0.11)
        assert found is not None and found.sum() == pytest.approx(1) and (found >= 0).all()
        assert (slopes @ found <= 0.11 + 1e-9).all()
        np.testing.assert_allclose(found, w.value, atol=1e-4)


@pytest.mark.parametrize("solver", ["cutting_planes", "coordinate"])
def test_removed_members_have_weight_zero_and_the_rest_is_fitted_again(solver: str) -> None:
    threat = ThreatModel(epsilon=0.1)
    bounds = members(5, num_images=12, seed=4)
    everyone = RobBoost(solver=solver).fit(bounds, threat)  # type: ignore[arg-type]
    fitted = RobBoost(solver=solver, members=2).fit(bounds, threat)  # type: ignore[arg-type]
    kept = fitted.weights.nonzero().flatten().tolist()
    assert len(kept) == 2 and fitted.objective > everyone.objective
    alone = RobBoost(solver=solver).fit([bounds[t] for t in kept], threat)  # type: ignore[arg-type]
    assert fitted.objective == pytest.approx(alone.objective, abs=2e-7)


def test_every_removal_is_the_one_that_a_fit_of_all_the_rests_chooses() -> None:
    threat = ThreatModel(epsilon=0.1)
    for seed in range(2):
        bounds = members(4, num_images=8, seed=seed)
        kept, step = list(range(4)), 0.0
        used = RobBoost().fit(bounds, threat).weights
        kept = [t for t in kept if used[t] > 0]
        while len(kept) > 2:
            rests = [[s for s in kept if s != t] for t in kept]
            fits = [RobBoost().fit([bounds[s] for s in rest], threat) for rest in rests]
            step, best = min((fitted.objective, i) for i, fitted in enumerate(fits))
            kept = [t for t, weight in zip(rests[best], fits[best].weights, strict=True) if weight > 0]
        fitted = RobBoost(members=2).fit(bounds, threat)
        assert fitted.weights.nonzero().flatten().tolist() == kept
        assert fitted.objective == pytest.approx(step, abs=2e-7)
        assert fitted.lower is not None and fitted.objective - fitted.lower <= 1e-7 * max(1, fitted.objective)


def test_limits_on_parameters_and_multiply_adds_hold_and_members_beyond_them_are_out_at_once() -> None:
    threat = ThreatModel(epsilon=0.1)
    bounds = members(5, num_images=12, seed=4)
    parameters, multiply_adds = [5, 1, 2, 3, 4], [10, 30, 20, 10, 99]
    fitted = RobBoost(parameters=5, multiply_adds=40).fit(
        bounds, threat, parameters=parameters, multiply_adds=multiply_adds
    )
    kept = fitted.weights.nonzero().flatten().tolist()
    assert sum(parameters[t] for t in kept) <= 5 and sum(multiply_adds[t] for t in kept) <= 40
    assert kept and 4 not in kept
    # Nothing is removed where all are within the limit.
    wide = RobBoost(parameters=15).fit(bounds, threat, parameters=parameters)
    assert torch.equal(wide.weights, RobBoost().fit(bounds, threat).weights)


def test_limits_that_cannot_be_kept_or_checked_are_refused() -> None:
    bounds, threat = members(2), ThreatModel(epsilon=0.1)
    with pytest.raises(InputError, match="No single member is within"):
        RobBoost(parameters=5).fit(bounds, threat, parameters=[6, 7])
    with pytest.raises(InputError, match=r"RobBoost\.parameters limits what it is not told"):
        RobBoost(parameters=5).fit(bounds, threat)
    for field in ("members", "parameters", "multiply_adds", "planes"):
        with pytest.raises(InputError, match=rf"RobBoost\.{field}"):
            RobBoost(**{field: 0})
    for tolerance in (float("nan"), 0.0, 1e-12):
        with pytest.raises(InputError, match=r"RobBoost\.tolerance"):
            RobBoost(tolerance=tolerance)
    for field in ("hinge", "solver"):
        with pytest.raises(InputError, match=rf"RobBoost\.{field}"):
            RobBoost(**{field: "other"})


def test_members_bounded_around_different_images_are_refused() -> None:
    inside, threat = members(2, inside=True), ThreatModel(epsilon=0.1)
    elsewhere = replace(inside[1], images=1 - inside[1].images)  # type: ignore[operator]
    for other in (replace(inside[1], images=None), elsewhere):
        for bounds in ([inside[0], other], [other, inside[0]]):
            with pytest.raises(InputError, match="Member 1 is bounded around other images"):
                RobBoost().fit(bounds, threat)
            with pytest.raises(InputError, match="Member 1 is bounded around other images"):
                joint_margins(bounds, [0.5, 0.5], [1.0, 1.0])
    # A member without slopes holds wherever the others do.
    plain = replace(inside[1], images=None, slopes=None)
    assert joint_margins([plain, inside[0]], [0.5, 0.5], [1.0, 1.0]).images is inside[0].images
    assert RobBoost().fit([inside[0], plain], threat).objective > 0


def test_slopes_that_are_not_finite_are_refused() -> None:
    good, bad = members(2)
    assert bad.slopes is not None
    bad.slopes[0, 1, 2] = torch.nan
    with pytest.raises(InputError, match="Member 1 has bounds that are not finite"):
        RobBoost().fit([good, bad], ThreatModel())


def test_the_label_rows_of_the_slopes_do_not_matter() -> None:
    bounds, threat = members(3), ThreatModel(epsilon=0.1)
    own = torch.isposinf(bounds[0].offsets)[:, :, None]
    changed = [replace(b, slopes=b.slopes.masked_fill(own, 1e30)) for b in bounds]  # type: ignore[union-attr]
    assert RobBoost().fit(changed, threat).objectives == RobBoost().fit(bounds, threat).objectives


def test_the_joint_clean_margins_are_the_ensembles() -> None:
    inf = torch.inf
    first, second = (LinearMargins(torch.tensor([[inf, 1.0]]), clean=torch.tensor([[inf, c]])) for c in (2.0, 6.0))
    joint = joint_margins([first, second], [0.25, 0.75], [1.0, 1.0])
    assert joint.clean is not None and joint.clean.tolist() == [[inf, 5.0]]
    assert joint_margins([first, replace(second, clean=None)], [0.25, 0.75], [1.0, 1.0]).clean is None
