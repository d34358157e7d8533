"""Statistics of a table: against closed forms, brute force, SciPy on the raw numbers, and published values."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from robust_nas import tables
from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.tables import Row, Table
from robust_nas.tables.statistics import (
    compare,
    compare_searches,
    describe,
    holm,
    main_effects,
    names_of,
    rank_correlations,
    summarise,
    tied_with_best,
)

OPERATIONS = ("nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
CELLS = list(Architecture.enumerate(3, OPERATIONS))
CELLS_4 = [Architecture.parse(digits) for digits in ("222222", "333333", "444444", "232323")]


def make_row(cell: Architecture, accuracy: float, **values: Any) -> Row:
    defaults: dict[str, Any] = {
        "architecture": str(cell), "canonical": cell.canonical, "function": cell.function, "space": "cells",
        "skeleton": "channels=8", "dataset": "digits", "split": "test", "recipe": "pgd_at", "recipe_hash": None,
        "seed": 0, "attack": "clean", "norm": None, "epsilon": None, "evaluation_hash": None, "accuracy": accuracy,
        "num_images": 360, "version": None, "hardware": None, "source": "s", "model": None, "started": None,
    }  # fmt: skip
    return Row(**{**defaults, **values})


PGD: dict[str, Any] = {"attack": "pgd", "norm": "linf", "epsilon": 8 / 255}


@pytest.fixture
def table_of(tmp_path: Path) -> Callable[[Sequence[Row]], Table]:
    def table_of(rows: Sequence[Row]) -> Table:
        tables.append(tmp_path / "table", rows)
        return Table(tmp_path / "table")

    return table_of


def test_importing_the_statistics_does_not_import_scipy() -> None:
    code = "import sys, robust_nas.tables.statistics; sys.exit(bool({'scipy', 'pandas', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Rank correlations


def ranks(values: Sequence[float]) -> list[int]:
    return [sum(other < value for other in values) for value in values]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The closed form without ties."""
    squares = sum((one - other) ** 2 for one, other in zip(ranks(a), ranks(b), strict=True))
    return 1 - 6 * squares / (len(a) * (len(a) ** 2 - 1))


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Concordant minus discordant pairs, by counting."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    return sum(np.sign((a[i] - a[j]) * (b[i] - b[j])) for i, j in pairs) / len(pairs)


def test_rank_correlations_are_those_of_the_classes_that_both_columns_have(
    table_of: Callable[[Sequence[Row]], Table],
) -> None:
    generator = np.random.default_rng(0)
    clean, pgd = generator.permutation(27) / 27, generator.permutation(27) / 54
    rows = [make_row(cell, value) for cell, value in zip(CELLS, clean, strict=True)]
    rows += [make_row(cell, value, **PGD) for cell, value in zip(CELLS[:20], pgd[:20], strict=True)]
    table = table_of(rows)
    columns = table.select()
    for method, measure in (("spearman", spearman), ("kendall", kendall)):
        expected = measure(clean[:20], pgd[:20])
        found = rank_correlations(table, columns, method=method)  # type: ignore[arg-type]
        assert found == pytest.approx(np.array([[1, expected], [expected, 1]]))
    with pytest.raises(InputError, match="spearman and kendall"):
        rank_correlations(table, columns, method="pearson")  # type: ignore[arg-type]


def test_the_top_is_chosen_by_the_column_asked_for_or_by_the_rows_own(
    table_of: Callable[[Sequence[Row]], Table],
) -> None:
    generator = np.random.default_rng(1)
    clean, pgd = generator.permutation(27) / 27, generator.permutation(27) / 54
    table = table_of(
        [make_row(cell, value) for cell, value in zip(CELLS, clean, strict=True)]
        + [make_row(cell, value, **PGD) for cell, value in zip(CELLS, pgd, strict=True)]
    )
    columns = table.select()
    within = [np.argsort(-values)[:9] for values in (clean, pgd)]  # the best third
    by_clean, by_pgd = (spearman(clean[best], pgd[best]) for best in within)
    assert by_clean != pytest.approx(by_pgd)
    assert rank_correlations(table, columns, top=1 / 3, by=columns[0])[1, 0] == pytest.approx(by_clean)
    own = rank_correlations(table, columns, top=1 / 3)
    assert (own[0, 1], own[1, 0]) == pytest.approx((by_clean, by_pgd))
    with pytest.raises(InputError, match="share in"):
        rank_correlations(table, columns, top=10)


def test_a_column_that_does_not_vary_has_no_rank_correlation(table_of: Callable[[Sequence[Row]], Table]) -> None:
    table = table_of(
        [make_row(cell, i / 9) for i, cell in enumerate(CELLS[:9])] + [make_row(c, 0.1, **PGD) for c in CELLS]
    )
    matrix = rank_correlations(table, table.select())
    assert matrix[0, 0] == 1 and np.isnan(matrix[[0, 1, 1], [1, 0, 1]]).all()


def test_clean_and_pgd_rank_alike_over_all_classes_and_not_among_the_best(robbench: Table) -> None:
    columns = [robbench.column(label, dataset="cifar10") for label in ("clean", "pgd@8/255")]
    assert rank_correlations(robbench, columns)[0, 1] == pytest.approx(0.985, abs=5e-4)
    assert rank_correlations(robbench, columns, top=0.1, by=columns[0])[0, 1] == pytest.approx(0.55, abs=5e-3)


# Differences


def test_holm_corrects_as_the_procedure_by_hand() -> None:
    # .005 x 4, .01 x 3, .03 x 2, and .04 x 1 is not below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0] and holm([]) == []


def test_with_means_only_a_difference_is_tested_against_the_noise_of_identical_functions(
    table_of: Callable[[Sequence[Row]], Table],
) -> None:
    accuracies, functions = (0.50, 0.52, 0.70, 0.74), "ffgg"
    table = table_of(
        [
            make_row(cell, accuracy, function=function)
            for cell, accuracy, function in zip(CELLS_4, accuracies, functions, strict=True)
        ]
    )
    floor = math.sqrt((2 * 0.01**2 + 2 * 0.02**2) / 2)  # two groups, a degree of freedom each
    found = compare(table, ["333333", CELLS_4[2], "232323"])
    expected = [2 * stats.norm.sf(abs(difference) / (math.sqrt(2) * floor)) for difference in (-0.18, -0.22, -0.04)]
    assert [item.difference for item in found] == pytest.approx([-0.18, -0.22, -0.04])
    assert [item.standard_error for item in found] == pytest.approx([math.sqrt(2) * floor] * 3)
    assert [item.p_value for item in found] == pytest.approx(expected)
    # The smallest is the second's: it counts three times, the first twice, the third once.
    assert [item.p_holm for item in found] == pytest.approx([2 * expected[0], 3 * expected[1], expected[2]])
    assert [item.is_distinguishable for item in found] == [True, True, False]
    assert {item.test for item in found} == {"noise floor"}
    # The best is .74: 1.96 x sqrt(2) x .0224 below it is .678, and 7.13 x sqrt(2) x .0224 below it is .515.
    assert tied_with_best(table) == 2 and tied_with_best(table, level=1e-12) == 3


def test_trainings_are_tested_as_scipy_tests_them(table_of: Callable[[Sequence[Row]], Table]) -> None:
    generator = np.random.default_rng(2)
    first, second = 0.5 + 0.01 * generator.normal(size=5), 0.52 + 0.03 * generator.normal(size=3)
    table = table_of(
        [
            make_row(cell, value, seed=seed)
            for cell, values in ((CELLS[0], first), (CELLS[1], second))
            for seed, value in enumerate(values.tolist())
        ]
    )
    (found,) = compare(table, CELLS[:2], "clean")
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert (found.test, found.p_value) == ("Welch", pytest.approx(expected.pvalue))
    assert found.standard_error == pytest.approx(math.hypot(stats.sem(first), stats.sem(second)))
    assert (found.first_accuracy, found.second_accuracy) == pytest.approx((first.mean(), second.mean()))
    assert found.p_holm == found.p_value


def test_what_the_table_cannot_tell_is_missing_and_does_not_count_as_a_test(
    table_of: Callable[[Sequence[Row]], Table],
) -> None:
    rows = [make_row(CELLS[0], value, seed=seed) for seed, value in enumerate((0.5, 0.51, 0.53))]
    rows += [make_row(CELLS[1], value, seed=seed) for seed, value in enumerate((0.6, 0.62, 0.63))]
    rows += [make_row(CELLS[2], 0.7)]  # trained once
    rows += [make_row(cell, 0.4, seed=seed, **PGD) for cell in CELLS[:2] for seed in range(3)]  # no spread
    found = compare(table_of(rows), CELLS[:3])
    assert [(item.column.label, item.p_value is None) for item in found] == [
        ("clean", False),
        ("pgd@8/255", True),
        ("clean", True),
        ("clean", True),
    ]
    assert found[0].p_holm == found[0].p_value
    assert all(item.test is item.standard_error is item.p_holm is item.is_distinguishable is None for item in found[1:])


def test_a_comparison_that_means_nothing_is_refused(table_of: Callable[[Sequence[Row]], Table]) -> None:
    table = table_of([make_row(CELLS_4[0], 0.5), make_row(CELLS_4[1], 0.5, **PGD), make_row(CELLS[0], 0.4)])
    with pytest.raises(InputError, match="at least two"):
        compare(table, ["222222"])
    with pytest.raises(InputError, match="equivalent"):
        compare(table, ["222222", CELLS_4[0]])
    with pytest.raises(InputError, match="No column that fits has both 222222 and 333333"):
        compare(table, ["222222", "333333"])


def test_the_best_two_of_cifar10_are_not_distinguishable_and_the_best_and_the_median_are(robbench: Table) -> None:
    best, second = robbench.top(2, "pgd@8/255", dataset="cifar10")
    middle = robbench.top(3233, "pgd@8/255", dataset="cifar10")[-1]
    found = compare(robbench, [item.architecture for item in (best, second, middle)], "pgd@8/255", dataset="cifar10")
    # A pooled standard deviation of .32 points: 48.11 and 47.79 are one of them apart.
    assert found[0].p_value == pytest.approx(2 * stats.norm.sf(0.32 / (math.sqrt(2) * 0.3225)), abs=0.01)
    assert [item.is_distinguishable for item in found] == [False, True, True]


def test_at_five_percent_about_as_many_identical_functions_are_taken_for_different(robbench: Table) -> None:
    groups: dict[str, list[str]] = {}
    for function, form in zip(robbench.functions, robbench.architectures, strict=True):
        groups.setdefault(function, []).append(form)
    pairs = [forms[:2] for forms in groups.values() if len(forms) > 1]
    found = [compare(robbench, pair, "pgd@8/255", dataset="cifar10")[0].is_distinguishable for pair in pairs]
    assert len(pairs) > 600
    # The binomial distribution's 99.9 % range around 5 %.
    assert stats.binom.ppf(0.0005, len(pairs), 0.05) <= sum(found) <= stats.binom.ppf(0.9995, len(pairs), 0.05)


def test_searches_are_compared_over_pairs_of_seeds() -> None:
    best = {"a": [1.0, 2.0, 3.0, 4.0, 5.0], "b": [0.5, 1.0, 1.5, 2.0, 2.5], "c": [1.0, 2.0, 3.0, 4.0, 5.0]}
    a_b, a_c, b_c = compare_searches(best)
    # All of five differences have one sign, which happens by chance in 2 of 32 cases.
    assert (a_b.first, a_b.second, a_b.num_seeds, a_b.difference) == ("a", "b", 5, 1.5)
    assert a_b.p_value == pytest.approx(2 / 32) and a_b.p_holm == pytest.approx(3 * 2 / 32)
    assert a_b.low < 1.5 < a_b.high and a_b.low >= 0.5 and a_b.high <= 2.5
    assert (a_c.difference, a_c.low, a_c.high, a_c.p_value) == (0, 0, 0, 1)
    assert (b_c.difference, b_c.p_value) == (-1.5, a_b.p_value)
    with pytest.raises(InputError, match="a with 5 seeds, b with 1 seeds"):
        compare_searches({"a": best["a"], "b": [1.0]})


def test_the_bootstrap_interval_is_the_normal_one_for_many_seeds_and_repeats() -> None:
    generator = np.random.default_rng(3)
    common = generator.normal(size=400)  # the luck of the start, which both share
    first, second = common + 0.1 * generator.normal(size=400), common + 0.1 * generator.normal(size=400)
    (found,) = compare_searches({"a": first.tolist(), "b": second.tolist()})
    middle, error = (first - second).mean(), stats.sem(first - second)
    assert (found.low, found.high) == pytest.approx((middle - 1.96 * error, middle + 1.96 * error), abs=0.1 * error)
    assert compare_searches({"a": first.tolist(), "b": second.tolist()}) == [found]


# Main effects


def full_table(table_of: Callable[[Sequence[Row]], Table], values: NDArray[np.float64]) -> Table:
    """Return a table of all cells of three operations on three edges, with values [3, 3, 3] in the strings' order."""
    assert len({cell.canonical for cell in CELLS}) == 27
    return table_of([make_row(cell, value) for cell, value in zip(CELLS, values.ravel().tolist(), strict=True)])


def test_the_effects_of_an_additive_table_are_its_terms(table_of: Callable[[Sequence[Row]], Table]) -> None:
    terms = np.array([[-0.1, 0.0, 0.1], [0.02, -0.04, 0.02], [0.0, 0.0, 0.0]])
    values = 0.5 + terms[0][:, None, None] + terms[1][:, None] + terms[2]
    found = main_effects(full_table(table_of, values))
    assert (found.edges, found.operations) == (((0, 1), (0, 2), (1, 2)), OPERATIONS)
    assert found.mean == pytest.approx(0.5)
    assert found.effects == pytest.approx(terms)
    squares = np.array([0.02 / 3, 0.0024 / 3, 0])
    assert found.edge_shares == pytest.approx(squares / squares.sum())
    assert found.pair_shares == pytest.approx(np.zeros((3, 3))) and found.rest_share == pytest.approx(0)


def test_an_effect_that_takes_two_edges_belongs_to_the_pair_and_one_of_three_to_the_rest(
    table_of: Callable[[Sequence[Row]], Table],
) -> None:
    # Products of contrasts that sum to zero are orthogonal to everything else; their mean squares are known.
    contrast = np.array([-1.0, 0.0, 1.0])  # mean square 2/3
    pair, triple = contrast[:, None, None] * contrast, contrast[:, None, None] * contrast[:, None] * contrast
    found = main_effects(full_table(table_of, 0.5 + 0.1 * pair + 0.05 * triple))
    expected = 0.01 * (2 / 3) ** 2, 0.0025 * (2 / 3) ** 3
    assert found.effects == pytest.approx(np.zeros((3, 3)))
    assert found.pair_shares[0, 2] == pytest.approx(expected[0] / sum(expected))
    assert found.pair_shares.sum() == pytest.approx(found.pair_shares[0, 2])
    assert found.rest_share == pytest.approx(expected[1] / sum(expected))


def explained(indicators: list[NDArray[np.float64]], values: NDArray[np.float64]) -> float:
    """Return the share of variance that a least squares fit of the columns explains."""
    design = np.stack([np.ones(len(values)), *indicators], axis=1)
    residual = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return float(1 - residual.var() / values.var())


def test_shares_and_enrichment_of_any_table_are_those_of_regression_and_counting(
    table_of: Callable[[Sequence[Row]], Table],
) -> None:
    values = np.random.default_rng(4).uniform(size=(3, 3, 3))
    found = main_effects(full_table(table_of, values))
    flat = values.ravel()
    has = {
        (edge, name): np.array([float(cell.operations[edge] == name) for cell in CELLS])
        for edge in range(3)
        for name in OPERATIONS
    }
    for edge in range(3):
        alone = explained([has[edge, name] for name in OPERATIONS], flat)
        assert found.edge_shares[edge] == pytest.approx(alone)
    pairs = [has[i, a] * has[j, b] for i, j in ((0, 1), (0, 2), (1, 2)) for a in OPERATIONS for b in OPERATIONS]
    assert 1 - found.rest_share == pytest.approx(explained([*has.values(), *pairs], flat))
    best = np.argsort(-flat)[:3]  # 27 / 10, and the one at the border
    for edge, name in itertools.product(range(3), range(3)):
        count = has[edge, OPERATIONS[name]][best].sum()
        assert found.enrichment[edge, name] == pytest.approx(count / 3 / (1 / 3))


def test_main_effects_of_the_published_table_are_means_over_all_15625_strings(robbench: Table) -> None:
    found = main_effects(robbench, "pgd@8/255", dataset="cifar10")
    by_class = dict(zip(robbench.canonical, robbench.values("pgd@8/255", dataset="cifar10"), strict=True))
    cells = list(Architecture.enumerate())
    values = np.array([by_class[cell.canonical] for cell in cells])
    chosen = np.array([cell.operations[3] == "nor_conv_3x3" for cell in cells])
    assert found.mean == pytest.approx(values.mean())
    place = found.operations.index("nor_conv_3x3")
    assert found.effects[3, place] == pytest.approx(values[chosen].mean() - values.mean())
    assert found.effects.sum(axis=1) == pytest.approx(np.zeros(6))
    indicators = [
        np.array([float(cell.operations[edge] == name) for cell in cells])
        for edge in range(6)
        for name in found.operations[1:]
    ]
    assert found.edge_shares.sum() == pytest.approx(explained(indicators, values))
    assert (found.effects.argmax(axis=1) == place).all()


def test_main_effects_of_an_incomplete_equal_or_endless_table_are_refused(
    table_of: Callable[[Sequence[Row]], Table],
) -> None:
    with pytest.raises(InputError, match="does not have all 27 in digits clean"):
        main_effects(table_of([make_row(cell, i / 27) for i, cell in enumerate(CELLS[:-1])]))
    with pytest.raises(InputError, match="equally accurate"):
        main_effects(table_of([make_row(cell, 0.3, dataset="equal") for cell in CELLS]), dataset="equal")
    large = [Architecture((name,) * 15) for name in OPERATIONS]  # 3 ** 15 strings
    with pytest.raises(InputError, match="does not have all 14,348,907"):
        main_effects(
            table_of([make_row(cell, i / 3, dataset="large") for i, cell in enumerate(large)]), dataset="large"
        )


# All of it


def test_the_summary_is_json_and_the_text_says_the_same(table_of: Callable[[Sequence[Row]], Table]) -> None:
    rows = [make_row(cell, i / 27) for i, cell in enumerate(CELLS)]
    rows += [make_row(cell, i / 54, **PGD) for i, cell in enumerate(CELLS[:26])]
    table = table_of(rows)
    facts = json.loads(json.dumps(summarise(table), allow_nan=False))
    clean, pgd = facts["columns"]
    assert (clean["name"], clean["num_classes"], pgd["num_classes"]) == ("digits clean", 27, 26)
    assert (clean["mean"], clean["median"], clean["max"]) == pytest.approx((13 / 27, 13 / 27, 26 / 27))
    assert clean["noise_floor"] is None and clean["tied_with_best"] is None
    assert np.array(facts["rank_correlations"]["all"]) == pytest.approx(np.ones((2, 2)))
    effects, refused = facts["main_effects"]
    shares = [edge["share"] for edge in effects["edges"]] + [pair["share"] for pair in effects["pairs"]]
    assert sum(shares) + effects["rest_share"] == pytest.approx(1)
    assert "does not have all 27" in refused["missing"]

    text = describe(table)
    assert "digits clean" in text and "48.15" in text and refused["missing"] in text
    assert "does not know how much a value differs by chance" in text
    assert "pgd@8/255" not in describe(table, "clean")


def test_the_published_columns_have_the_published_mean_median_maximum_and_noise(robbench: Table) -> None:
    facts = summarise(robbench, dataset="cifar10")
    found = {column["name"]: column for column in facts["columns"]}
    for name, expected in (
        ("clean", (67.76, 70.64, 79.56)),
        ("pgd@8/255", (40.75, 42.75, 48.11)),
        ("autoattack", (36.65, 38.70, 44.38)),
    ):
        column = found[f"cifar10 {name}"]
        assert [100 * column[key] for key in ("mean", "median", "max")] == pytest.approx(expected, abs=0.006)
    assert 100 * found["cifar10 pgd@8/255"]["noise_floor"]["std"] == pytest.approx(0.32, abs=5e-3)
    words = " ".join(describe(robbench, dataset="cifar10").split())
    assert "cifar10 pgd@8/255 6466 40.75 42.75 48.11 0.32" in words


def test_columns_are_named_by_what_tells_them_apart(table_of: Callable[[Sequence[Row]], Table]) -> None:
    attack: dict[str, Any] = {"attack": "autoattack", "epsilon": None}
    table = table_of(
        [
            make_row(CELLS[0], 0.5, evaluation_hash="a"),
            make_row(CELLS[0], 0.4, **attack, norm="linf", evaluation_hash="b"),
            make_row(CELLS[0], 0.4, **attack, norm="l2", evaluation_hash="b"),
        ]
    )
    assert names_of(table.columns) == ["digits clean", "linf digits autoattack", "l2 digits autoattack"]
    assert names_of(table.columns[:2]) == ["digits clean", "digits autoattack"]
    assert all(table.column(**asdict(column)) == column for column in table.columns)
