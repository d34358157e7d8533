"""The finds of searches, looked up in NAS-RobBench-201 afterwards: CIFAR-10 (JPEG), a supernet for two cores.

    python benchmarks/search_vs_table.py search              # every method, five seeds
    python benchmarks/search_vs_table.py correlation         # inherited weights against the table, 100 random cells
    python benchmarks/search_vs_table.py table               # all that is there, as Markdown

Images are read from the folder `cifar10-jpeg` in `--data` (train/CLASS/*.jpg, test/CLASS/*.jpg) at 8 x 8 pixels, the
test images not at all. A search's result is a file in `--out`, which names the cell and not its accuracy: the published
table is opened by `table` alone, when all searches are over. What is there is not computed again, an interrupted search
goes on from its last epoch (in `--work`), and further `--seeds` add to the table. One thread.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import robust_nas as rn
from robust_nas import derivation
from robust_nas.architectures.cell import OPERATIONS, Architecture
from robust_nas.core import config
from robust_nas.core.files import read_json
from robust_nas.core.writing import write_json
from robust_nas.datasets import DataForm, Dataset
from robust_nas.runtime.distributed import World
from robust_nas.runtime.environment import describe_environment
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.searches import SearchResult
from robust_nas.searches._resources import Cost, Resource
from robust_nas.spaces import mixed
from robust_nas.tables import Table

SPACE = {"channels": 16, "cells_per_stage": 1, "stages": 2}
SIZES = {"size": 8, "train_size": 25_000, "validation_size": 10_000, "test_size": 100}
THREAT = rn.ThreatModel(epsilon="8/255")

CURRICULUM: dict[str, Any] = {
    "epochs": 6,
    "learning_rate": 0.1,
    "alpha_learning_rate": 6e-3,
    "alpha_frozen": 0.3,
    "epsilon_ramp": 0.5,
    "validation_attack": "fgsm",
    "validation_images": 500,
}
"""The common settings of supernet searches; the weights alone learn at first, and epsilon grows."""

ATTACK = {"name": "pgd", "steps": 3, "step_size": "4/255"}
"""Measures cells, with inherited weights or their own."""

FGSM_RS = {"name": "fgsm", "random_start": True, "batch_norm": "batch"}

BRIEFLY: dict[str, Any] = {
    "name": "sampled",
    "trials": 30,
    "training": {
        "method": {"name": "pgd_at", "attack": FGSM_RS},
        "epochs": 1,
        "batch_size": 128,
        "learning_rate": 0.1,
    },
    "attack": ATTACK,
    "num_images": 1000,
}
"""Trials that are trained adversarially for an epoch, in ten minutes together."""

METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dirichlet, adversarial": ({"name": "dirichlet"}, {}),
    "dirichlet, adversarial, seeded": ({"name": "dirichlet", "prior": {"proxy": "synflow"}}, {}),
    "dirichlet, clean, seeded": ({"name": "dirichlet", "objective": "standard", "prior": {"proxy": "synflow"}}, {}),
    "dirichlet, clean": ({"name": "dirichlet", "objective": "standard"}, {}),
    "dirichlet, clean, equal time": ({"name": "dirichlet", "objective": "standard", "epochs": 12}, {}),
    "dirichlet, adversarial, progressive": (
        {"name": "dirichlet", "kept_operations": [5, 3], "partial_channels": [4, 2]},
        {},
    ),
    "dirichlet, adversarial, progressive to all channels": (
        {"name": "dirichlet", "kept_operations": [5, 3], "partial_channels": [2, 1]},
        {},
    ),
    "dirichlet, adversarial, fewer operations alone": ({"name": "dirichlet", "kept_operations": [5, 3]}, {}),
    "dirichlet, adversarial, partial channels alone": ({"name": "dirichlet", "partial_channels": [4, 2]}, {}),
    "dirichlet, half adversarial": (
        {"name": "dirichlet", "objective": {"name": "pgd_at", "clean_share": 0.5, "attack": FGSM_RS}},
        {},
    ),
    "dirichlet, TRADES": ({"name": "dirichlet", "objective": {"name": "trades", "attack": FGSM_RS}}, {}),
    "dirichlet, adversarial, curvature x 1": (
        {"name": "dirichlet", "smoothness": {"kind": "curvature", "weight": 1.0}, "alpha_interval": 2},
        {},
    ),
    "dirichlet, adversarial, curvature x 0.01": (
        {"name": "dirichlet", "smoothness": {"kind": "curvature", "weight": 0.01}, "alpha_interval": 2},
        {},
    ),
    "dirichlet, clean, Jacobian x 0.1": (
        {"name": "dirichlet", "objective": "standard", "smoothness": {"kind": "jacobian", "weight": 0.1}},
        {},
    ),
    "dirichlet, clean, Jacobian x 0.001": (
        {"name": "dirichlet", "objective": "standard", "smoothness": {"kind": "jacobian", "weight": 0.001}},
        {},
    ),
    "dirichlet, adversarial, second order": (
        {"name": "dirichlet", "order": "second", "alpha_interval": 2},
        {},
    ),
    "dirichlet, adversarial, KL anchor": ({"name": "dirichlet", "anchor": "kl"}, {}),
    "dirichlet, adversarial, limited": (
        {"name": "dirichlet", "resource": {"quantity": "multiply_adds", "limit": 725_000, "hard": True}},
        {},
    ),
    "gumbel, adversarial": ({"name": "gumbel"}, {}),
    "darts, adversarial": ({"name": "darts"}, {}),
    "darts, adversarial, by perturbation": ({"name": "darts"}, {"method": "perturbation"}),
    "darts, adversarial, watched": ({"name": "darts", "watch": {"window": 2, "restarts": 1}}, {}),
    "evolution, shared weights": (
        {
            "name": "sampled",
            "sampler": "evolution",
            "trials": 100,
            "sharing": CURRICULUM | {"alpha_frozen": 1.0},
            "attack": ATTACK,
            "num_images": 1000,
        },
        {},
    ),
    "evolution, trained briefly": (
        BRIEFLY | {"sampler": {"name": "evolution", "population_size": 10, "sample_size": 5}},
        {},
    ),
    "tpe, trained briefly": (BRIEFLY | {"sampler": "tpe"}, {}),
    "nsga2, trained briefly": (
        BRIEFLY | {"sampler": {"name": "nsga2", "population_size": 10}, "objectives": ["robust", "clean"]},
        {},
    ),
    "random sharing": ({"name": "random_sharing", "alpha_frozen": 1.0}, {"method": "samples", "pool": 40}),
    "synflow, best of 100": (
        {"name": "sampled", "sampler": "random", "trials": 100, "objectives": ["score"], "proxy": "synflow"},
        {},
    ),
}
"""Each method's search and derivation."""

FIRST, LARGEST = next(iter(METHODS)), "333333"
"""The search to compare others with, and the cell of 3 x 3 convolutions alone."""

DERIVATION: dict[str, Any] = {
    "count": 1,
    "pool": 1,
    "num_images": 1000,
    "attack": ATTACK,
}
"""The common settings of all derivations."""

COLUMNS = ("pgd@8/255", "autoattack", "clean")


def load(folder: Path) -> Dataset:
    """Return the images; no search sees the test split."""
    loaded = rn.datasets.load("folder", root=folder / "cifar10-jpeg", **SIZES)
    return replace(loaded, test=loaded.validation[:1])


def search(row: str, seed: int, data: Dataset, out: Path, work: Path) -> None:
    """Search, derive one cell, and write it."""
    path = out / f"{slug(row)}-{seed}.json"
    if path.exists():
        return
    started, space = time.process_time(), rn.spaces.load("nasbench201", **SPACE)
    plan, chosen_by = plans(row)
    folder = work / f"{slug(row)}-{seed}"
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    found: SearchResult = plan.search(space, data, THREAT, Stage("search", seed, World(), Progress(), folder))
    candidates = derivation.derive(
        found, space, data, THREAT, chosen_by, Stage("derive", seed, World(), Progress(quiet=True))
    )
    write_json(
        path,
        {
            "row": row,
            "seed": seed,
            "cell": str(candidates[0].architecture),
            "argmax": str(found.best),
            "probabilities": found.probabilities,
            "trajectory": found.record["trajectory"],
            "seconds": found.record["seconds"],
            "process_seconds": time.process_time() - started,
            "cpu": describe_environment(World(), []).cpu,
        },
    )
    print(row, seed, candidates[0].architecture, flush=True)


def correlation(seed: int, data: Dataset, out: Path, work: Path, count: int = 100) -> None:
    """Measure random cells with the weights of the first method's supernet, and write them."""
    path, row = out / f"correlation-{seed}.json", FIRST
    if path.exists() or not (out / f"{slug(row)}-{seed}.json").exists():
        return
    space, (plan, chosen_by) = rn.spaces.load("nasbench201", **SPACE), plans(row)
    stage = Stage("search", seed, World(), Progress(), work / f"{slug(row)}-{seed}")
    found = plan.search(space, data, THREAT, stage)  # finished: its last state is read
    uniform = [[1 / len(edge)] * len(edge) for edge in found.probabilities]
    ranked = derivation.derive(
        SearchResult(found.space, uniform, found.supernet, {}),
        space,
        data,
        THREAT,
        replace(chosen_by, method="samples", pool=count),
        Stage("correlation", seed, World(), Progress()),
    )
    cells = {str(one.architecture): [one.validation_robust, one.validation_clean] for one in ranked}
    write_json(path, {"row": row, "seed": seed, "images": chosen_by.num_images, "cells": cells})


def plans(row: str) -> tuple[Any, derivation.Derivation]:
    """Return a method's search and derivation."""
    settings, options = METHODS[row]
    given = {key: value for key, value in settings.items() if key != "name"}
    table = given if settings["name"] == "sampled" else {**CURRICULUM, **given}
    chosen_by = config.build(derivation.Derivation, {**DERIVATION, **options}, "derive")
    return config.build(rn.searches.get(settings["name"]), table, "search"), chosen_by


def slug(row: str) -> str:
    """Return a row's name as a part of a file's."""
    return row.replace(", ", "-").replace(" ", "_")


def table(out: Path) -> str:
    """Return the results, with the published table's entries."""
    from scipy import stats

    published = rn.tables.load("nas-robbench-201")

    def value(cell: str, column: str = COLUMNS[0]) -> float:
        return published.query(cell, column, dataset="cifar10").mean

    entries = [read_json(path) for path in sorted(out.glob("*.json")) if not path.name.startswith("correlation")]
    found = {row: {entry["seed"]: entry["cell"] for entry in entries if entry["row"] == row} for row in METHODS}
    seeded = [entry for entry in entries if entry["row"].endswith("seeded")]
    found["the seed alone"] = {entry["seed"]: most_probable(entry["trajectory"][0]["mixture"]) for entry in seeded}
    found["the largest cell"] = {0: str(Architecture.parse(LARGEST))}
    found["random choice"] = dict(enumerate(random_cells(1000)))
    own = {seed: value(cell) for seed, cell in found[FIRST].items()}
    heads = ["", "seeds", "PGD 8/255, %", "least", "AutoAttack", "clean", "multiply-adds, %"]
    heads += [f"{FIRST} is better by", "minutes"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row, cells in found.items():
        if not cells:
            continue
        cost = [entry["process_seconds"] / 60 for entry in entries if entry["row"] == row]
        values = [value(cell) for cell in cells.values()]
        difference = ""
        if row != FIRST and len(own) > 1 and len(values) > 1:
            with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # where all values are equal
                test = stats.ttest_ind(list(own.values()), values, equal_var=False)  # Welch
            low, high = test.confidence_interval()
            difference = f"{100 * low:.1f} to {100 * high:.1f}, p = {test.pvalue:.2g}"
        columns = [spread([value(cell, column) for cell in cells.values()]) for column in COLUMNS]
        size = f"{100 * statistics.mean(map(share_of_largest, cells.values())):.0f}"
        shown = [columns[0], f"{100 * min(values):.2f}", *columns[1:], size, difference]
        minutes = f"{statistics.mean(cost):.1f}" if cost else ""
        lines.append(f"| {row} | {len(cells)} | {' | '.join([*shown, minutes])} |")
    lines += [""]
    for row, cells in found.items():
        if row in METHODS and cells:
            named = [f"`{Architecture.parse(cell).digits()}` {100 * value(cell):.2f}" for cell in cells.values()]
            lines.append(f"- {row}: {', '.join(named)}")
    inherited = [read_json(path)["cells"] for path in sorted(out.glob("correlation-*.json"))]
    for place, kind in enumerate(["under attack", "clean"] if inherited else []):
        found_by_seed = [
            stats.spearmanr([scores[place] for scores in cells.values()], [value(cell) for cell in cells]).statistic
            for cells in inherited
        ]
        lines.append(
            f"- {FIRST}: Spearman correlation of inherited-weight accuracy, {kind}, with the table over "
            f"{len(inherited[0])} random cells: {spread(found_by_seed, 1)}, seed by seed "
            f"{', '.join(f'{correlation:.2f}' for correlation in found_by_seed)}"
        )
    return "\n".join([*lines, "", *room(published)])


def share_of_largest(cell: str) -> float:
    """Return the multiply-adds of a cell in a network of the searches' size, over those of `LARGEST`."""
    of_one = costs().of_one
    return of_one(Architecture.parse(cell).pruned) / of_one(Architecture.parse(LARGEST))


@functools.cache
def costs() -> Cost:
    """Return the multiply-adds of operations in a network of the searches' size."""
    form = DataForm("images", tuple("0123456789"), (3, 8, 8))
    space = mixed(rn.spaces.load("nasbench201", **SPACE), "search_vs_table")
    return Resource(quantity="multiply_adds", limit=1).cost(space, form, torch.device("cpu"))


def room(published: Table) -> list[str]:
    """Return how much better than the cell of the highest clean accuracy there is, among cells up to each size."""
    from scipy import stats

    cells = [Architecture.parse(name) for name in published.architectures]
    clean, robust = (
        [published.query(cell, column, dataset="cifar10").mean for cell in cells] for column in ("clean", COLUMNS[0])
    )
    sizes = [share_of_largest(str(cell)) for cell in cells]
    lines = [
        "| multiply-adds up to | cells | highest under PGD, % | where clean accuracy is highest |",
        "|---|---|---|---|",
    ]
    for limit in (0.2, 0.4, 0.6, 0.8, 1.0):
        within = [place for place, size in enumerate(sizes) if size <= limit]
        best, best_clean = (max(within, key=values.__getitem__) for values in (robust, clean))
        shown = [f"`{cells[place].digits()}` {100 * robust[place]:.2f}" for place in (best, best_clean)]
        lines.append(f"| {100 * limit:.0f} % | {len(within)} | {' | '.join(shown)} |")
    correlation = stats.spearmanr(clean, robust).statistic
    return [*lines, "", f"Spearman correlation of clean accuracy and PGD over all cells: {correlation:.3f}"]


def most_probable(mixture: list[list[float]]) -> str:
    """Return the cell of the largest weights."""
    return str(Architecture(tuple(OPERATIONS[row.index(max(row))] for row in mixture)))


def random_cells(count: int) -> list[str]:
    """Return cells whose output depends on their input, each as likely as any other."""
    drawn, cells = random.Random(0), []
    while len(cells) < count:
        cell = Architecture(tuple(drawn.choice(OPERATIONS) for _ in range(6)))
        if cell.is_connected:
            cells.append(str(cell))
    return cells


def spread(values: list[float], unit: float = 100) -> str:
    """Return the mean, times a unit, with its 95 % t-interval."""
    from scipy import stats

    mean = unit * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * unit * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.2f} ± {half:.2f}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["search", "correlation", "table"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--rows", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search_vs_table"))
    parser.add_argument("--work", type=Path, default=Path("runs/search_vs_table"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.what == "table":
        print(table(chosen.out))
        return
    data = load(chosen.data)
    for seed in chosen.seeds:
        if chosen.what == "correlation":
            correlation(seed, data, chosen.out, chosen.work)
        for row in chosen.rows if chosen.what == "search" else []:
            search(row, seed, data, chosen.out, chosen.work)


if __name__ == "__main__":
    main()
