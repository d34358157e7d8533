"""Clean images beside adversarial ones under plain, separate and mixture norms, with and without random targets.

    python benchmarks/mixture_norms.py --data digits --out benchmarks/results/mixture_norms_digits.md
    python benchmarks/mixture_norms.py --data mnist --root FOLDER --out benchmarks/results/mixture_norms_mnist.md

At the scale of ImageNet plain norms pay 18.3 points of robust accuracy for clean images in their batches (Xie & Yuille
2020, arXiv:1906.03787), against which that paper gives clean images norms of their own. Here a small ResNet is trained
by PGD-AT: each norm with a share of clean images of 50 and 100 %, and once without any, where all norms are one (the
clean half of a mixture would see no image, and its adversarial half is the plain network); each against an attacker
that climbs away from the label, and one that descends to a random class. Each training's outcome stays in a file of
`--work`, so that a run goes on where it was ended and several can share the seeds. Validation images choose the epoch;
everything printed is measured on test images, differences seed by seed: equal seeds start at equal weights. One thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.special import stdtrit

import robust_nas as rn
from robust_nas.attacks.apgd import APGD
from robust_nas.attacks.pgd import PGD
from robust_nas.core import config
from robust_nas.core.writing import write_json, write_text
from robust_nas.datasets import Dataset
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.training import Training, fit

NETWORK = "cifar-resnet-8 width=0.5"
NORMS = {"plain": "batch", "separate": "separate", "mixture": "mixture"}
SHARES = (0.0, 0.5, 1.0)
ATTACKERS = ("untargeted", "random targets")
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"epsilon": 0.15, "epochs": 15, "batch": 64, "images": None, "test": 300},
    "mnist": {"epsilon": 0.2, "epochs": 12, "batch": 32, "images": 1000, "test": 200},
}
MEASURES = {"clean": "clean", "pgd": "PGD-50", "apgd": "with APGD"}


@dataclass(frozen=True)
class Cell:
    """One training: a norm, the share of clean images, the attacker and the seed."""

    norm: str
    share: float
    attacker: str
    seed: int

    @property
    def file(self) -> str:
        return f"{self.norm}-{self.share:g}-{self.attacker.replace(' ', '_')}-{self.seed}.json"

    @property
    def title(self) -> str:
        return "any norm" if self.share == 0 else self.norm


def cells(seeds: Sequence[int]) -> Iterator[Cell]:
    """Yield all trainings, seed by seed."""
    for seed in seeds:
        for attacker in ATTACKERS:
            for share in SHARES:
                for norm in NORMS if share else ("plain",):
                    yield Cell(norm, share, attacker, seed)


def load(options: argparse.Namespace) -> Dataset:
    """Return the images."""
    if options.data == "digits":
        return rn.datasets.load("digits")
    sizes = {"train_size": options.images, "validation_size": 200, "test_size": options.test}
    return rn.datasets.load("mnist", root=options.root, download=False, **sizes)


def plan(cell: Cell, epsilon: float, epochs: int, batch: int, steps: int) -> Training:
    """Return the training of a cell."""
    pgd = {"name": "pgd", "steps": steps, "step_size": epsilon / 4}
    attack = {**pgd, "random_target": cell.attacker == "random targets"}
    table = {
        "epochs": epochs,
        "batch_size": batch,
        "learning_rate": 0.1,
        "method": {"name": "pgd_at", "clean_images": cell.share, "attack": attack},
        "norm": NORMS[cell.norm],
        "selection_attack": pgd,
    }
    return config.build(Training, table, "train")


def measure(cell: Cell, data: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    """Train a cell and return what attacks leave of it on test images."""
    threat, started = rn.ThreatModel(epsilon=options.epsilon), time.process_time()
    network = rn.create(NETWORK, data, seed=cell.seed)
    stage = Stage("train", cell.seed, World(), Progress(quiet=True))
    fitted = fit(
        network, data, threat, plan(cell, options.epsilon, options.epochs, options.batch, options.steps), stage
    )
    trained = time.process_time() - started
    attacks = [PGD(steps=50, step_size=options.epsilon / 10), APGD(steps=50), APGD(steps=50, loss="dlr", targets=3)]
    found = rn.evaluate(fitted.model, data.test[: options.test], threat, attacks=attacks, seed=0, progress=False)
    return {
        "clean": found.clean_accuracy,
        "pgd": int(found.attacks[0].correct.sum()) / len(found.labels),
        "apgd": found.robust_accuracy,
        "test_images": len(found.labels),
        "epoch": fitted.record.best_epoch,
        "training_seconds": trained,
        "seconds": time.process_time() - started,
    }


def interval(values: Sequence[float]) -> str:
    """Return the mean of differences, in points, with Student's 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{100 * mean:+.1f} (one seed)"
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * mean:+.1f} ({100 * (mean - half):+.1f} to {100 * (mean + half):+.1f})"


def spread(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation over seeds, in percent."""
    deviation = f" \N{PLUS-MINUS SIGN} {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{deviation}"


Found = dict[Cell, dict[str, Any]]


def accuracies(found: Found, seeds: Sequence[int]) -> list[str]:
    """Return the table of accuracies: mean and standard deviation over seeds."""
    lines = [
        f"| attacker in training | clean images | norm | seeds | {' | '.join(MEASURES.values())} |",
        "|---|---|---|---|" + "---|" * len(MEASURES),
    ]
    for first in cells(seeds[:1]):
        rows = [found[cell] for seed in seeds if (cell := Cell(first.norm, first.share, first.attacker, seed)) in found]
        if rows:
            values = [spread([row[measure] for row in rows]) for measure in MEASURES]
            head = [first.attacker, f"{first.share:.0%}", first.title, str(len(rows))]
            lines.append(f"| {' | '.join([*head, *values])} |")
    return lines


Value = Callable[[str, int], float | None]


def differences(found: Found, seeds: Sequence[int]) -> list[str]:
    """Return the table of differences, seed by seed, and the random targets' part in them."""

    def gap(one: tuple[str, float], other: tuple[str, float], attacker: str, measure: str, seed: int) -> float | None:
        pair = [found.get(Cell(*row, attacker, seed)) for row in (one, other)]
        return None if pair[0] is None or pair[1] is None else pair[0][measure] - pair[1][measure]

    pairs = [
        (f"{first} - {second}, {share:.0%} clean", (first, share), (second, share))
        for share in SHARES[1:]
        for first, second in (("plain", "mixture"), ("plain", "separate"), ("separate", "mixture"))
    ]
    pairs += [
        (f"{norm}, {share:.0%} - 0% clean", (norm, share), ("plain", 0.0)) for share in SHARES[1:] for norm in NORMS
    ]
    lines = [
        f"| difference in points | attacker in training | {' | '.join(MEASURES.values())} |",
        "|---|---|" + "---|" * len(MEASURES),
    ]
    for title, one, other in pairs:
        by_attacker = {
            attacker: {measure: [gap(one, other, attacker, measure, seed) for seed in seeds] for measure in MEASURES}
            for attacker in ATTACKERS
        }
        rows = dict(by_attacker)
        rows["random targets - untargeted"] = {
            measure: [
                None if a is None or b is None else b - a
                for a, b in zip(*(by_attacker[attacker][measure] for attacker in ATTACKERS), strict=True)
            ]
            for measure in MEASURES
        }
        for attacker, values in rows.items():
            known = {measure: [value for value in column if value is not None] for measure, column in values.items()}
            if all(known.values()):
                lines.append(f"| {title} | {attacker} | {' | '.join(map(interval, known.values()))} |")
    return lines


def report(found: Found, options: argparse.Namespace, data: Dataset) -> str:
    """Return the whole page."""
    rows = list(found.values())
    command = f"python benchmarks/mixture_norms.py --data {options.data} --epochs {options.epochs} --batch "
    command += f"{options.batch} --steps {options.steps} --epsilon {options.epsilon:g} --test {rows[0]['test_images']} "
    command += "--seeds "
    command += " ".join(map(str, options.seeds)) + (f" --images {options.images}" if options.images else "")
    seconds = statistics.fmean(row["seconds"] for row in rows)
    return "\n".join(
        [
            f"# Plain, separate and mixture norms with clean images: {options.data}",
            "",
            f"`{command}`",
            "",
            f"{NETWORK}, {len(data.train)} training images, PGD-{options.steps} training at linf "
            f"{options.epsilon:g} for {options.epochs} epochs in batches of {options.batch}, adversarial half served. "
            f"Of {rows[0]['test_images']} test images, "
            'in percent: mean and standard deviation over seeds. "With APGD" is the worst case over PGD-50, '
            "APGD on the cross-entropy, and APGD on the targeted difference of logits ratio with 3 targets, 50 steps "
            f"each. {seconds:.0f} s of one core a training, attacks included. Without clean images all norms are one.",
            "",
            *accuracies(found, options.seeds),
            "",
            "Differences are seed by seed, with Student's 95 % interval over the seeds, all on the same test images; "
            "an interval without width is of seeds that agree to the image, by chance where they are few. Published at "
            "the scale of ImageNet (arXiv:1906.03787): -18.3 points under attack by clean images and plain norms, "
            "with random targets.",
            "",
            *differences(found, options.seeds),
            "",
        ]
    )


def main() -> None:
    """Train and measure what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", choices=list(SETTINGS), default="digits")
    parser.add_argument("--root", type=Path, help="folder of MNIST's files")
    parser.add_argument("--out", type=Path, help="the page that is written; printed, if not given")
    parser.add_argument("--work", type=Path, help="folder of the outcomes (runs/mixture_norms-DATA)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, help="training images of MNIST (1000)")
    parser.add_argument("--test", type=int, help="test images that are attacked (300 of digits, 200 of MNIST)")
    parser.add_argument("--epochs", type=int, help="epochs of a training (15 on digits, 12 on MNIST)")
    parser.add_argument("--batch", type=int, help="images of a batch (64 of digits, 32 of MNIST)")
    parser.add_argument("--steps", type=int, default=7, help="steps of PGD in training (7)")
    parser.add_argument("--epsilon", type=float, help="radius in linf (0.15 on digits, 0.2 on MNIST)")
    options = parser.parse_args()
    for name, value in SETTINGS[options.data].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.work = options.work or Path("runs") / f"mixture_norms-{options.data}"
    torch.set_num_threads(1)
    data, found = load(options), {}
    settings = {
        key: value
        for key, value in vars(options).items()
        if key in ("data", "images", "test", "epochs", "batch", "steps", "epsilon")
    }
    for cell in cells(options.seeds):
        path = options.work / cell.file
        if path.exists():
            saved = json.loads(path.read_text())
            if saved["settings"] != settings:
                parser.error(f"{path} is of {saved['settings']}, but asked for are {settings}; take another --work.")
        else:
            saved = {"settings": settings, **measure(cell, data, options)}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, saved)
            print(f"{cell.file}: {saved}", flush=True)
        found[cell] = saved
    page = report(found, options, data)
    if options.out is None:
        print(page)
    else:
        write_text(options.out, page)


if __name__ == "__main__":
    main()
