"""Certified accuracy: of training methods, of the cells that searches find, and of RobBoost's ensembles of these.

    python benchmarks/certified.py training digits          # one cell, every certified training method
    python benchmarks/certified.py search digits mnist      # clean, adversarial, certified search, then equal training
    python benchmarks/certified.py ensemble digits          # RobBoost over these cells, and a random one
    python benchmarks/certified.py boosting digits          # three networks one by one, or each for the joint bound
    python benchmarks/certified.py table digits mnist       # all that is there, as Markdown

Every result is a file in `--out`, and what is there is not computed again: an interrupted program goes on, and further
`--seeds` add to the table. Trained networks are kept in `--work`. MNIST is read from `--data`. One thread.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import robust_nas as rn
from robust_nas import derivation
from robust_nas.attacks.pgd import PGD
from robust_nas.bounds.crown_ibp import CROWNIBP
from robust_nas.core import config
from robust_nas.core.files import read_json
from robust_nas.core.seeds import generator_at, seeded
from robust_nas.core.writing import write_json
from robust_nas.datasets import Dataset, ImageSet
from robust_nas.ensembles import Ensemble, fit_with, joint_margins
from robust_nas.ensembles.robboost import RobBoost
from robust_nas.evaluation import wilson_interval
from robust_nas.intake import load_weights
from robust_nas.models.complexity import count_parameters
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.runtime.states import save_state
from robust_nas.searches.dirichlet import Dirichlet
from robust_nas.training import Training, fit

CELL = "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"

SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {
        "epsilon": 0.03,
        "space": {"channels": 8, "stages": 2},
        "search_epochs": 12,
        "epochs": 30,
        "batch_size": 64,
        "validation": 360,
    },
    "mnist": {
        "epsilon": 0.1,
        "space": {"channels": 8, "stages": 3, "stem_stride": 2},
        "search_epochs": 6,
        "epochs": 8,
        "batch_size": 64,
        "validation": 500,
    },
}
SIZES = {"train_size": 3000, "validation_size": 500, "test_size": 2000}
"""Images of MNIST: what two cores can search on, five times for each search."""

FGSM = {"name": "fgsm", "random_start": True, "batch_norm": "batch"}
OBJECTIVES: dict[str, Any] = {
    "clean": "standard",
    "adversarial": {"name": "pgd_at", "attack": FGSM},
    "certified": {"name": "ibp", "initialisation": "tight"},
}
SEARCHES = [*OBJECTIVES, "random"]

METHODS: dict[str, dict[str, Any]] = {
    "standard": {"method": "standard"},
    "pgd_at": {"method": "pgd_at"},
    "ibp": {"method": {"name": "ibp", "initialisation": "tight"}},
    "ibp, given weights": {"method": "ibp"},
    "crown_ibp": {"method": {"name": "crown_ibp", "initialisation": "tight"}},
    "sabr": {"method": {"name": "sabr", "initialisation": "tight"}},
    "mtl_ibp": {"method": {"name": "mtl_ibp", "initialisation": "tight"}},
}


def load(name: str, folder: Path) -> Dataset:
    """Return the images of a data set."""
    return rn.datasets.load(name, root=folder, download=False, **SIZES) if name == "mnist" else rn.datasets.load(name)


def space_of(name: str) -> rn.spaces.Space:
    """Return the search space of a data set."""
    return rn.spaces.load("nasbench201", cells_per_stage=1, **SETTINGS[name]["space"])


def training_of(name: str, options: dict[str, Any]) -> Training:
    """Return the training that all networks of a data set share, with a method."""
    chosen = {key: SETTINGS[name][key] for key in ("epochs", "batch_size")}
    chosen |= {"learning_rate": 0.1, "gradient_clip": 10.0, "keep": "last", "selection_attack": "fgsm"}
    return config.build(Training, {**chosen, "epsilon_warm_up": 0.1, "epsilon_ramp": 0.4, **options})


def trained(name: str, cell: str, options: dict[str, Any], seed: int, data: Dataset, weights: Path) -> nn.Module:
    """Return a cell's network, trained; from `weights` if it was trained before."""
    space, threat = space_of(name), rn.ThreatModel(epsilon=SETTINGS[name]["epsilon"])
    with seeded(seed, "train"):
        network = space.network(space.parse(cell), data)
    if weights.exists():
        load_weights(network, weights)
        return network.eval()
    stage = Stage("train", seed, World(), Progress(quiet=True))
    model = fit(network, data, threat, training_of(name, options), stage).model
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_state(weights, {"weights": model.state_dict()})
    return model


def measured(name: str, model: nn.Module, images: ImageSet) -> dict[str, Any]:
    """Return clean, attacked and certified accuracy."""
    threat = rn.ThreatModel(epsilon=SETTINGS[name]["epsilon"])
    attacked = rn.evaluate(model, images, threat, attacks=[PGD(steps=20, step_size=threat.epsilon / 10)])
    found: dict[str, Any] = {"images": len(images), "clean": attacked.clean_accuracy, "pgd20": attacked.robust_accuracy}
    for bound in ("interval", "crown_ibp"):
        found[bound] = rn.certify(model, images, threat, bound=bound)[0].accuracy
    return found


def train(name: str, row: str, seed: int, data: Dataset, out: Path, work: Path) -> None:
    """Train the cell by one method and write what is certified of it."""
    path = out / name / "training" / f"{slug(row)}-{seed}.json"
    if path.exists():
        return
    started = time.process_time()
    model = trained(name, CELL, METHODS[row], seed, data, work / name / f"{slug(row)}-{seed}.safetensors")
    seconds = time.process_time() - started
    write_json(path, {"row": row, "seed": seed, "seconds": seconds, **measured(name, model, data.test)})
    print(path.read_text(), flush=True)


def searched(name: str, row: str, seed: int, data: Dataset) -> tuple[str, dict[str, Any]]:
    """Return the cell that a search finds, and what there is to say about the search.

    All share the curriculum: weights alone at first, then a growing epsilon. The cell is the posterior's first whose
    output depends on the input; of the random ones, any such cell is as likely as any other.
    """
    space, settings = space_of(name), SETTINGS[name]
    if row == "random":
        drawn = random.Random(seed)
        while True:
            cell = space.parse("".join(str(drawn.randrange(len(space.operations))) for _ in space.edges))
            if cell.is_connected:
                return str(cell), {}
    table = {
        "epochs": settings["search_epochs"],
        "objective": OBJECTIVES[row],
        "learning_rate": 0.05,
        "alpha_learning_rate": 0.05,
        "alpha_frozen": 0.25,
        "epsilon_warm_up": 0.1,
        "epsilon_ramp": 0.5,
        "validation_attack": "fgsm",
    }
    started, threat = time.process_time(), rn.ThreatModel(epsilon=settings["epsilon"])
    stage = Stage("search", seed, World(), Progress(quiet=True))
    found = config.build(Dirichlet, table).search(space, data, threat, stage)
    last = found.record["trajectory"][-1]
    about = {"seconds": time.process_time() - started, "supernet": last["validation"], "entropy": last["entropy"]}
    return str(derivation.distinct(found, 1)[0].architecture), about


def search(name: str, row: str, seed: int, data: Dataset, out: Path, work: Path) -> None:
    """Search, train the cell for intervals, and write what is certified of it."""
    path = out / name / "search" / f"{row}-{seed}.json"
    if path.exists():
        return
    cell, about = searched(name, row, seed, data)
    model = trained(name, cell, METHODS["ibp"], seed, data, work / name / f"search-{row}-{seed}.safetensors")
    found = {"row": row, "seed": seed, "cell": cell, "parameters": count_parameters(model), "search": about}
    write_json(path, {**found, **measured(name, model, data.test)})
    print(path.read_text(), flush=True)


def ensemble(name: str, seed: int, data: Dataset, out: Path, work: Path) -> None:
    """Join the cells of one seed and write what is certified of them, beside the members and uniform weights."""
    path = out / name / "ensemble" / f"{seed}.json"
    entries = [out / name / "search" / f"{row}-{seed}.json" for row in SEARCHES]
    if path.exists() or not all(entry.exists() for entry in entries):
        return
    members = [
        trained(name, read_json(entry)["cell"], {}, seed, data, work / name / f"search-{entry.stem}.safetensors")
        for entry in entries
    ]
    threat = rn.ThreatModel(epsilon=SETTINGS[name]["epsilon"])
    validation, bound = data.validation[: SETTINGS[name]["validation"]], CROWNIBP()

    def bounds(images: ImageSet) -> list[Any]:
        return [bound.margins(member, images.images, images.labels, threat) for member in members]

    fitted, on_test = RobBoost(tolerance=1e-7).fit(bounds(validation), threat), bounds(data.test)
    assert fitted.lower is not None
    joined = {"robboost": fitted.weights.tolist(), "uniform": [1 / len(members)] * len(members)}
    certified = {
        row: float((joint_margins(on_test, weights, fitted.scales).lower(threat).amin(1) > 1e-6).double().mean())
        for row, weights in joined.items()
    }
    singles = [float((own.lower(threat).amin(1) > 1e-6).double().mean()) for own in on_test]
    of_validation = [float((own.lower(threat).amin(1) > 1e-6).double().mean()) for own in bounds(validation)]
    whole = Ensemble(members, fitted.weights, fitted.scales).eval()
    attacked = rn.evaluate(whole, data.test, threat, attacks=[PGD(steps=20, step_size=threat.epsilon / 10)])
    write_json(
        path,
        {
            "seed": seed,
            "images": len(data.test),
            "weights": joined["robboost"],
            "gap": fitted.objective - fitted.lower,
            "certified": certified["robboost"],
            "uniform": certified["uniform"],
            "members": singles,
            "chosen_member": singles[of_validation.index(max(of_validation))],
            "clean": attacked.clean_accuracy,
            "pgd20": attacked.robust_accuracy,
        },
    )
    print(path.read_text(), flush=True)


def boosting(name: str, seed: int, data: Dataset, out: Path, work: Path) -> None:
    """Train one cell three times, alone or beside those before it, and write what is certified of either ensemble.

    By CROWN-IBP's linear bounds all the way, which is where what several networks add to a joint bound shows.
    """
    path = out / name / "boosting" / f"{seed}.json"
    if path.exists():
        return
    threat, space, bound = rn.ThreatModel(epsilon=SETTINGS[name]["epsilon"]), space_of(name), CROWNIBP()
    method = {"method": {"name": "crown_ibp", "beta": 1.0, "initialisation": "tight"}}
    first = trained(name, CELL, method, seed, data, work / name / f"linear-{seed}.safetensors")
    members = {"alone": [first], "boosted": [first]}
    for index in (1, 2):
        for row, others in members.items():
            with seeded(seed, "train", index):
                network = space.network(space.parse(CELL), data)
            stage = Stage("train", seed + 1000 * index, World(), Progress(quiet=True))
            frozen = others[:] if row == "boosted" else []
            fit_with(frozen, network, data, threat, training_of(name, method), stage)
            others.append(network)
    found: dict[str, Any] = {"seed": seed, "images": len(data.test)}
    for row, models in members.items():
        validation, on_test = (
            [bound.margins(model, images.images, images.labels, threat) for model in models]
            for images in (data.validation[: SETTINGS[name]["validation"]], data.test)
        )
        weights = RobBoost().fit(validation, threat)
        for kind, chosen in {"robboost": weights.weights.tolist(), "uniform": [1.0] * len(models)}.items():
            scales = weights.scales if kind == "robboost" else [1.0] * len(models)
            lower = joint_margins(on_test, chosen, scales).lower(threat).amin(1)
            found[f"{row}_{kind}"] = float((lower > 1e-6).double().mean())
    write_json(path, found)
    print(path.read_text(), flush=True)


def slug(row: str) -> str:
    """Return a row's name as a part of a file's."""
    return row.replace(", ", "-").replace(" ", "_")


def table(name: str, out: Path) -> str:
    """Return all that was measured on a data set."""
    settings, columns = SETTINGS[name], ("clean", "pgd20", "interval", "crown_ibp")
    head = " | ".join(["", "seeds", "clean", "PGD-20", "certified by interval", "certified by CROWN-IBP"])
    parts = [f"## {name}, linf {settings['epsilon']}"]
    for kind, rows in {"training": list(METHODS), "search": SEARCHES}.items():
        everything = read_all(out / name / kind)
        entries = {row: [entry for entry in everything if entry["row"] == row] for row in rows}
        if any(entries.values()):
            parts.append(f"|{head} |\n|{'---|' * 6}")
            parts[-1] += "".join(
                f"\n| {row} | {len(found)} | " + " | ".join(spread(found, column) for column in columns) + " |"
                for row, found in entries.items()
                if found
            )
            if kind == "search":
                parts[-1] += "\n\n" + cells(entries)
    if boosted := read_all(out / name / "boosting"):
        names = ["alone_uniform", "alone_robboost", "boosted_uniform", "boosted_robboost"]
        lines = ["| three networks | seeds | certified |", "|---|---|---|"]
        lines += [f"| {key.replace('_', ', ')} | {len(boosted)} | {spread(boosted, key)} |" for key in names]
        parts.append("\n".join(lines))
    if joined := read_all(out / name / "ensemble"):
        heads = ["seed", "RobBoost", "uniform", "members", "validation's best member", "clean", "PGD-20", "gap"]
        lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for entry in joined:
            single = ", ".join(f"{value:.1%}" for value in entry["members"])
            values = [f"{entry[key]:.1%}" for key in ("certified", "uniform")]
            rest = [f"{entry[key]:.1%}" for key in ("chosen_member", "clean", "pgd20")]
            lines.append(f"| {entry['seed']} | " + " | ".join([*values, single, *rest, f"{entry['gap']:.1e}"]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a folder, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def spread(entries: Sequence[dict[str, Any]], column: str) -> str:
    """Return mean ± deviation over seeds, and the 95 % interval of all images (Wilson)."""
    values, count = [entry[column] for entry in entries], sum(entry["images"] for entry in entries)
    mean = statistics.mean(values)
    low, high = wilson_interval(round(mean * count), count)
    deviation = f" ± {statistics.stdev(values):.1%}" if len(values) > 1 else ""
    return f"{mean:.1%}{deviation} ({low:.1%} to {high:.1%})"


def cells(entries: dict[str, list[dict[str, Any]]]) -> str:
    """Return which cells the searches found, and the mean difference to certified search, seed by seed."""
    lines = []
    own = {entry["seed"]: entry["interval"] for entry in entries["certified"]}
    for row, found in entries.items():
        listed = ", ".join(f"`{entry['cell']}`" for entry in found)
        pairs = [own[entry["seed"]] - entry["interval"] for entry in found if entry["seed"] in own]
        if row != "certified" and len(pairs) > 1:
            low, high = bootstrap(pairs)
            better = sum(pair > 0 for pair in pairs)
            listed += (
                f"; certified search's cells have {statistics.mean(pairs):+.1%} (95 % bootstrap interval over seeds "
                f"{low:+.1%} to {high:+.1%}), better in {better} of {len(pairs)}"
            )
        lines.append(f"- {row}: {listed}")
    return "\n".join(lines)


def bootstrap(values: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """Return the percentile interval of the mean."""
    sample = torch.tensor(values, dtype=torch.float64)
    places = torch.randint(len(values), (draws, len(values)), generator=generator_at("cpu", 0, "bootstrap"))
    means = sample[places].mean(1)
    return float(means.quantile(0.025)), float(means.quantile(0.975))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["training", "search", "ensemble", "boosting", "table"])
    parser.add_argument("data_sets", nargs="+", choices=sorted(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--rows", nargs="+", help="methods or searches (all)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/certified"))
    parser.add_argument("--work", type=Path, default=Path("runs/certified"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name in chosen.data_sets:
        if chosen.what == "table":
            print(table(name, chosen.out), end="\n\n")
            continue
        data = load(name, chosen.data)
        for seed in chosen.seeds:
            if chosen.what in ("ensemble", "boosting"):
                {"ensemble": ensemble, "boosting": boosting}[chosen.what](name, seed, data, chosen.out, chosen.work)
            rows = {"training": list(METHODS), "search": SEARCHES}.get(chosen.what, [])
            for row in chosen.rows or rows:
                {"training": train, "search": search}[chosen.what](name, row, seed, data, chosen.out, chosen.work)


if __name__ == "__main__":
    main()
