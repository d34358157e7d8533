"""Statistics of a robust-accuracy table as a whole, with their uncertainty.

Which columns rank architectures alike (`rank_correlations`); which differences are more than chance (`tied_with_best`,
`compare`, `compare_searches`); which operations on which edges matter (`main_effects`); all of it about a table's
columns as numbers (`summarise`) and as text (`describe`).

SciPy is imported where it is used: importing this module costs nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from robust_nas.architectures.cell import OPERATIONS, Architecture, edges_of
from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at
from robust_nas.core.text import aligned
from robust_nas.tables._arrays import Column
from robust_nas.tables._table import ArchitectureNotInTable, Result, Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

TOP = 0.1
"""The share of classes, the best in a column, that `main_effects` and `summarise` look at apart: the top decile."""

_TRAINED = ("space", "skeleton", "split", "recipe", "recipe_hash")
_MAX_ARCHITECTURES = 100_000


def names_of(columns: Sequence[Column], table: Table | None = None) -> list[str]:
    """Return a name for each column, "cifar10 pgd@8/255", with whatever else tells it from the others before it.

    Args:
        columns: the columns.
        table: their table, which has names for recipes and evaluations.
    """

    def said(column: Column, name: str) -> str:
        found = None
        if table is not None and name == "recipe_hash":
            found = table.recipe_name(column)
        if table is not None and name == "evaluation_hash":
            found = table.evaluation_names[column.evaluation_hash]
        return str(found or getattr(column, name) or "not stated")

    names = []
    for column in columns:
        alike = [other for other in columns if other.label == column.label]
        # Every attack's settings differ from every other's: they are named only where the label does not tell.
        asked = [(columns, name) for name in _TRAINED] + [(alike, "norm"), (alike, "evaluation_hash")]
        differing = [name for others, name in asked if len({getattr(other, name) for other in others}) > 1]
        own = [said(column, name) for name in differing]
        names.append(" ".join([*own, column.dataset, column.label]))
    return names


# Rank correlations


def rank_correlations(
    table: Table,
    columns: Sequence[Column],
    *,
    method: Literal["spearman", "kendall"] = "spearman",
    top: float | None = None,
    by: Column | None = None,
) -> Floats:
    """Return the likeness of columns' rankings of the classes that both have: rank correlations [columns, columns].

    A coefficient over fewer than three classes, or with a column that does not vary, is NaN.

    Args:
        table: the table.
        columns: of the table (`Table.select`).
        method: "spearman", the correlation of the ranks; or "kendall", tau-b.
        top: look only at this share of classes, the most accurate ones.
        by: the column that tells which these are. If not given, it is each row's own column: the matrix is then not
            symmetric.

    Raises:
        InputError: for another method, or if `top` is outside (0, 1].
    """
    from scipy import stats

    measures = {"spearman": stats.spearmanr, "kendall": stats.kendalltau}
    if method not in measures:
        raise InputError(f"rank_correlations knows the methods {' and '.join(measures)}, but got '{method}'.")
    values = [table.values(**asdict(column)) for column in columns]
    chooser = None if by is None else table.values(**asdict(by))
    matrix = np.full((len(columns), len(columns)), np.nan)
    for i, own in enumerate(values):
        chosen = np.ones(len(table), dtype=bool) if top is None else _best(own if chooser is None else chooser, top)
        for j, other in enumerate(values):
            known = chosen & ~np.isnan(own) & ~np.isnan(other)
            if known.sum() >= 3 and np.ptp(own[known]) > 0 and np.ptp(other[known]) > 0:
                matrix[i, j] = measures[method](own[known], other[known]).statistic
    return matrix


def _best(values: Floats, share: float) -> NDArray[np.bool_]:
    """Return a mask of the best `share` of values; values equal to the worst of them are all in it."""
    if not 0 < share <= 1:
        raise InputError(f"The top of a table is a share in (0, 1], but got {share}.")
    return values >= np.nanquantile(values, 1 - share)


# Which differences are more than chance


def tied_with_best(table: Table, label: str | None = None, /, *, level: float = 0.05, **criteria: Any) -> int | None:
    """Return the number of a column's classes that the noise floor does not tell from the best one, itself included.

    These are the classes for which a two-sided z test as in `compare`, not corrected, has p > `level`: at 0.05, those
    within 2.77 noise floors of the best. It is a lower bound: that the best of many was lucky is not accounted for.

    Returns:
        The number, or None if the table does not know the column's noise floor.

    Raises:
        InputError: if the criteria do not leave one column.
    """
    floor = table.noise_floor(label, **criteria)
    if floor is None:
        return None
    values = table.values(label, **criteria)
    reach = NormalDist().inv_cdf(1 - level / 2) * math.sqrt(2) * floor.std
    return int((values >= np.nanmax(values) - reach).sum())


@dataclass(frozen=True)
class Comparison:
    """A difference between two architectures in one column.

    Args:
        column: the training and the measurement.
        first: one architecture, in the string form, as it was trained.
        second: the other.
        first_accuracy: its mean accuracy, a fraction in [0, 1].
        second_accuracy: that of the other.
        difference: the first's minus the second's.
        standard_error: of the difference, or None if the table cannot tell.
        test: "Welch" (over each one's trainings), "noise floor" (z test), or None if the table cannot tell.
        p_value: the probability of a difference at least as large by chance, or None.
        p_holm: the same, corrected for all comparisons made together, or None.
        is_distinguishable: whether `p_holm` is below the level asked for, or None.
    """

    column: Column
    first: str
    second: str
    first_accuracy: float
    second_accuracy: float
    difference: float
    standard_error: float | None
    test: Literal["Welch", "noise floor"] | None
    p_value: float | None
    p_holm: float | None
    is_distinguishable: bool | None


def compare(
    table: Table,
    architectures: Sequence[str | int | Architecture],
    label: str | None = None,
    /,
    *,
    level: float = 0.05,
    **criteria: Any,
) -> list[Comparison]:
    """Test whether architectures differ by more than chance: every pair of them, in every column that fits.

    Chance is another training with another seed; the test images are taken as given. Where both have several trainings
    in the table, Welch's t test over them, which assumes that each one's accuracies are normal, with variances of their
    own. It is not a paired test: a seed does not give two architectures the same weights.

    Where the table has only means, a z test with the standard error sqrt(2) times the column's noise floor. It assumes
    normal means that vary equally for all architectures of the column. Neither is quite true: failed trainings make the
    floor wide and the tails heavy. On NAS-RobBench-201, at a level of 5 %, it takes 2 to 5 % of the pairs of identical
    functions for different, by column, but up to 18 % of the 50 or so pairs in the top decile, and p values far below
    the level are too small.

    P values are corrected for all comparisons that are returned (`holm`).

    Args:
        table: the table.
        architectures: two or more, of different classes.
        label: a column's label, such as "pgd@8/255".
        level: the probability of seeing one difference, or more, where there is none.
        **criteria: as for `Table.select`.

    Raises:
        ArchitectureNotInTable: if one of them is in no column.
        InputError: for fewer than two architectures, two that are equivalent or in no column together, or criteria that
            no column fits.
    """
    if len(architectures) < 2:
        raise InputError(f"compare needs at least two architectures, but got {len(architectures)}.")
    columns = table.select(label, **criteria)
    found = [{result.column: result for result in table.results(given, **criteria)} for given in architectures]
    pairs: list[tuple[Result, Result]] = []
    for (one, ours), (other, theirs) in itertools.combinations(zip(architectures, found, strict=True), 2):
        both = [(ours[column], theirs[column]) for column in columns if column in ours and column in theirs]
        if not both:
            raise InputError(f"No column that fits has both {one} and {other}; ask for other columns.")
        if both[0][0].architecture == both[0][1].architecture:
            raise InputError(f"{one} and {other} are equivalent: the table has one accuracy for both; leave one out.")
        pairs += both
    tests = [_test(table, first, second) for first, second in pairs]
    corrected = iter(holm([p_value for _, _, p_value in tests if p_value is not None]))
    comparisons = []
    for (first, second), (test, error, p_value) in zip(pairs, tests, strict=True):
        p_holm = None if p_value is None else next(corrected)
        comparisons.append(
            Comparison(
                column=first.column,
                first=first.architecture,
                second=second.architecture,
                first_accuracy=first.mean,
                second_accuracy=second.mean,
                difference=first.mean - second.mean,
                standard_error=error,
                test=test,
                p_value=p_value,
                p_holm=p_holm,
                is_distinguishable=None if p_holm is None else p_holm < level,
            )
        )
    return comparisons


def _test(
    table: Table, first: Result, second: Result
) -> tuple[Literal["Welch", "noise floor"] | None, float | None, float | None]:
    """Return the test of the difference of two architectures in a column, its standard error and its p value."""
    if first.std is not None and second.std is not None:
        from scipy import stats

        assert first.num_seeds and second.num_seeds
        error = math.sqrt(first.std**2 / first.num_seeds + second.std**2 / second.num_seeds)
        if error < 1e-9:  # a few equal accuracies do not say that there is no chance
            return None, None, None
        groups = (first.mean, first.std, first.num_seeds), (second.mean, second.std, second.num_seeds)
        return "Welch", error, float(stats.ttest_ind_from_stats(*groups[0], *groups[1], equal_var=False).pvalue)
    floor = table.noise_floor(**asdict(first.column))
    # A floor over seeds is that of means over several trainings, and one of these two is not such a mean.
    if floor is None or floor.method == "seeds" or floor.std == 0:
        return None, None, None
    error = math.sqrt(2) * floor.std
    return "noise floor", error, math.erfc(abs(first.mean - second.mean) / error / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, such that together they err as often as one (Holm 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none becomes smaller than one before it.
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


@dataclass(frozen=True)
class SearchComparison:
    """A difference between two search methods over the same seeds, in the unit of the compared values.

    Args:
        first: one method's name.
        second: the other's.
        num_seeds: number of pairs of searches.
        difference: the mean of the first's values minus the second's.
        low: the lower end of the bootstrap interval of that mean.
        high: its upper end.
        p_value: of Wilcoxon's signed-rank test, two-sided; 1 if no pair differs.
        p_holm: the same, corrected for all comparisons made together.
    """

    first: str
    second: str
    num_seeds: int
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float


def compare_searches(
    best: Mapping[str, Sequence[float]], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[SearchComparison]:
    """Test whether search methods differ by more than the luck of their seeds: every pair of them.

    Paired over seeds: Wilcoxon's signed-rank test, which leaves out the seeds that found the same value and assumes
    that the differences lie symmetrically around their median; and the percentile interval of the mean difference over
    bootstrap samples of the seeds, which is too narrow for fewer than about 20 of them. The table's own noise is not
    in it: the question is which method finds the better entry of this table.

    Args:
        best: each method's best value after its last query, one per seed, the seeds in the same order.
        confidence: the interval's probability of having the mean difference in it; it is not corrected.
        resamples: number of bootstrap samples.
        seed: the bootstrap's seed.

    Raises:
        InputError: for fewer than two methods, or unequal or fewer than two seeds.
    """
    from scipy import stats

    counts = {name: len(values) for name, values in best.items()}
    if len(counts) < 2 or len(set(counts.values())) > 1 or min(counts.values()) < 2:
        raise InputError(
            "compare_searches needs at least two methods, over the same two or more seeds, but got "
            f"{', '.join(f'{name} with {count} seeds' for name, count in counts.items()) or 'none'}."
        )
    num_seeds = min(counts.values())
    draws = np.random.default_rng(seed_at(seed, "bootstrap")).integers(num_seeds, size=(resamples, num_seeds))
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    found, p_values = [], []
    for first, second in itertools.combinations(best, 2):
        differences = np.asarray(best[first], dtype=np.float64) - np.asarray(best[second], dtype=np.float64)
        differences[np.abs(differences) < 1e-12] = 0  # equal but for rounding
        low, high = np.quantile(differences[draws].mean(axis=1), tails)
        p_values.append(float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0)
        found.append((first, second, num_seeds, float(differences.mean()), float(low), float(high)))
    return [
        SearchComparison(*item, p_value, p_holm)
        for item, p_value, p_holm in zip(found, p_values, holm(p_values), strict=True)
    ]


# Which operations on which edges matter


@dataclass(frozen=True)
class MainEffects:
    """The effects of the edges' operations on the accuracy in one column.

    The table is a balanced full factorial design (every operation on every edge, equally often), so the sums of squares
    of edges, of pairs of edges and of the rest add up exactly.

    Args:
        edges: the cell's (source, target) pairs.
        operations: their operations.
        mean: the mean accuracy over all architectures, equivalent ones counted each.
        effects: for each edge and operation, the mean accuracy of the architectures that have it, minus `mean`.
        edge_shares: the share of the variance that each edge explains alone.
        pair_shares: the share that each two edges explain together beyond that, [edges, edges]; zero on and below the
            diagonal.
        enrichment: for each edge and operation, how many times as often it occurs among the top decile of
            architectures as among all.
    """

    edges: tuple[tuple[int, int], ...]
    operations: tuple[str, ...]
    mean: float
    effects: Floats
    edge_shares: Floats
    pair_shares: Floats
    enrichment: Floats

    @property
    def rest_share(self) -> float:
        """The share of the variance that is left to three and more edges together, and to chance."""
        return float(1 - self.edge_shares.sum() - self.pair_shares.sum())


def main_effects(table: Table, label: str | None = None, /, **criteria: Any) -> MainEffects:
    """Return the effects of operations on edges in one column.

    Raises:
        InputError: if the criteria do not leave one column, it does not have every architecture that can be made of the
            table's operations, or all are equally accurate.
    """
    column = table.column(label, **criteria)
    known = np.flatnonzero(~np.isnan(table.values(**asdict(column))))
    cells = [Architecture.parse(table.architectures[place]) for place in known]
    edges = tuple(edges_of(cells[0].num_nodes))
    used = {name for cell in cells for name in cell.operations}
    operations = tuple(name for name in OPERATIONS if name in used)
    num_architectures = len(operations) ** len(edges)
    try:
        if num_architectures > _MAX_ARCHITECTURES:
            raise ArchitectureNotInTable
        every = [str(cell) for cell in Architecture.enumerate(cells[0].num_nodes, operations)]
        flat = table.query_many(every, **asdict(column))
    except ArchitectureNotInTable:
        raise InputError(
            f"Main effects need the accuracy of every architecture, but the table {table.name} does not have all "
            f"{num_architectures:,} in {column.dataset} {column.label}."
        ) from None
    accuracies = flat.reshape([len(operations)] * len(edges))
    if np.ptp(flat) == 0:
        raise InputError(f"All architectures of the table {table.name} are equally accurate in {column.label}.")
    best = _best(flat, TOP).reshape(accuracies.shape)
    variance = flat.var()

    def mean_over_others(values: NDArray[Any], *kept: int) -> Floats:
        return values.mean(axis=tuple(axis for axis in range(len(edges)) if axis not in kept), dtype=np.float64)

    mean = accuracies.mean()
    effects = np.stack([mean_over_others(accuracies, edge) - mean for edge in range(len(edges))])
    pair_shares = np.zeros((len(edges), len(edges)))
    for first, second in itertools.combinations(range(len(edges)), 2):
        beyond = mean_over_others(accuracies, first, second) - mean
        beyond -= effects[first][:, None] + effects[second][None, :]
        pair_shares[first, second] = (beyond**2).mean() / variance
    return MainEffects(
        edges=edges,
        operations=operations,
        mean=float(mean),
        effects=effects,
        edge_shares=(effects**2).mean(axis=1) / variance,
        pair_shares=pair_shares,
        enrichment=np.stack([mean_over_others(best, edge) / best.mean() for edge in range(len(edges))]),
    )


# All of it


def summarise(table: Table, label: str | None = None, /, **criteria: Any) -> dict[str, Any]:
    """Summarise the columns that fit, as numbers, strings, lists and mappings; unknowns are None.

    Accuracies are fractions. In `rank_correlations["top_decile"]`, a row's own column says which classes are the best.

    Raises:
        InputError: for an unknown criterion or value, or if no column fits.
    """
    columns = table.select(label, **criteria)
    described: list[dict[str, Any]] = []
    effects: list[dict[str, Any]] = []
    for name, column in zip(names_of(columns, table), columns, strict=True):
        values = table.values(**asdict(column))
        floor = table.noise_floor(**asdict(column))
        described.append(
            {
                "name": name,
                "column": asdict(column),
                "num_classes": int((~np.isnan(values)).sum()),
                "mean": float(np.nanmean(values)),
                "median": float(np.nanmedian(values)),
                "max": float(np.nanmax(values)),
                "noise_floor": floor and asdict(floor),
                "tied_with_best": tied_with_best(table, **asdict(column)),
            }
        )
        try:
            found = main_effects(table, **asdict(column))
        except InputError as reason:
            effects.append({"name": name, "missing": str(reason)})
            continue
        effects.append(
            {
                "name": name,
                "mean": found.mean,
                "rest_share": found.rest_share,
                "edges": [
                    {
                        "edge": f"{source}-{target}",
                        "share": float(found.edge_shares[place]),
                        "effects": dict(zip(found.operations, found.effects[place].tolist(), strict=True)),
                        "enrichment": dict(zip(found.operations, found.enrichment[place].tolist(), strict=True)),
                    }
                    for place, (source, target) in enumerate(found.edges)
                ],
                "pairs": [
                    {
                        "edges": [f"{source}-{target}" for source, target in (found.edges[one], found.edges[two])],
                        "share": float(found.pair_shares[one, two]),
                    }
                    for one, two in itertools.combinations(range(len(found.edges)), 2)
                ],
            }
        )
    return {
        "table": table.name,
        "columns": described,
        "rank_correlations": {
            "all": _or_none(rank_correlations(table, columns)),
            "top_decile": _or_none(rank_correlations(table, columns, top=TOP)),
        },
        "main_effects": effects,
    }


def describe(table: Table, label: str | None = None, /, **criteria: Any) -> str:
    """Return `summarise` as text; accuracies in percent.

    Raises:
        InputError: for an unknown criterion or value, or if no column fits.
    """
    facts = summarise(table, label, **criteria)
    names = [column["name"] for column in facts["columns"]]
    lines = aligned(
        [["", "classes", "mean %", "median %", "max %", "noise %", "robust noise %", "tied with the best"]]
        + [
            [
                column["name"],
                str(column["num_classes"]),
                *(f"{100 * column[key]:.2f}" for key in ("mean", "median", "max")),
                *(f"{100 * floor[key]:.2f}" if (floor := column["noise_floor"]) else "-" for key in ("std", "robust")),
                "-" if column["tied_with_best"] is None else str(column["tied_with_best"]),
            ]
            for column in facts["columns"]
        ],
        left=1,
    )
    sources = {
        f"{floor['method']} ({floor['num_members']} means in {floor['num_groups']} groups)"
        if floor["method"] == "identical functions"
        else f"{floor['method']} ({floor['num_members']} trainings of {floor['num_groups']} classes)"
        for column in facts["columns"]
        if (floor := column["noise_floor"])
    }
    if sources:
        lines.append(f"noise: standard deviation of a value by chance, from {'; '.join(sorted(sources))}; robust: from")
        lines.append("the median deviation. Tied with the best: closer to it than a z test tells from chance at 5 %.")
    else:
        lines.append("The table does not know how much a value differs by chance: there is one training per function.")
    for title, key in (
        ("Spearman rank correlation", "all"),
        ("The same over the top decile of the row's column", "top_decile"),
    ):
        matrix = facts["rank_correlations"][key]
        lines += ["", f"{title}:"]
        lines += aligned(
            [["", *(str(number) for number in range(1, len(names) + 1))]]
            + [
                [f"{number} {name}", *("-" if value is None else f"{value:.3f}" for value in row)]
                for number, (name, row) in enumerate(zip(names, matrix, strict=True), start=1)
            ],
            left=1,
        )
    if len(names) > 3:
        lines += ["", "Main effects of operations are printed for up to three columns; name one, such as pgd@8/255."]
    for effects in facts["main_effects"] if len(names) <= 3 else ():
        lines.append("")
        if "missing" in effects:
            lines.append(effects["missing"])
            continue
        edges, pairs = effects["edges"], sorted(effects["pairs"], key=lambda pair: -pair["share"])
        lines += [
            f"Main effects on {effects['name']}: points from the mean over all architectures, "
            f"{100 * effects['mean']:.2f} %, and",
            "how many times as often as among all it occurs among the best 10 %:",
        ]
        lines += aligned(
            [["edge", *edges[0]["effects"], "of the variance"]]
            + [
                [
                    edge["edge"],
                    *(
                        f"{100 * effect:+.2f} {edge['enrichment'][name]:.1f}x"
                        for name, effect in edge["effects"].items()
                    ),
                    f"{100 * edge['share']:.1f} %",
                ]
                for edge in edges
            ],
            left=1,
        )
        pairwise = sum(pair["share"] for pair in pairs)
        lines.append(
            f"each edge alone {100 * sum(edge['share'] for edge in edges):.1f} %, two together {100 * pairwise:.1f} % ("
            + ", ".join(f"{' and '.join(pair['edges'])} {100 * pair['share']:.1f} %" for pair in pairs[:3])
            + f"), three and more, and chance {100 * effects['rest_share']:.1f} %"
        )
    return "\n".join(lines)


def _or_none(matrix: Floats) -> list[list[float | None]]:
    """Return a matrix as lists; None stands for NaN, which JSON does not have."""
    return [[None if value != value else value for value in row] for row in matrix.tolist()]
