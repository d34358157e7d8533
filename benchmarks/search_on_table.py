"""Query-based samplers in NAS-RobBench-201: mean best value after each query, over 300 seeds.

    robust-nas table fetch nas-robbench-201
    python benchmarks/search_on_table.py [--workers 2] [--out runs/search_on_table]

Writes `results/search_on_table.md` and `.svg` beside this file. A part that was simulated before, with the same
settings, is not simulated again.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robust_nas import samplers, tables
from robust_nas.runtime.progress import Progress
from robust_nas.studies import simulation

RESULTS = Path(__file__).parent / "results"
SEEDS = 300
PRIOR = "predictor[prior=parameters]"

MAIN = ("cifar10", "pgd@8/255")
LOOKED_AT = [MAIN, ("cifar100", "pgd@8/255"), ("imagenet16-120", "pgd@8/255"), ("cifar10", "autoattack")]
LOOKED_AT += [("cifar10", "clean")]
"""The columns that were looked at while the predictor was made; the first one decided."""

PLAIN = {  # what plain implementations of others reached on the first column in 300 repeats
    "random": {25: 46.39, 50: 46.75, 150: 47.10},
    "local": {25: 46.99, 50: 47.72, 150: 48.10},
    "evolution": {25: 46.51, 50: 47.21, 150: 47.75},
}

CHOICES = ["predictor"] + [
    f"predictor[{choice}]"
    for choice in ("length_scale=0.5", "length_scale=2.0", "noise=0.03", "noise=0.3", "random_starts=1")
]
CHOICES += ["predictor[random_starts=5]"]


def rows(result: Mapping[str, Any], shown: Sequence[int]) -> list[str]:
    """Return a table of mean curves in percent, with half the width of their bands."""
    regret = result["noise_floor"] is not None
    heads = ["sampler", *map(str, shown), f"optimum after {shown[-1]}", *(["regret / noise"] if regret else [])]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for label, curve in result["curves"].items():
        cells = [label]
        for query in shown:
            mean, high = curve["mean"][query - 1], curve["high"][query - 1]
            cells.append(f"{100 * mean:.2f} ± {100 * (high - mean):.2f}")
        cells.append(f"{curve['num_at_optimum'][shown[-1] - 1]} of {result['seeds']}")
        cells += [f"{curve['regret'][shown[-1] - 1]:.2f}"] if regret else []
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def least_lead(result: Mapping[str, Any], label: str, other: str) -> tuple[float, int]:
    """Return the least difference of two mean curves over all queries, in points, and the query where it is."""
    pairs = zip(result["curves"][label]["mean"], result["curves"][other]["mean"], strict=True)
    return min((100 * (one - two), query) for query, (one, two) in enumerate(pairs, start=1))


def main() -> None:
    """Simulate, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/search_on_table"))
    options = parser.parse_args()
    table, progress = tables.load("nas-robbench-201"), Progress()

    def run(
        dataset: str, labels: Sequence[str], named: Sequence[str], budget: int, part: str = "", seeds: int = SEEDS
    ) -> dict[str, Any]:
        name = "-".join([dataset, *labels, *([part] if part else [])]).replace("/", "_")
        progress.say(f"{dataset} {' '.join(labels)} {part}".rstrip())
        return simulation.run(
            table,
            labels,
            dataset,
            named,
            budget,
            seeds,
            options.out / name,
            workers=options.workers,
            progress=progress,
        )

    everyone = [*samplers.names(), PRIOR]
    first = run(MAIN[0], [MAIN[1]], everyone, 150)
    machine = first["environment"]
    lines = [
        "# Search on the table",
        "",
        "    python benchmarks/search_on_table.py",
        "",
        f"NAS-RobBench-201, {SEEDS} seeds (0 to {SEEDS - 1}) per sampler, robust-nas {first['version']}, "
        f"{machine['cpu']}.",
        "A query is one of the 6,466 classes; an architecture equivalent to a measured one is not counted. Values are",
        "in %, ± is the 95 % t-interval of the mean over seeds, and regret (optimum minus mean) is in units of the",
        "column's noise floor (standard deviation between classes that compute the same function).",
        "",
        f"**Beware.** {first['caveats'][0]}",
        "",
        "`predictor` knows nothing but the column that it searches; `prior=parameters` assumes beforehand that large",
        "networks are good, and draws its first two architectures from the tenth with the most convolution weights.",
        "The choices behind it (features, kernel, outlier rule, round settings) were made with the five columns of the",
        "first two sections in view, so those are not held out; on the columns of the third no search was run before.",
        "",
        "## CIFAR-10, PGD 8/255",
        "",
        f"Optimum {100 * first['optimum']:.2f}, noise floor {100 * first['noise_floor']:.2f} points.",
        "",
        *rows(first, (10, 25, 50)),
        "",
        *rows(first, (100, 150)),
        "",
        "![mean best value after each query](search_on_table.svg)",
        "",
    ]
    for label in ("predictor", PRIOR):
        lead, query = least_lead(first, label, "local")
        lines.append(
            f"`{label}` minus `local`, mean over seeds, at its least over all 150 budgets: {lead:+.3f} points, after "
            f"{query} {'query' if query == 1 else 'queries'}."
        )
    lines += [
        "",
        "Beside reference figures of plain implementations (300 repeats):",
        "",
        "| sampler | ours, 25 / 50 / 150 | plain |",
        "|---|---|---|",
    ]
    for label, known in PLAIN.items():
        ours = " / ".join(f"{100 * first['curves'][label]['mean'][query - 1]:.2f}" for query in known)
        lines.append(f"| {label} | {ours} | {' / '.join(f'{value:.2f}' for value in known.values())} |")
    lines += ["", "## The other columns that were looked at", ""]
    for dataset, label in LOOKED_AT[1:]:
        result = run(dataset, [label], everyone, 50)
        lines += [
            f"{dataset}, {label}: optimum {100 * result['optimum']:.2f}, noise floor "
            f"{100 * result['noise_floor']:.2f} points.",
            "",
            *rows(result, (10, 25, 50)),
            "",
        ]

    lines += [
        "## Columns on which no search was run before",
        "",
        "Mean best value after 25 / 50 queries, and how many of the seeds have found the optimum after 50.",
        "",
        "| column | optimum | local | tpe | predictor | predictor's optima | its regret / noise |",
        "|---|---|---|---|---|---|---|",
    ]
    for column in table.columns:
        if (column.dataset, column.label) in LOOKED_AT:
            continue
        result = run(column.dataset, [column.label], ["local", "tpe", "predictor"], 50)
        means = {
            label: " / ".join(f"{100 * curve['mean'][query - 1]:.2f}" for query in (25, 50))
            for label, curve in result["curves"].items()
        }
        ours = result["curves"]["predictor"]
        lines.append(
            f"| {column.dataset} {column.label} | {100 * result['optimum']:.2f} | {means['local']} | {means['tpe']} | "
            f"{means['predictor']} | {ours['num_at_optimum'][-1]} of {SEEDS} | {ours['regret'][-1]:.2f} |"
        )

    lines += [
        "",
        "## What the predictor's settings matter",
        "",
        "One setting changed at a time, on the first column and on the hardest of those looked at:",
    ]
    for dataset in ("cifar10", "imagenet16-120"):
        result = run(dataset, ["pgd@8/255"], CHOICES, 50, part="settings")
        lines += ["", f"{dataset}, pgd@8/255:", "", *rows(result, (10, 25, 50))]

    objectives = ["clean", "pgd@8/255", "flops"]
    several = run("cifar10", objectives, ["random", "tpe", "nsga2", "predictor"], 50, seeds=100)
    lines += [
        "",
        "## Several objectives",
        "",
        "CIFAR-10: clean accuracy, PGD 8/255 and multiply-adds of the cells. Hypervolume in % of the whole table's",
        "(each objective from its minimum, the reference point, to its maximum); 100 seeds. How the predictor",
        "estimates the gain in hypervolume was chosen with these objectives in view.",
        "",
        *rows(several, (10, 25, 50)),
        "",
    ]
    (RESULTS / "search_on_table.md").write_text("\n".join(lines), encoding="utf-8")
    shutil.copy(options.out / "cifar10-pgd@8_255" / "curves.svg", RESULTS / "search_on_table.svg")


if __name__ == "__main__":
    main()
