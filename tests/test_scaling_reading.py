"""The reading of scaling studies: laws, frontiers and comparisons, and what cells do not bear."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import least_squares

from robust_nas import records
from robust_nas.core.errors import InputError
from robust_nas.records import plain
from robust_nas.records.reading import SIZES, Law, Reading
from robust_nas.records.scaling import CellRow, StudyRecord
from robust_nas.studies.scaling import measured, power, reading
from robust_nas.studies.scaling.comparisons import compared, stages
from robust_nas.studies.scaling.frontier import at_equal_cost, frontier, within
from robust_nas.studies.scaling.laws import joint, law
from robust_nas.studies.scaling.measured import samples

DEPTHS = (8, 14, 26, 50, 98)
Made = Callable[..., StudyRecord]


def over_depth(study: StudyRecord) -> Law:
    """The law of robust error over depth."""
    (sample,) = samples(study, "robust")
    return law(sample, "depth")


def test_a_law_without_noise_is_found_exactly(made_study: Made) -> None:
    found = over_depth(made_study(lambda depth, width: 0.3 + 0.9 * depth**-0.8, DEPTHS, noise=0, seeds=1))
    assert found.fit is not None
    assert found.fit.irreducible.value == pytest.approx(0.3, abs=1e-3)
    assert found.fit.scale.value == pytest.approx(0.9, rel=1e-2)
    assert found.fit.exponent.value == pytest.approx(0.8, rel=1e-2)


@pytest.mark.parametrize("terms", [1, 2])
def test_the_fit_is_that_of_scipy_from_many_starts(terms: int) -> None:
    random = np.random.default_rng(terms)
    sizes = [np.tile(np.geomspace(1e4, 4e5, 6), 3), np.repeat([1.0, 2.0, 4.0], 6)][:terms]
    errors = (0.3 + 2 * sizes[0] ** -0.3 + (0.1 / sizes[-1] if terms == 2 else 0)) * np.exp(random.normal(0, 0.02, 18))
    errors[4] *= 1.2  # far away, so that the Huber loss is not that of least squares
    found = power.fit(sizes, errors[None], delta=0.02)
    scaled = [size / np.exp(np.log(size).mean()) for size in sizes]

    def distances(values: np.ndarray[Any, Any]) -> Any:
        law = values[0] + sum(values[2 * j + 1] * own ** -values[2 * j + 2] for j, own in enumerate(scaled))
        return np.log(law / errors)

    starts = itertools.product((0.0, 0.25), *((0.1, 0.5, 2.0) for _ in range(terms)))
    ends = [
        least_squares(
            distances, [start[0], *itertools.chain.from_iterable((0.2, own) for own in start[1:])], loss="huber",
            f_scale=0.02, bounds=(0, [1.0, *[np.inf, 8.0] * terms]), xtol=1e-12, ftol=1e-12, gtol=1e-12,
        )
        for start in starts
    ]  # fmt: skip
    best = min(ends, key=lambda end: end.cost)
    assert found.loss[0] == pytest.approx(best.cost, rel=1e-6)
    assert found.coefficients[0, 0] == pytest.approx(best.x[0], abs=2e-4)
    assert found.exponents[0] == pytest.approx(best.x[2::2], abs=2e-3)


def test_the_intervals_cover_a_known_law_about_as_often_as_they_say(
    made_study: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "RESAMPLES", 120)

    def true(depth: float, width: float = 1.0) -> float:
        return 0.3 + 0.9 * depth**-0.8

    hits = []
    for trial in range(24):
        found = over_depth(made_study(true, DEPTHS, noise=0.02, seeds=3, random=trial))
        assert found.fit is not None and found.held_out is not None
        middle = min(found.fit.curve, key=lambda point: abs(point.size - 30))
        intervals = [(middle.error, true(middle.size)), (found.fit.irreducible, 0.3), (found.fit.exponent, 0.8)]
        intervals += [(found.held_out.difference, 0.0)]
        hits.append([own.low <= value <= own.high for own, value in intervals])  # type: ignore[operator]
    # At 95 %, fewer than 19 of 24 happen once in a thousand times.
    assert (np.sum(hits, axis=0) >= 19).all(), np.mean(hits, axis=0)


@pytest.mark.parametrize(
    ("true", "depths", "settings", "reason"),
    [
        (lambda depth, width: 0.5, DEPTHS, {}, "does not fall with depth"),
        (lambda depth, width: 0.3 + depth / 1000, DEPTHS, {}, "does not fall with depth"),
        (lambda depth, width: 0.3 + 1 / depth, DEPTHS[:3], {}, "needs 4 different sizes at least"),
        (lambda depth, width: 0.3 + 3 / depth, (20, 26, 32, 38), {}, "1.9 times the smallest in depth"),
        (lambda depth, width: 0.3 + 1 / depth, DEPTHS, {"seeds": 1}, "has one seed"),
        (lambda depth, width: 0.3 + 1 / depth + 0.1 * (depth > 90), DEPTHS, {}, "off by more than the seeds' chance"),
        (lambda depth, width: 0.4 + 0.2 * (depth < 10), DEPTHS, {"noise": 0.002}, "smallest sizes alone"),
        (lambda depth, width: 0.5 - 0.012 * math.log(depth), DEPTHS[:4], {"noise": 0.02}, "wider than all that"),
    ],
)  # fmt: skip
def test_what_cells_do_not_bear_is_refused_with_the_reason_and_nothing_is_drawn_beyond(
    made_study: Made, true: Any, depths: tuple[int, ...], settings: dict[str, Any], reason: str
) -> None:
    found = over_depth(made_study(true, depths, **{"noise": 0.01, **settings}))
    assert found.refusal is not None and reason in found.refusal and found.refusal.endswith(".")
    assert found.refusal.count(". ") == 0  # one sentence
    assert found.fit is None or not any(point.beyond for point in found.fit.curve)


def test_a_law_that_holds_goes_on_to_four_times_the_largest_size(made_study: Made) -> None:
    found = over_depth(made_study(lambda depth, width: 0.3 + 1 / depth, DEPTHS, noise=0.01))
    assert found.refusal is None and found.fit is not None and found.held_out is not None
    assert found.fit.curve[-1].beyond and found.fit.curve[-1].size == pytest.approx(4 * 98)
    assert found.held_out.size == 98


def test_depth_and_width_of_least_error_at_a_cost_are_those_of_the_lagrangian(made_study: Made) -> None:
    study = made_study(
        lambda depth, width: 0.2 + 1.2 * depth**-0.7 + 0.12 * width**-0.9, DEPTHS, (0.5, 1, 2, 4), noise=0, seeds=1
    )
    (sample,) = samples(study, "robust")
    found = joint(sample)
    inside = [balance for balance in found.balances if balance.at_edge is None]
    assert inside
    for balance in inside:
        # The cost is depth times width squared: both derivatives over its logarithm are equal.
        deep = 0.7 * 1.2 * balance.depth.value**-0.7
        wide = 0.9 * 0.12 * balance.width.value**-0.9 / 2
        assert deep == pytest.approx(wide, rel=0.05)
        assert 1e6 * balance.depth.value * balance.width.value**2 == pytest.approx(balance.multiply_adds, rel=0.02)


def test_two_widths_bear_no_law_of_depth_and_width_together(made_study: Made) -> None:
    (sample,) = samples(made_study(lambda depth, width: 0.2 + 1 / depth + 0.1 / width, DEPTHS, (1, 2)), "robust")
    assert "3 depths and 3 widths at least" in str(joint(sample).refusal)


def test_the_front_is_that_of_a_brute_force(made_study: Made) -> None:
    study = made_study(lambda depth, width: 0.4, DEPTHS, (0.5, 1, 2), noise=0.1, random=3)
    (sample,) = samples(study, "robust")
    found = frontier(sample, "multiply_adds")
    for own in found.networks:
        beaten = any(
            other.cost <= own.cost
            and other.error.value <= own.error.value
            and (other.cost, other.error.value) != (own.cost, own.error.value)
            for other in found.networks
        )
        assert own.on_front is not beaten
        rows = [row for row in study.cells if row.network == own.network]
        assert own.error.value == pytest.approx(np.mean([1 - row.robust.accuracy for row in rows if row.robust]))
    shares = {own.network: own.share for own in found.networks}
    assert shares == {own.network: own.share for own in frontier(sample, "multiply_adds").networks}
    assert all(share is not None and round(share * measured.RESAMPLES, 6) % 1 == 0 for share in shares.values())


def test_pairs_of_equal_cost_have_scipys_paired_interval_and_their_verdict(made_study: Made) -> None:
    study = made_study(lambda depth, width: 0.3 + 1 / depth, (10, 40), (1, 2), noise=0.02, seeds=4)
    (sample,) = samples(study, "robust")
    (pair,) = at_equal_cost(sample, "multiply_adds")
    assert (pair.deeper, pair.wider, pair.verdict) == ("net-40 width=1", "net-10 width=2", "deeper")
    errors = {
        name: [1 - row.robust.accuracy for row in study.cells if row.network == name and row.robust]
        for name in (pair.deeper, pair.wider)
    }
    interval = stats.ttest_rel(errors[pair.deeper], errors[pair.wider]).confidence_interval()
    assert (pair.difference.low, pair.difference.high) == pytest.approx(tuple(interval))
    same = made_study(lambda depth, width: 0.4, (10, 40), (1, 2), noise=0.02, seeds=4)
    assert at_equal_cost(samples(same, "robust")[0], "multiply_adds")[0].verdict == "not decided"


def test_settings_are_compared_in_pairs_of_network_and_seed_and_never_fitted_together(made_study: Made) -> None:
    varied = [
        {"train.norm": norm, "train.method.clean_images": share}
        for norm in ("batch", "mixture")
        for share in ("0", "1")
    ]

    def true(depth: int, width: float, **own: str) -> float:
        return 0.3 + 1 / depth - 0.05 * (own["train.norm"] == "mixture")

    study = made_study(true, DEPTHS, noise=0.02, varied=varied)
    every = samples(study, "robust")
    found = {(own.first, own.second): own for own in compared(every)}
    assert set(found) == {
        ("norm=batch, clean_images=0", "norm=batch, clean_images=1"),
        ("norm=batch, clean_images=0", "norm=mixture, clean_images=0"),
        ("norm=batch, clean_images=1", "norm=mixture, clean_images=1"),
        ("norm=mixture, clean_images=0", "norm=mixture, clean_images=1"),
    }
    errors: dict[str, list[float]] = {"batch": [], "mixture": []}
    for row in study.cells:
        if row.varied["train.method.clean_images"] == "0" and row.robust:
            errors[row.varied["train.norm"]].append(1 - row.robust.accuracy)
    own = found["norm=batch, clean_images=0", "norm=mixture, clean_images=0"]
    interval = stats.ttest_rel(errors["mixture"], errors["batch"]).confidence_interval()
    assert (own.difference.low, own.difference.high) == pytest.approx(tuple(interval))
    assert own.num_pairs == len(DEPTHS) * 3 and own.difference.high < 0  # type: ignore[operator]
    for sample in every:
        alone = replace(study, cells=tuple(row for row in study.cells if row.name in names_of(sample, study)))
        assert law(sample, "depth").fit == law(samples(alone, "robust")[0], "depth").fit


def names_of(sample: Any, study: StudyRecord) -> set[str]:
    """The names of a sample's cells."""
    varied = sample.networks[0].row.varied
    return {row.name for row in study.cells if row.varied == varied}


def test_the_effect_of_each_stage_is_found_where_the_grid_tells_it(made_study: Made) -> None:
    widths = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (1, 2, 2)]

    def true(depth: int, width: tuple[float, ...]) -> float:
        return 0.5 * float(np.prod([2 * own**2 for own in width[1:2]])) ** -0.1  # the second stage alone

    (sample,) = samples(made_study(true, (14,), widths, noise=0.003), "robust")
    effects = [own.effect for own in stages(sample).effects]
    assert effects[1].value == pytest.approx(2**-0.1 - 1, abs=5e-3)
    assert [own.low <= 0 <= own.high for own in effects] == [True, False, True]  # type: ignore[operator]
    (sample,) = samples(made_study(lambda depth, width: 0.3 + 1 / depth, DEPTHS, (1, 2)), "robust")
    assert "does not tell where capacity helps" in str(stages(sample).refusal)


@pytest.fixture(scope="module")
def few_draws() -> Iterator[None]:
    """Fewer bootstrap samples, for tests in which their number does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured, "RESAMPLES", 30)
        yield


@pytest.fixture(scope="module")
def study(few_draws: None, made_study: Made) -> StudyRecord:
    """A study of five depths and two widths."""
    return made_study(lambda depth, width: 0.3 + 1 / depth + 0.03 / width, DEPTHS, (1, 2), noise=0.02)


@pytest.fixture(scope="module")
def found(study: StudyRecord) -> Reading:
    """Its reading."""
    return reading.read(study)


def test_published_points_enter_no_number(study: StudyRecord, found: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(own.depth, own.robust) for own in found.published] == [(152, 0.422), (638, 0.467)]
    monkeypatch.setattr(reading, "PUBLISHED", ())
    assert reading.read(study) == replace(found, published=())


def test_cells_that_did_not_finish_change_no_number_and_are_told(study: StudyRecord, found: Reading) -> None:
    ends: list[Any] = ["waiting", "diverged", "out of memory", "failed"]
    nothing: dict[str, Any] = {"clean": None, "robust": None, "attacks": {}, "seconds": None}
    last = tuple(
        replace(row, name=f"{row.name}-{place}", seed=9, status=end, reason="A reason.", **nothing)
        for place, (row, end) in enumerate(zip(study.cells, ends, strict=False))
    )
    # One that diverged after it was attacked does not exist; its numbers would not count either.
    last += (replace(study.cells[0], name="odd", seed=10, status="diverged"),)
    more = reading.read(replace(study, cells=study.cells + last))
    names = ("laws", "joint", "frontiers", "equal_cost", "stages", "within", "compared")
    assert [getattr(more, name) for name in names] == [getattr(found, name) for name in names]
    assert (
        more.findings[1] == "2 diverged, 1 ran out of memory, 1 failed and 1 wait; such cells are in no number below."
    )
    assert more.findings[2:] == found.findings[1:]


def test_a_budget_has_the_best_network_within_it_and_a_prediction_inside_the_measured_ones_alone(
    study: StudyRecord,
) -> None:
    (sample,) = samples(study, "robust")
    over_training = law(sample, "training_flops")
    flops = sorted({row.training_flops for row in study.cells})
    for budget, is_inside in ((flops[0] / 2, False), (flops[4] * 1.01, True), (2 * flops[-1], False)):
        own = within(sample, over_training, budget)
        inside = {row.network for row in study.cells if row.training_flops <= budget}
        errors = {
            name: np.mean([1 - row.robust.accuracy for row in study.cells if row.network == name and row.robust])
            for name in inside
        }
        assert own.network == (min(errors, key=lambda name: errors[name]) if errors else None)
        assert (own.predicted is not None) is is_inside and (own.refusal is None) is is_inside
    with pytest.raises(InputError, match="training FLOPs above 0"):
        reading.read(study, -1.0)


def test_a_reading_is_text_facts_and_a_table(study: StudyRecord, found: Reading) -> None:
    text = reading.text(found)
    assert all(row.network in text for row in study.cells)
    assert all(len(line) <= 120 for line in text.splitlines())
    facts = json.loads(json.dumps(plain(found), allow_nan=False))
    assert records.build(Reading, facts, Path("facts.json")) == found
    frame = found.to_frame()
    assert list(frame["name"]) == [row.name for row in study.cells]
    assert frame["robust"].tolist() == [row.robust.accuracy for row in study.cells if row.robust]
    assert found.findings[0] in repr(found).replace("\n        ", " ")
    assert set(SIZES) == {own.over for own in found.laws}


def test_no_interval_of_an_error_ends_above_1(made_study: Made) -> None:
    study = made_study(lambda depth, width: min(0.96 + depth / 10_000, 1), DEPTHS, noise=0.01)
    cells = tuple(row for row in study.cells if row.robust and row.robust.accuracy >= 0)
    (sample,) = samples(replace(study, cells=cells), "robust")
    assert max(own.error.high or 0 for own in frontier(sample, "parameters").networks) <= 1


def test_a_study_in_which_nothing_finished_is_read(study: StudyRecord) -> None:
    nothing: dict[str, Any] = {"status": "waiting", "clean": None, "robust": None, "attacks": {}}
    cells: tuple[CellRow, ...] = tuple(replace(row, **nothing) for row in study.cells)
    found = reading.read(replace(study, cells=cells))
    assert found.findings == ("0 of 30 cells finished.", "30 wait; such cells are in no number below.")
    assert not found.laws and "0 of 30" in reading.text(found)
