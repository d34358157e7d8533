"""An elastic supernet against the trial search, in one space, under one limit, with equal processor time.

    python benchmarks/elastic.py --seconds 100 --seeds 0 1 2 --out benchmarks/results/elastic.md
    python benchmarks/elastic.py --data mnist-small --data-root DATA --seconds 600 --out mnist.md

Every search has `--seconds` of this process's time, its derivation included, and may choose a network of up to
`--share` of the multiply-adds of the space's largest. The elastic search spends `--training` of it on the shared
weights, in as many epochs as a calibration says there is time for, and the rest on measuring networks with them; the
trial search trains as many networks as it can, each in a tenth of the recipe's epochs (`recipes.for_space`). Random
choice is one network drawn within the limit. Each winner is trained from scratch as the recipe says, and attacked on
test images, which nothing else looks at. One thread. What is in `--work` is not measured again, and further `--seeds`
add to the table.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from robust_nas import derivation, recipes
from robust_nas.attacks.pgd import PGD
from robust_nas.core.files import read_json
from robust_nas.core.seeds import seed_at, seeded
from robust_nas.core.writing import write_json, write_text
from robust_nas.datasets import DataForm, Dataset
from robust_nas.evaluation import evaluate
from robust_nas.models.complexity import count_multiply_adds, count_parameters
from robust_nas.recipes import Recipe
from robust_nas.runtime.distributed import World
from robust_nas.runtime.environment import describe_environment
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.runtime.states import load_state
from robust_nas.samplers import draw
from robust_nas.searches._limited import Limit, LimitedSpace
from robust_nas.searches.elastic import Elastic
from robust_nas.spaces import extreme
from robust_nas.training import fit

ROWS: dict[str, list[str]] = {
    "elastic": ["search.name=elastic"],
    "trials": [],
    "random choice": ["search.name=elastic"],
    "elastic, labels": ["search.name=elastic", "search.distillation=false"],
    "elastic, random networks alone": [
        "search.name=elastic",
        "search.distillation=false",
        "search.sandwich=false",
        "search.num_random=4",
    ],
}
"""Each method's settings beside those of `recipes.for_space`."""

MEASURED = {"search.attack.name": "pgd", "search.attack.steps": "5", "search.num_images": "200"}
"""How searches measure a network, with shared weights or its own."""


class _Spent(Exception):
    """The processor time is spent."""


@dataclass
class _Timed(Stage):
    """A stage whose work ends after the trial in which a process time has passed."""

    until: float = 0.0

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Keep the state."""
        super().save(step, state)
        if "trials" in state and time.process_time() > self.until:
            raise _Spent


def recipe(row: str, chosen: argparse.Namespace, *overrides: str) -> Recipe:
    """Return the recipe of a method."""
    given = [f"{key}={value}" for key, value in MEASURED.items()]
    return recipes.for_space(
        chosen.space,
        [*ROWS[row], *given, "threads=1", "workers=1", *overrides],
        data=chosen.data,
        data_root=chosen.data_root,
    )


def within(space: Any, data: Dataset, share: float) -> LimitedSpace:
    """Return the space's networks of up to a share of the largest one's multiply-adds."""
    largest = extreme(space, space.decisions, max)
    whole = count_multiply_adds(space.network(largest, data), data.image_shape)
    return LimitedSpace(space, DataForm.of(data), Limit(quantity="multiply_adds", limit=float(int(share * whole))))


def epochs_for(row: str, seconds: float, chosen: argparse.Namespace, data: Dataset, limit: Limit) -> int:
    """Return the number of epochs of an elastic search that processor time is there for, from one epoch."""
    kept = chosen.work / f"{row}-epoch.json"
    if not kept.exists():
        given = recipe(row, chosen, "search.epochs=1", "search.trials=1")
        search, started = replace(cast(Elastic, given.search), resource=limit), time.process_time()
        search.search(given.space, data, given.threat, _stage("search", 0))
        write_json(kept, {"seconds": time.process_time() - started})
    return max(1, int(seconds / read_json(kept)["seconds"]))


def _stage(name: str, seed: int, folder: Path | None = None) -> Stage:
    return Stage(name, seed, World(), Progress(quiet=folder is None), folder)


def find(row: str, seed: int, chosen: argparse.Namespace, data: Dataset, limited: LimitedSpace) -> dict[str, Any]:
    """Return the network that a method chooses, and what it took."""
    if row == "random choice":
        return {"architecture": str(draw(limited, random.Random(seed_at(seed, "random")))), "seconds": 0.0}
    assert limited.limit is not None
    search: Any
    space: Any
    if row == "trials":
        given = recipe(row, chosen, "search.trials=100000")
        search, space = given.search, limited
    else:
        epochs = epochs_for(row, chosen.training * chosen.seconds, chosen, data, limited.limit)
        given = recipe(row, chosen, f"search.epochs={epochs}", "search.trials=100000")
        search, space = replace(cast(Elastic, given.search), resource=limited.limit), given.space
    folder = chosen.work / f"{row}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # a search that was cut off has lost its clock
    (folder / "checkpoints").mkdir(parents=True)
    started = time.process_time()
    stage = _Timed("search", seed, World(), Progress(), folder, until=started + 0.97 * chosen.seconds)
    try:
        found = search.search(space, data, given.threat, stage)
    except _Spent:
        states = (load_state(path)["state"] for path in (folder / "checkpoints").glob("search*.state.safetensors"))
        done = max(len(state.get("trials", ())) for state in states)
        found = replace(search, trials=done).search(
            space, data, given.threat, Stage("search", seed, World(), Progress(quiet=True), folder)
        )
    plan = replace(given.derive, count=1, pool=3, num_images=search.num_images, attack=search.attack)
    (best, *_) = derivation.derive(found, given.space, data, given.threat, plan, _stage("derive", seed))
    return {
        "architecture": str(best.architecture),
        "seconds": time.process_time() - started,
        "measured": len(found.record["measured"]),
        "epochs": getattr(search, "epochs", None),
    }


def train(architecture: str, seed: int, given: Recipe, data: Dataset) -> dict[str, Any]:
    """Return the accuracies on test images of a network that is trained as the recipe says."""
    space, threat = given.space, given.threat
    with seeded(seed, "train", architecture):
        network = space.network(space.parse(architecture), data)
    costs = {
        "multiply_adds": count_multiply_adds(network, data.image_shape),
        "parameters": count_parameters(network),
    }
    model = fit(network, data, threat, given.train, _stage("train", seed)).model.eval()
    found = evaluate(model, data.test, threat, [PGD(steps=20)], stage=_stage("attack", seed))
    return {"robust": found.robust_accuracy, "clean": found.clean_accuracy, "images": len(data.test), **costs}


def table(rows: list[dict[str, Any]], chosen: argparse.Namespace, given: Recipe, limit: float) -> str:
    """Return the results as Markdown: means over seeds with standard deviations, then seed by seed."""

    def spread(values: list[float], unit: float = 1.0, digits: int = 1) -> str:
        mean = f"{unit * statistics.mean(values):,.{digits}f}"
        return mean if len(values) < 2 else f"{mean} ± {unit * statistics.stdev(values):,.{digits}f}"

    lines = [
        f"`{chosen.space}` on {chosen.data}, {given.threat}; networks of up to {limit:,.0f} multiply-adds; "
        f"{chosen.seconds:g} s of processor time for each search ({chosen.training:g} of it for the shared weights); "
        f"PGD-20 on {rows[0]['images']} test images; {rows[0]['cpu']}.",
        "",
        "| search | seeds | robust, % | clean, % | multiply-adds | networks measured | processor s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ROWS:
        own = [row for row in rows if row["row"] == name]
        if own:
            cells = [
                spread([row["robust"] for row in own], 100),
                spread([row["clean"] for row in own], 100),
                spread([row["multiply_adds"] for row in own], digits=0),
                spread([row.get("measured", 1) for row in own], digits=0),
                spread([row["seconds"] for row in own], digits=0),
            ]
            lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    lines += [
        "",
        "| search | seed | network | robust, % | clean, % | multiply-adds | epochs | measured | processor s |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (list(ROWS).index(row["row"]), row["seed"])):
        shown = [row["row"], row["seed"], f"`{row['architecture']}`", f"{100 * row['robust']:.1f}"]
        shown += [f"{100 * row['clean']:.1f}", f"{row['multiply_adds']:,}", row.get("epochs") or ""]
        shown += [row.get("measured", ""), f"{row['seconds']:.0f}"]
        lines.append(f"| {' | '.join(map(str, shown))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS)[:3], metavar="METHOD")
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--training", type=float, default=0.8)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--space", default="elastic-resnet-small")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--train-epochs", type=int, help="of the winners; the recipe's, if not given")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/elastic.md"))
    parser.add_argument("--work", type=Path, default=Path("runs/elastic"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.work.mkdir(parents=True, exist_ok=True)
    given = recipe("trials", chosen, *([f"train.epochs={chosen.train_epochs}"] if chosen.train_epochs else []))
    data = given.data.load_splits()
    limited = within(given.space, data, chosen.share)
    assert limited.limit is not None
    for seed in chosen.seeds:
        for row in chosen.rows:
            path = chosen.work / f"{row}-{seed}.json"
            if path.exists():
                continue
            found = {"row": row, "seed": seed, **find(row, seed, chosen, data, limited)}
            print(row, seed, found, flush=True)
            found |= train(found["architecture"], seed, given, data)
            write_json(path, {**found, "cpu": describe_environment(World(), []).cpu})
    rows = [read_json(path) for path in sorted(chosen.work.glob("*-[0-9]*.json"))]
    write_text(chosen.out, table(rows, chosen, given, limited.limit.limit))
    print(table(rows, chosen, given, limited.limit.limit))


if __name__ == "__main__":
    main()
