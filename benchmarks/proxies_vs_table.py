"""How well scores of untrained networks rank NAS-RobBench-201, and what they bring a search.

    robust-nas table fetch nas-robbench-201
    python benchmarks/proxies_vs_table.py --data FOLDER [--out runs]

FOLDER has `cifar10-jpeg`, a folder of class folders. Writes `results/proxies.md`, and beside it, in `proxies/`, every
score and every correlation. It is `robust-nas proxies rank` with the settings below, in the same folder: one that was
interrupted is completed.
"""

from __future__ import annotations

import argparse
import csv
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats

from robust_nas import spaces, tables
from robust_nas.architectures.cell import Architecture
from robust_nas.core.seeds import seed_at
from robust_nas.core.writing import write_text
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import read_metrics
from robust_nas.samplers.evolution import Evolution
from robust_nas.studies import ranking, simulation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from robust_nas.samplers import Proposer
    from robust_nas.spaces import Space
    from robust_nas.tables import Table

    Floats = NDArray[np.float64]

RESULTS = Path(__file__).parent / "results"

PROXIES = ("num_params", "ntk", "ntk[measure=condition_number]", "robust_ntk", "robust_ntk[error=clean]")
PROXIES += ("robust_ntk[measure=condition_number]", "synflow", "snip", "grad_norm", "jacob_cov", "zen", "croze")
OVERRIDES = ("data.train_size=10000", "data.validation_size=100", "data.test_size=100", "space.channels=8")
OVERRIDES += ("space.cells_per_stage=1", "space.stem_stride=2")

PAIRS = (("robust_ntk", "ntk"), ("robust_ntk[error=clean]", "ntk"))
PAIRS += (("robust_ntk[measure=condition_number]", "ntk[measure=condition_number]"),)
"""Robust tangent kernels, and the clean one that each is compared with."""

MAIN = {"dataset": "cifar10", "attack": "pgd", "epsilon": 8 / 255}
POOL, FIRST, QUERIES, SEARCHES, DRAWS = 100, 20, 50, 300, 2000


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """Evolution whose first population is the best-scored part of a random pool; with no scores a random part of it.

    Args:
        pool: the scored architectures; each search draws `POOL` of them.
        scores: [seeds, architectures], or None.
    """

    pool: tuple[Architecture, ...]
    scores: Floats | None

    def start(self, space: Space, num_objectives: int, seed: int) -> Proposer:
        """Begin a search."""
        drawn = random.Random(seed_at(seed, "pool")).sample(range(len(self.pool)), POOL)
        if self.scores is not None:
            of_seed = self.scores[seed % len(self.scores)]
            drawn.sort(key=lambda place: -of_seed[place])
        inner = Evolution(population_size=FIRST).start(space, num_objectives, seed)
        return _Begun([self.pool[place] for place in drawn[:FIRST]], inner)


class _Begun:
    def __init__(self, first: list[Architecture], inner: Proposer) -> None:
        self._first, self._inner = first, inner

    def ask(self) -> Architecture:
        return self._first.pop(0) if self._first else self._inner.ask()

    def tell(self, architecture: Architecture, values: Sequence[float]) -> None:
        self._inner.tell(architecture, values)


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as a table, the first as its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""]


def searches(table: Table, pool: tuple[Architecture, ...], scores: Mapping[str, Floats]) -> list[str]:
    """Return the gain of the first population of an evolution, in percent."""
    values = table.values(**MAIN)
    by_class = {canonical: (float(value),) for canonical, value in zip(table.canonical, values, strict=True)}
    space = spaces.load("nasbench201")
    rows = [["first population", f"after {FIRST} queries", f"after {QUERIES} queries", "minus random, paired"]]
    best: dict[str, Floats] = {}
    for name, of_score in {"random": None, **scores}.items():
        queried = simulation.simulate(space, by_class, Seeded(pool=pool, scores=of_score), QUERIES, range(SEARCHES))
        best[name] = 100 * np.maximum.accumulate(values[queried], axis=1)
        after = [f"{best[name][:, place - 1].mean():.2f}" for place in (FIRST, QUERIES)]
        difference = best[name][:, -1] - best["random"][:, -1]
        half = stats.t.ppf(0.975, SEARCHES - 1) * difference.std(ddof=1) / SEARCHES**0.5
        rows.append([name, *after, "" if name == "random" else f"{difference.mean():+.2f} ± {half:.2f}"])
    return markdown(rows)


def best_of(values: Floats, scores: Mapping[str, Floats]) -> list[str]:
    """Return the accuracy of the best-scored of N random architectures, in percent."""
    sizes = (10, 30, 100)
    rows = [["chosen by", *(f"of {size}" for size in sizes)]]
    draws = np.random.default_rng(0).permuted(np.tile(np.arange(len(values)), (DRAWS, 1)), axis=1)
    chosen: dict[str, list[Floats]] = {
        "chance": [values[draws[:, 0]]] * len(sizes),
        "the table itself": [values[draws[:, :size]].max(axis=1) for size in sizes],
    }
    for name, of_seeds in scores.items():
        chosen[name] = [
            np.concatenate([values[draws[np.arange(DRAWS), row[draws[:, :size]].argmax(axis=1)]] for row in of_seeds])
            for size in sizes
        ]
    for name, found in chosen.items():
        rows.append([name] + [f"{100 * one.mean():.2f} ({100 * np.quantile(one, 0.05):.1f})" for one in found])
    return markdown(rows)


def differences(result: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Return one row per column: each pair's difference in Spearman's correlation, bold where the interval has no 0."""
    rows = []
    for column in result["columns"]:
        cells = [column["name"]]
        for first, second in pairs:
            cells.append(difference_text(column["differences"], first, second))
        rows.append(cells)
    return rows


def verdict(result: Mapping[str, Any]) -> str:
    """Return in how many of the comparisons the robust kernel ranks better, and worse, than the clean one."""
    intervals = [
        (found["low"], found["high"]) if found["first"] == first else (-found["high"], -found["low"])
        for column in result["columns"]
        for first, second in PAIRS
        for found in column["differences"]
        if {found["first"], found["second"]} == {first, second}
    ]
    better, worse = sum(low > 0 for low, _ in intervals), sum(high < 0 for _, high in intervals)
    return (
        f"Of {len(intervals)} comparisons the robust kernel ranks better in {better} and worse in {worse}; the others "
        "are not told apart. The publication (arXiv:2403.13134) reports the opposite. Its setting is not repeated "
        "here: these networks are smaller than the table's, and batch norm's statistics are held while an image is "
        "differentiated."
    )


def without_unconnected(connected: NDArray[np.bool_], scores: Mapping[str, Floats], values: Floats) -> str:
    """Return the comparisons on CIFAR-10, PGD 8/255, without the architectures that compute a constant."""
    if connected.all():
        return "No architecture drawn is unconnected, so that there is none to leave out."
    again = ranking.agreement({name: found[:, connected] for name, found in scores.items()}, values[connected])
    parts = [
        f"`{first}` minus `{second}` {difference_text(again['differences'], first, second)}" for first, second in PAIRS
    ]
    return f"Without the {int((~connected).sum())} unconnected, CIFAR-10 PGD 8/255: {'; '.join(parts)}."


def difference_text(found: Sequence[Mapping[str, Any]], first: str, second: str) -> str:
    """Return the difference of two proxies, in whichever order it is listed."""
    for one in found:
        for sign, names in ((1, (first, second)), (-1, (second, first))):
            if (one["first"], one["second"]) == names:
                mean, ends = sign * one["mean"], sorted((sign * one["low"], sign * one["high"]))
                text = f"{mean:+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}]"
                return f"**{text}**" if ends[0] > 0 or ends[1] < 0 else text
    raise AssertionError(f"{first} and {second} were not compared")


def cost(scoring: ranking.Scoring, pool: Sequence[Architecture]) -> dict[str, float]:
    """Return each proxy's mean processor seconds over a few of the architectures."""
    data = scoring.data.load_splits()
    images, labels = ranking.draw_batch(data, scoring.batch_size, 0)
    taken: dict[str, list[float]] = {name: [] for name in scoring.proxies}
    torch.set_num_threads(1)
    for architecture in pool[:12]:
        network = scoring.space.network(architecture, data)
        for name, proxy in scoring.built().items():
            start = time.process_time()
            proxy.score(network, images, labels, scoring.threat)
            taken[name].append(time.process_time() - start)
    return {name: float(np.mean(found)) for name, found in taken.items()}


def report(table: Table, result: Mapping[str, Any], scores: Mapping[str, Floats], scoring: ranking.Scoring) -> str:
    """Return the page."""
    pool = tuple(map(Architecture.parse, result["architectures"]))
    values = table.query_many(result["architectures"], **MAIN)
    seconds = cost(scoring, pool)
    columns = {column["name"]: column for column in result["columns"]}
    main_name = next(name for name in columns if name.endswith("cifar10 pgd@8/255"))
    order = sorted(scores, key=lambda name: -columns[main_name]["proxies"][name]["spearman"]["mean"])
    lines = [
        "# Scores of untrained networks",
        "",
        "    python benchmarks/proxies_vs_table.py --data FOLDER",
        "",
        f"{result['num_architectures']} random classes of NAS-RobBench-201 ({result['num_unconnected']} without a path "
        f"from input to output), seeds 0 to {result['seeds'] - 1}:",
        "each has its own initialisation of every network and its own batch of "
        f"{result['batch_size']} training images of CIFAR-10 (JPEG, 32 x 32,",
        "from 10,000 of the training folder), the same for all architectures. **The networks are smaller than the "
        "table's**: one cell per stage",
        "instead of five, 8 channels instead of 16, and a stem of stride 2, so that the cells see 16 x 16 pixels;",
        "their weights are He's normal ones.",
        "Threat model linf 8/255; `robust_ntk` has b = 0.5 and attacks by PGD of 5 steps. "
        f"robust-nas {result['version']}, torch {result['environment']['torch']}, "
        f"{result['environment']['cpu']}, one core.",
        "",
        f"In brackets: {result['interval']}. The architectures are the same for all scores and columns, so that "
        "differences are paired.",
        "[proxies/scores.csv](proxies/scores.csv) has every score, and",
        "[proxies/correlations.csv](proxies/correlations.csv) every correlation with each seed's own value.",
        "",
        *(f"Beware. {caveat}" for caveat in result["caveats"][:1]),
        "",
        "## CIFAR-10, PGD 8/255",
        "",
        "The top decile is the column's: Spearman's correlation within it, and which share of it is in the score's own "
        "top decile (10 % by chance).",
        "Seconds of one core for one network and batch.",
        "",
    ]
    heads = ["score", "Kendall", "Spearman", "Spearman, top decile", "share of it", "Spearman minus num_params", "s"]
    body = []
    for name in order:
        found = columns[main_name]["proxies"][name]
        cells = [ranking.interval_text(found[measure]) for measure in ranking.MEASURES]
        beyond = "" if name == "num_params" else difference_text(columns[main_name]["differences"], name, "num_params")
        body.append([f"`{name}`", *cells, beyond, f"{seconds[name]:.2f}"])
    lines += markdown([heads, *body])
    lines += ["## Spearman's correlation with every column", ""]
    for dataset in table.datasets():
        own = [name for name in columns if f"{dataset} " in name]
        heads = [dataset, *(name.rpartition(" ")[2] for name in own)]
        body = [
            [f"`{name}`", *(ranking.interval_text(columns[one]["proxies"][name]["spearman"]) for one in own)]
            for name in order
        ]
        lines += markdown([heads, *body])
    heads = ["column", *(f"`{first}` minus `{second}`" for first, second in PAIRS)]
    lines += [
        "## Does the robust tangent kernel rank better than the clean one?",
        "",
        "Differences of Spearman's correlations, paired; bold where the interval does not have 0 in it.",
        "",
        *markdown([heads, *differences(result, PAIRS)]),
    ]
    connected = np.array([architecture.is_connected for architecture in pool])
    lines += [f"{verdict(result)} {without_unconnected(connected, scores, values)}", ""]
    lines += [
        "## What a score brings",
        "",
        "The table is looked up after scoring. CIFAR-10, PGD 8/255, in %; the best of the "
        f"{len(pool)} has {100 * values.max():.2f}, the best of the table {100 * np.nanmax(table.values(**MAIN)):.2f}.",
        "",
        f"The best-scored of N of these architectures: mean over {DRAWS} draws and the seeds, in brackets the 5 % "
        "quantile.",
        "",
        *best_of(values, scores),
        f"Regularised evolution on the table (population {FIRST}, {QUERIES} queries, {SEARCHES} searches): its first "
        f"population is the best-scored {FIRST} of {POOL}",
        "of these architectures, or random ones of the same. Mean best value, ± is the 95 % t-interval over the "
        "searches. Scores cost no query.",
        "",
        *searches(table, pool, {name: scores[name] for name in order}),
    ]
    return "\n".join(lines).rstrip() + "\n"


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Write rows of values as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def main() -> None:
    """Score, compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args()
    table = tables.load("nas-robbench-201")
    images = str(options.data / "cifar10-jpeg")
    scoring = ranking.from_words(table, table.columns, OVERRIDES, data=images, proxy=PROXIES)
    result = ranking.run(table, table.columns, scoring, options.out, Progress())
    rows = {
        (row["architecture"], row["seed"], row["proxy"]): row["score"]
        for row in read_metrics(Path(result["folder"]) / "scores.jsonl")
    }
    forms = result["architectures"]
    scores = {
        name: np.array([[rows[form, seed, name] for form in forms] for seed in range(result["seeds"])])
        for name in PROXIES
    }
    write_csv(
        RESULTS / "proxies" / "scores.csv",
        [["architecture", "seed", *PROXIES]]
        + [
            [Architecture.parse(form).digits(), seed, *(f"{rows[form, seed, name]:.6g}" for name in PROXIES)]
            for form in forms
            for seed in range(result["seeds"])
        ],
    )
    write_csv(
        RESULTS / "proxies" / "correlations.csv",
        [["column", "proxy", "statistic", "mean", "low", "high", *(f"seed {seed}" for seed in range(result["seeds"]))]]
        + [
            [column["name"], name, measure, *(f"{value:.4f}" for value in [*_ends(found), *found["seeds"]])]
            for column in result["columns"]
            for name, measures in column["proxies"].items()
            for measure, found in measures.items()
        ],
    )
    write_text(RESULTS / "proxies.md", report(table, result, scores, scoring))


def _ends(found: Mapping[str, Any]) -> list[float]:
    return [found["mean"], found["low"], found["high"]]


if __name__ == "__main__":
    main()
