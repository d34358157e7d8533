"""Every training method on the same network and images: what attacks leave of it, and what it costs.

    python benchmarks/adversarial_training.py train digits mnist cifar10     # resumes; one file per method and seed
    python benchmarks/adversarial_training.py cost digits mnist cifar10      # seconds per epoch and forward passes
    python benchmarks/adversarial_training.py table digits mnist cifar10     # from those files, as Markdown
    python benchmarks/adversarial_training.py speed mnist cifar10            # beside torchattacks' PGD-7

MNIST and CIFAR-10 are read from `--data`, the latter from its folder `cifar10-jpeg` of JPEG files. The network is a
NAS-Bench-201 cell network of 8 channels. Validation images choose the epoch; everything printed is measured on test
images. One thread; `train` can be started several times at once, with different `--seeds` or data sets.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import robust_nas as rn
from robust_nas.attacks.autoattack import AutoAttack
from robust_nas.attacks.pgd import PGD
from robust_nas.core import config
from robust_nas.core.seeds import seeded
from robust_nas.core.writing import write_json
from robust_nas.datasets import Dataset, epoch_batches
from robust_nas.evaluation import wilson_interval
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.training import Batch, Memory, Training, fit
from robust_nas.training._augment import crop_and_flip
from robust_nas.training._costs import forward_equivalents

CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_3x3~2|"

# What differs between the data sets: sizes are what two cores can train and attack. "images" are those that PGD-20
# sees, and those that AutoAttack sees.
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"epsilon": "0.15", "stages": 2, "epochs": 16, "replays": 4, "batch_size": 64, "images": (500, 100)},
    "mnist": {"epsilon": "0.2", "stages": 3, "epochs": 6, "replays": 3, "batch_size": 16, "images": (300, 12)},
    "cifar10": {"epsilon": "8/255", "stages": 3, "epochs": 6, "replays": 3, "batch_size": 32, "images": (500, 24)},
}
AUGMENTATION = {"cifar10": {"padding": 4, "flip": True}}


def methods(epsilon: float, replays: int = 1) -> dict[str, dict[str, Any]]:
    """Return the [train] settings of every row of the table."""
    pgd = {"name": "pgd", "steps": 7, "step_size": epsilon / 4}
    kl = {**pgd, "loss": "kl"}
    at = {"name": "pgd_at", "attack": pgd}
    return {
        "standard": {"method": "standard"},
        "pgd_at": {"method": at},
        "trades": {"method": {"name": "trades", "attack": kl}},
        "mart": {"method": {"name": "mart", "attack": pgd}},
        "fast": {"method": "fast"},
        "fast, n_fgsm": {"method": {"name": "fast", "start": "n_fgsm"}},
        "fast, grad_align": {"method": {"name": "fast", "grad_align": 0.2}},
        "fast, no start": {"method": {"name": "fast", "start": "none"}},
        "free": {"method": {"name": "free", "replays": replays}},
        "cat": {"method": {"name": "cat", "attack": pgd}},
        "sprout": {"method": "sprout"},
        "conadv": {"method": {"name": "conadv", "attack": pgd}},
        "pgd_at, AdvProp": {"method": at, "norm": "mixture", "clean_weight": 1.0},
        "pgd_at, ALP": {"method": at, "pairing": 0.5},
        "pgd_at, AWP": {"method": at, "awp": 0.01},
        "pgd_at, EMA": {"method": at, "ema": 0.99},
    }


def load(name: str, folder: Path) -> Dataset:
    """Return the images of a data set, cut down to what two cores can train on."""
    if name == "digits":
        return rn.datasets.load("digits")
    if name == "mnist":
        return rn.datasets.load(
            "mnist", root=folder, download=False, train_size=500, validation_size=100, test_size=1000
        )
    sizes = {"train_size": 1500, "validation_size": 200, "test_size": 1000}
    return rn.datasets.load("folder", root=folder / "cifar10-jpeg", **sizes)


def plan(name: str, row: str) -> tuple[rn.ThreatModel, Training]:
    """Return the threat model and the training of a row."""
    settings = SETTINGS[name]
    threat = rn.ThreatModel(epsilon=settings["epsilon"])
    chosen = methods(threat.epsilon, settings["replays"])[row]
    # Free-m takes every batch m times: as many steps in all (arXiv:1904.12843, section 4).
    replays = config.build(Training, {"method": chosen["method"]}).method.replays
    options = {
        "epochs": settings["epochs"] // replays,
        "batch_size": settings["batch_size"],
        "learning_rate": 0.1,
        "selection_attack": {"name": "pgd", "steps": 10, "step_size": threat.epsilon / 4},
        **AUGMENTATION.get(name, {}),
    }
    return threat, config.build(Training, {**options, **chosen})


def network(name: str, data: Dataset, seed: int) -> nn.Module:
    """Return the untrained network."""
    space = rn.spaces.load("nasbench201", channels=8, cells_per_stage=1, stages=SETTINGS[name]["stages"])
    with seeded(seed, "train"):
        return space.network(space.parse(CELL), data)


def train(name: str, row: str, seed: int, data: Dataset, out: Path) -> None:
    """Train one row with one seed and write what attacks leave of it, unless that is there."""
    path = out / name / f"{row.replace(', ', '-').replace(' ', '_')}-{seed}.json"
    if path.exists():
        return
    threat, training = plan(name, row)
    stage = Stage("train", seed, World(), Progress(quiet=True))
    fitted = fit(network(name, data, seed), data, threat, training, stage)
    last = network(name, data, seed)
    last.load_state_dict(fitted.last)
    found: dict[str, Any] = {"row": row, "seed": seed, "epsilon": threat.epsilon, **fitted.record}
    step = threat.epsilon / 10
    attacks = [PGD(steps=20, step_size=step), AutoAttack()]
    for which, model, chosen in (("best", fitted.model, attacks), ("last_epoch", last.eval(), attacks[:1])):
        many, few = (data.test[:count] for count in SETTINGS[name]["images"])
        whole = rn.evaluate(model, many, threat, attacks=chosen[:1])
        found[which] = {
            "clean": whole.clean_accuracy,
            "pgd20": whole.robust_accuracy,
            "images": len(many),
        }
        if len(chosen) > 1:
            part = rn.evaluate(model, few, threat, attacks=chosen)
            found[which] |= {"autoattack": part.robust_accuracy, "autoattack_images": len(few)}
    write_json(path, found)
    print(f"{name} {row} seed {seed}: {found['best']}", flush=True)


def cost(name: str, data: Dataset, out: Path) -> None:
    """Write every row's processor time per epoch over that of standard training, and its forward-equivalents."""
    part = dataclasses.replace(data, train=data.train[:256], validation=data.validation[:1])
    rows: dict[str, dict[str, float]] = {}
    threat = rn.ThreatModel(epsilon=SETTINGS[name]["epsilon"])

    def epoch(row: str) -> float:
        _, training = plan(name, row)
        replays = training.method.replays
        quick = dataclasses.replace(training, epochs=1, selection_attack=PGD(steps=1))
        model = network(name, data, 0)
        start = time.process_time()
        fit(model, part, threat, quick, Stage("train", 0, World(), Progress(quiet=True)))
        return (time.process_time() - start) / replays

    names = list(methods(threat.epsilon))
    epoch("standard")
    times: dict[str, list[float]] = {row: [] for row in names}
    for _ in range(3):
        for row in names:
            times[row].append(epoch(row))
    for row in names:
        _, training = plan(name, row)
        images, places = data.train[:64], torch.arange(64)
        model = network(name, data, 0).train()
        memory, counts = Memory(), []
        for step in range(6):  # what is done in some steps only (SPROUT's labels) enters with its share
            batch = Batch(images.images, images.labels, images.labels, threat, step, places, places, 512, 64, memory)
            counts.append(forward_equivalents(training, model, batch))
        ratio = statistics.median(a / b for a, b in zip(times[row], times["standard"], strict=True))
        rows[row] = {"relative_seconds": ratio, "forward_equivalents": statistics.mean(counts)}
        print(f"{name} {row}: {ratio:.2f} x standard, {statistics.mean(counts):.2f} forward passes", flush=True)
    write_json(out / f"{name}-cost.json", rows)


def table(name: str, out: Path) -> str:
    """Return the table of a data set: mean ± deviation over seeds of test accuracies, (95 % interval of all images)."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((out / name).glob("*.json")):
        entry = json.loads(path.read_text())
        found.setdefault(entry["row"], []).append(entry)
    costs_path = out / f"{name}-cost.json"
    costs = json.loads(costs_path.read_text()) if costs_path.exists() else {}
    lines = [
        "| method | seeds | clean | PGD-20 | AutoAttack | last epoch: clean | last epoch: PGD-20 | time of an epoch / "
        "standard's | forward passes a step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in methods(1.0):
        entries = found.get(row, [])
        if not entries:
            continue
        cells = [row, str(len(entries))]
        for which, key, images in (
            ("best", "clean", "images"),
            ("best", "pgd20", "images"),
            ("best", "autoattack", "autoattack_images"),
            ("last_epoch", "clean", "images"),
            ("last_epoch", "pgd20", "images"),
        ):
            values, count = [entry[which][key] for entry in entries], sum(entry[which][images] for entry in entries)
            mean = statistics.mean(values)
            low, high = wilson_interval(round(mean * count), count)
            spread = f" ± {statistics.stdev(values):.1%}" if len(values) > 1 else ""
            cells.append(f"{mean:.1%}{spread} ({low:.0%} to {high:.0%})")
        known = costs.get(row, {})
        cells += [f"{known[key]:.2f}" if key in known else "" for key in ("relative_seconds", "forward_equivalents")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speed(name: str, folder: Path) -> None:
    """Print images per second of our PGD-7 training over those of torchattacks' PGD-7 in a plain training loop."""
    import torchattacks

    data = load(name, folder)
    settings = SETTINGS[name]
    threat = rn.ThreatModel(epsilon=settings["epsilon"])
    augmentation: dict[str, Any] = AUGMENTATION.get(name, {})
    batch_size = 64
    count = min(512, len(data.train)) // batch_size * batch_size
    part = dataclasses.replace(data, train=data.train[:count], validation=data.validation[:1])
    attack = {"name": "pgd", "steps": 7, "step_size": threat.epsilon / 4}
    start = network(name, data, 0)

    def ours(channels_last: bool = False) -> None:
        training = config.build(
            Training,
            {
                "method": {"name": "pgd_at", "attack": attack},
                "epochs": 1,
                "batch_size": batch_size,
                **augmentation,
                "channels_last": channels_last,
                "selection_attack": {"name": "pgd", "steps": 1},
            },
        )
        fit(copy.deepcopy(start), part, threat, training, Stage("train", 0, World(), Progress(quiet=True)))

    def theirs() -> None:
        # As the loop is written in the published code: the attack in evaluation mode, then a step in training mode.
        model = copy.deepcopy(start).train()
        peer = torchattacks.PGD(model, eps=threat.epsilon, alpha=threat.epsilon / 4, steps=7)
        optimiser = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
        generator = torch.Generator().manual_seed(0)
        for indices in epoch_batches(count, batch_size, World(), 0, "train", 0):
            batch = part.train[indices]
            images = crop_and_flip(batch.images, augmentation.get("padding", 0), "flip" in augmentation, generator)
            adversarial = peer(images, batch.labels)
            loss = F.cross_entropy(model(adversarial), batch.labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    works: dict[str, Callable[[], None]] = {
        "ours": ours,
        "ours, channels last": lambda: ours(channels_last=True),
        "torchattacks": theirs,
    }
    times: dict[str, list[float]] = {who: [] for who in works}
    for turn in range(6):
        for who, work in works.items():
            begin = time.process_time()
            work()
            if turn:  # the first one warms up
                times[who].append(time.process_time() - begin)
    for who in list(works)[:2]:
        ratio = statistics.median(a / b for a, b in zip(times["torchattacks"], times[who], strict=True))
        print(
            f"{name}: {who} {count / statistics.median(times[who]):.0f} images/s, torchattacks "
            f"{count / statistics.median(times['torchattacks']):.0f} images/s, ratio {ratio:.2f}"
        )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "cost", "table", "speed"])
    parser.add_argument("names", nargs="+", choices=list(SETTINGS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/adversarial_training"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(methods(1.0)), default=list(methods(1.0)))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names:
        if options.what == "train":
            data = load(name, options.data)
            for seed in options.seeds:
                for row in options.rows:
                    train(name, row, seed, data, options.out)
        elif options.what == "cost":
            cost(name, load(name, options.data), options.out)
        elif options.what == "table":
            print(f"### {name}\n\n{table(name, options.out)}\n")
        else:
            speed(name, options.data)


if __name__ == "__main__":
    main()
