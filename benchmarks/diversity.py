"""Ensembles of cells chosen with and without `derive.diversity`: CIFAR-10 (JPEG) at 8 x 8 pixels.

    python benchmarks/diversity.py measure            # three seeds
    python benchmarks/diversity.py table              # all that is there, as Markdown

From one search's supernet, `search_vs_table.py`'s row `ROW`, and of 24 cells that are drawn from its posterior, three
are chosen at each weight in `WEIGHTS`: the most accurate one under attack on validation images, and those whose
accuracy, less the weight times their transfer rate, is highest. They are trained alike, and the mean of their logits is
attacked as one network on test images. Beside them, the most accurate cell is trained three times. What is there is not
computed again, a search that is in `--work` is taken from there, and further `--seeds` add to the table. One thread.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from search_vs_table import CURRICULUM, FGSM_RS, SIZES, SPACE, THREAT, plans, slug, spread
from torch import nn

import robust_nas as rn
from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.cell import Architecture
from robust_nas.attacks.pgd import PGD
from robust_nas.core import config
from robust_nas.core.files import read_json
from robust_nas.core.seeds import seed_at, seeded
from robust_nas.core.writing import write_json
from robust_nas.datasets import Dataset
from robust_nas.derivation import Candidate, derive, most_diverse, transfer_rate
from robust_nas.ensembles import Ensemble
from robust_nas.evaluation import evaluate, transfers
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.training import Training, fit

ROW, COUNT, POOL, WEIGHTS = "dirichlet, adversarial, seeded", 3, 24, (0.0, 0.5, 2.0)
SAME = "the most accurate cell three times"
TRAINING = config.build(
    Training,
    {
        "method": {"name": "pgd_at", "attack": FGSM_RS},
        "epochs": 3,
        "batch_size": 128,
        "learning_rate": CURRICULUM["learning_rate"],
    },
    "train",
)
ATTACK = PGD(steps=20)


def measure(seed: int, data: Dataset, out: Path, work: Path) -> None:
    """Choose cells at each weight, train them, attack them, and write what came of it."""
    path = out / f"{seed}.json"
    if path.exists():
        return
    space, (plan, chosen_by) = rn.spaces.load("nasbench201", **SPACE), plans(ROW)
    folder = work / f"{slug(ROW)}-{seed}"
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    found = plan.search(space, data, THREAT, Stage("search", seed, World(), Progress(), folder))
    chosen_by = replace(chosen_by, method="samples", count=COUNT, pool=POOL, diversity=WEIGHTS[-1])
    candidates = derive(found, space, data, THREAT, chosen_by, Stage("derive", seed, World(), Progress()))
    ranked = sorted(candidates, key=lambda one: one.validation_robust or 0.0, reverse=True)
    chosen = {f"diversity {weight:g}": most_diverse(ranked, COUNT, weight)[:COUNT] for weight in WEIGHTS}

    networks: dict[tuple[str, int], nn.Module] = {}

    def member(architecture: AnyArchitecture, copy: int = 0) -> nn.Module:
        """Return a network of the architecture, which is trained once."""
        key = str(architecture), copy
        if key not in networks:
            of_its_own = seed_at(seed, *key)
            with seeded(of_its_own, "network"):
                network = space.network(architecture, data)
            alone = Stage("train", of_its_own, World(), Progress())
            networks[key] = fit(network, data, THREAT, TRAINING, alone).model.eval()
        return networks[key]

    ensembles = {
        name: {
            "cells": [str(one.architecture) for one in cells],
            "inherited": {
                "robust": statistics.mean(one.validation_robust or 0.0 for one in cells),
                "transfer": inherited_rate(cells),
            },
            **trained([member(one.architecture) for one in cells], data, seed),
        }
        for name, cells in chosen.items()
    }
    best = ranked[0].architecture
    thrice = [member(best, copy) for copy in range(COUNT)]
    ensembles[SAME] = {"cells": [str(best)] * COUNT, **trained(thrice, data, seed)}
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {"row": ROW, "seed": seed, "pool": len(ranked), "images": len(data.test), "ensembles": ensembles})


def inherited_rate(candidates: Sequence[Candidate]) -> float:
    """Return the mean transfer rate over all pairs, with inherited weights."""
    return statistics.mean(transfer_rate(*pair) for pair in itertools.combinations(candidates, 2))


def trained(members: Sequence[nn.Module], data: Dataset, seed: int) -> dict[str, Any]:
    """Return accuracies of the mean of the members' logits and of the members, and how attacks transfer between them.

    A member's transfer rate to another is the share of its adversarial examples, on images that both classify
    correctly, that fool the other; pairs without an example do not count.
    """
    stage = Stage("test", seed, World(), Progress(quiet=True))
    together = evaluate(Ensemble(members).eval(), data.test, THREAT, [ATTACK], stage=stage)
    alone = [evaluate(one, data.test, THREAT, [ATTACK], stage=stage) for one in members]
    examples, fooled = transfers(members, data.test, THREAT, ATTACK, stage)
    counted = ~torch.eye(len(members), dtype=torch.bool) & (examples > 0)
    return {
        "clean": together.clean_accuracy,
        "robust": together.robust_accuracy,
        "members_robust": [one.robust_accuracy for one in alone],
        "transfer": float((fooled / examples)[counted].mean()),
    }


def table(out: Path) -> str:
    """Return the measurements as Markdown; means over seeds with 95 % intervals."""
    entries = [read_json(path) for path in sorted(out.glob("*.json"))]
    if not entries:
        return f"Nothing has been measured in {out}."
    heads = ["chosen; all in %", "seeds", "under attack, inherited weights", "transfer, inherited", "transfer, trained"]
    heads += ["ensemble, clean", "ensemble, under attack", "members' mean", "first member"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name in entries[0]["ensembles"]:
        rows = [entry["ensembles"][name] for entry in entries]
        inherited = [
            spread([row["inherited"][key] for row in rows]) if name != SAME else "" for key in ("robust", "transfer")
        ]
        shown = [
            spread([row["transfer"] for row in rows]),
            spread([row["clean"] for row in rows]),
            spread([row["robust"] for row in rows]),
            spread([statistics.mean(row["members_robust"]) for row in rows]),
            spread([row["members_robust"][0] for row in rows]),
        ]
        lines.append(f"| {' | '.join([name, str(len(rows)), *inherited, *shown])} |")
    lines.append("")
    plain, *others = entries[0]["ensembles"]
    for name in others:
        for key in ("transfer", "robust"):
            change = [entry["ensembles"][name][key] - entry["ensembles"][plain][key] for entry in entries]
            lines.append(f"- {name}, less {plain}, seed by seed: {key} {spread(change)}")
    for name in entries[0]["ensembles"]:
        cells = [
            " ".join(f"`{Architecture.parse(cell).digits()}`" for cell in entry["ensembles"][name]["cells"])
            for entry in entries
        ]
        lines.append(f"- {name}: {'; '.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "table"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/diversity"))
    parser.add_argument("--work", type=Path, default=Path("runs/search_vs_table"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.what == "table":
        print(table(chosen.out))
        return
    data = rn.datasets.load("folder", root=chosen.data / "cifar10-jpeg", **SIZES | {"test_size": 1000})
    for seed in chosen.seeds:
        measure(seed, data, chosen.out, chosen.work)


if __name__ == "__main__":
    main()
