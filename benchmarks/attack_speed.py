"""Our attacks beside other packages' on the same networks: time, and image by image what they leave.

    python benchmarks/attack_speed.py pgd digits mnist cifar10            # PGD.perturb
    python benchmarks/attack_speed.py accuracy digits mnist cifar10       # robust accuracy under PGD-100
    python benchmarks/attack_speed.py pgd cifar10-n5                      # a network of the published size
    python benchmarks/attack_speed.py autoattack digits mnist cifar10     # the standard AutoAttack

The peers are `torchattacks` and `foolbox` (pgd, accuracy; one that is not installed is left out, and said so) and
`pyautoattack` (autoattack). MNIST and CIFAR-10 are read from `--data`, the latter from its folder `cifar10-jpeg` of
JPEG files. The networks are NAS-Bench-201 cells, trained by `robust_nas.train` on first use and kept in
`--weights`. One thread, of which the processor time is measured; packages take turns, and a ratio is the median over
the turns, so that a machine that is busy or drifts does not decide it.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import robust_nas as rn
from robust_nas.attacks import Attack
from robust_nas.attacks.autoattack import AutoAttack
from robust_nas.attacks.pgd import PGD
from robust_nas.datasets import Dataset, ImageSet
from robust_nas.threat import Norm

CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_3x3~2|"


@dataclass(frozen=True)
class Network:
    """A network of `CELL`s and the threat model that it is trained and attacked with."""

    epsilon: str
    channels: int
    cells_per_stage: int
    epochs: int

    def space(self) -> rn.spaces.Space:
        """Return the space that the network is from."""
        return rn.spaces.load("nasbench201", channels=self.channels, cells_per_stage=self.cells_per_stage)


NETWORKS = {
    "digits": Network("0.15", 8, 1, 10),
    "mnist": Network("0.1", 8, 1, 5),
    "cifar10": Network("2/255", 8, 1, 6),
    # The size of the published networks of the space; two epochs are what two cores can train of it.
    "cifar10-n5": Network("2/255", 16, 5, 2),
}


PHASES = ("APGD-CE", "APGD-T", "FAB-T", "Square")


def load(name: str, folder: Path) -> Dataset:
    """Return the data of a network, cut down to what two cores can train on."""
    if name == "digits":
        return rn.datasets.load("digits")
    if name == "mnist":
        return rn.datasets.load(
            "mnist", root=folder, download=False, train_size=3000, validation_size=200, test_size=1000
        )
    sizes = {"train_size": 4000, "validation_size": 200, "test_size": 1000}
    return rn.datasets.load("folder", root=folder / "cifar10-jpeg", **sizes)


def trained(name: str, data: Dataset, weights: Path) -> nn.Module:
    """Return the network of a data set, from `weights` if it has been trained before."""
    network, path = NETWORKS[name], weights / f"{name}.safetensors"
    space, threat = network.space(), rn.ThreatModel(epsilon=network.epsilon)  # type: ignore[arg-type]
    if path.exists():
        model = space.network(space.parse(CELL), data)
        model.load_state_dict(load_file(path))
        return model.eval()
    attack = {"name": "pgd", "steps": 3, "step_size": threat.epsilon / 2}
    method = {"name": "pgd_at", "attack": attack}
    model = rn.train(CELL, data, threat, space=space, method=method, epochs=network.epochs, batch_size=64)
    weights.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return model.eval()


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of a call, which on one thread is its wall time on an idle machine."""
    start = time.process_time()
    work()
    return time.process_time() - start


def turns(works: dict[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Return everyone's times of `count` turns, after one that does not count."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(count):
        for name, work in works.items():
            times[name].append(seconds(work))
    return times


def peers(model: nn.Module, epsilon: float, steps: int, step_size: float) -> dict[str, Callable[..., Tensor]]:
    """Return the installed packages' PGD as functions of images and labels."""
    found: dict[str, Callable[..., Tensor]] = {}
    try:
        import torchattacks

        found["torchattacks"] = torchattacks.PGD(model, eps=epsilon, alpha=step_size, steps=steps)
    except ImportError as error:
        print(f"torchattacks is left out: {error}")
    try:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        attack = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=steps)
        found["foolbox"] = lambda images, labels: attack(wrapped, images, labels, epsilons=epsilon)[1]
    except ImportError as error:
        print(f"foolbox is left out: {error}")
    return found


def pgd(name: str, folder: Path, weights: Path) -> None:
    """Print how long a PGD-10 takes at several batch sizes."""
    data = load(name, folder)
    model, threat = trained(name, data, weights), rn.ThreatModel(epsilon=NETWORKS[name].epsilon)  # type: ignore[arg-type]
    step_size = threat.epsilon / 4
    ours = PGD(steps=10, step_size=step_size)
    for size in (1, 64, 256):
        part = data.test[torch.arange(size)]
        works: dict[str, Callable[[], object]] = {
            "ours": lambda part=part: ours.perturb(model, part.images, part.labels, threat)
        }
        for peer, attack in peers(model, threat.epsilon, 10, step_size).items():
            works[peer] = lambda attack=attack, part=part: attack(part.images, part.labels)
        times = turns(works, 3 if NETWORKS[name].cells_per_stage > 1 and size > 1 else 9)
        report(f"{name} batch {size}", times)


def accuracy(name: str, folder: Path, weights: Path, count: int) -> None:
    """Print how long it takes to know the robust accuracy under PGD-100."""
    data = load(name, folder)
    model, threat = trained(name, data, weights), rn.ThreatModel(epsilon=NETWORKS[name].epsilon)  # type: ignore[arg-type]
    part, step_size = data.test[torch.arange(count)], threat.epsilon / 10
    ours = PGD(steps=100, step_size=step_size, early_stop=True)
    left: dict[str, list[float]] = {}

    def judge(who: str, attack: Callable[..., Tensor]) -> None:
        points = attack(part.images, part.labels)
        with torch.no_grad():
            left.setdefault(who, []).append(float((model(points).argmax(1) == part.labels).float().mean()))

    works: dict[str, Callable[[], object]] = {
        "ours": lambda: left.setdefault("ours", []).append(
            rn.evaluate(model, part, threat, attacks=[ours]).robust_accuracy
        )
    }
    for peer, attack in peers(model, threat.epsilon, 100, step_size).items():
        works[peer] = lambda peer=peer, attack=attack: judge(peer, attack)
    times = turns(works, 3)
    report(f"{name} PGD-100 on {count} images", times)
    print("    robust accuracy: " + ", ".join(f"{who} {statistics.mean(found):.2%}" for who, found in left.items()))


def timed(perturb: Callable[..., Tensor], phase: str, seconds: dict[str, float]) -> Callable[..., Tensor]:
    """Return `perturb` with its processor time added to `seconds[phase]`."""

    def work(*what: Any, **how: Any) -> Tensor:
        start = time.process_time()
        found = perturb(*what, **how)
        seconds[phase] = seconds.get(phase, 0.0) + time.process_time() - start
        return found

    return work


class TimedAutoAttack(AutoAttack):
    """Ours, with the time of its phases."""

    seconds: ClassVar[dict[str, float]] = {}

    def attacks(self, norm: Norm) -> tuple[Attack, ...]:
        """Return the attacks on a ball of the norm, in their order."""
        return tuple(
            SimpleNamespace(perturb=timed(attack.perturb, phase, self.seconds))
            for attack, phase in zip(super().attacks(norm), PHASES, strict=True)
        )


def theirs(model: nn.Module, part: ImageSet, threat: rn.ThreatModel, seed: int, seconds: dict[str, float]) -> Tensor:
    """Return the adversarial images of `pyautoattack` for a batch, called as the package is without us."""
    from pyautoattack import AutoAttack as Package

    logging.getLogger("auto-attack").disabled = True
    package = Package(model, norm=threat.norm.capitalize(), eps=threat.epsilon, seed=seed, device="cpu")
    for name, phase in zip(("apgd", "apgd_targeted", "fab", "square"), PHASES, strict=True):
        attack = getattr(package, name)
        attack.perturb = timed(attack.perturb, phase, seconds)
    found: Tensor = package.run_standard_evaluation(part.images, part.labels, batch_size=len(part))[0]
    return found


def autoattack(name: str, folder: Path, weights: Path, norm: Norm, count: int, seeds: int) -> None:
    """Print how long the standard AutoAttack and its phases take, and on which images the two disagree."""
    data = load(name, folder)
    model = trained(name, data, weights)
    radius = rn.ThreatModel(epsilon=NETWORKS[name].epsilon).epsilon * (6.0 if norm == "l2" else 1.0)  # type: ignore[arg-type]
    threat = rn.ThreatModel(norm=norm, epsilon=radius)
    phases: dict[str, dict[str, float]] = {"ours": TimedAutoAttack.seconds, "pyautoattack": {}}
    phases["ours"].clear()
    works: dict[str, Callable[[ImageSet, int], Tensor]] = {
        "ours": lambda part, seed: TimedAutoAttack().perturb(model, part.images, part.labels, threat, seed=seed),
        "pyautoattack": lambda part, seed: theirs(model, part, threat, seed, phases["pyautoattack"]),
    }
    parts = [data.test[indices] for indices in torch.arange(min(count, len(data.test))).split(100)]
    times: dict[str, list[float]] = {who: [] for who in works}
    # Whether an image stands, [seeds, images].
    stands: dict[str, list[Tensor]] = {who: [] for who in works}
    for seed in range(seeds):
        found: dict[str, list[Tensor]] = {who: [] for who in works}
        for part in parts:
            for who, work in works.items():
                start = time.process_time()
                points = work(part, seed)
                times[who].append(time.process_time() - start)
                with torch.no_grad():
                    found[who].append(model(points).argmax(1) == part.labels)
        for who in works:
            stands[who].append(torch.cat(found[who]))
        what = (
            f"{name} {norm} {radius:.4f}, {seed + 1} seeds x {sum(map(len, parts))} images, batches of {len(parts[0])}"
        )
        report(what, times)
        for who, seconds in phases.items():
            shares = ", ".join(
                f"{phase} {spent:.1f} s ({spent / sum(times[who]):.0%})" for phase, spent in seconds.items()
            )
            print(f"    {who}: {shares}")
        agreement(torch.stack(stands["ours"]), torch.stack(stands["pyautoattack"]))


def agreement(ours: Tensor, theirs: Tensor) -> None:
    """Print robust accuracies and disagreements of two attacks' [seeds, images]: does the image stand?"""
    accuracies = [
        f"{float(stands.float().mean()):.2%} ({', '.join(map(str, stands.sum(1).tolist()))} images)"
        for stands in (ours, theirs)
    ]
    print(
        f"    robust accuracy: ours {accuracies[0]}, pyautoattack {accuracies[1]}; images per seed that are broken by "
        f"ours only {float((theirs & ~ours).sum(1).float().mean()):.2f}, by pyautoattack only "
        f"{float((ours & ~theirs).sum(1).float().mean()):.2f}"
    )
    if len(ours) > 1:
        pairs = list(combinations(range(len(ours)), 2))
        own = [statistics.mean(int((stands[a] != stands[b]).sum()) for a, b in pairs) for stands in (ours, theirs)]
        print(f"    images on which two seeds differ: ours {own[0]:.2f}, pyautoattack {own[1]:.2f}")


def report(what: str, times: dict[str, list[float]]) -> None:
    """Print the median time of everyone and the peers' times over ours."""
    medians = ", ".join(f"{who} {statistics.median(found):.3f} s" for who, found in times.items())
    ratios = [
        f"{who} / ours {statistics.median(a / b for a, b in zip(found, times['ours'], strict=True)):.2f}"
        for who, found in times.items()
        if who != "ours"
    ]
    print(f"{what}: {medians}; {', '.join(ratios)}", flush=True)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "pgd", "accuracy", "autoattack"])
    parser.add_argument("networks", nargs="+", choices=list(NETWORKS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--weights", type=Path, default=Path("runs/attack_speed"))
    parser.add_argument("--count", type=int, default=200, help="images of accuracy and autoattack")
    parser.add_argument("--seeds", type=int, default=1, help="of autoattack")
    parser.add_argument("--norm", choices=["linf", "l2"], default="linf", help="of autoattack")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.networks:
        if options.what == "train":
            trained(name, load(name, options.data), options.weights)
        elif options.what == "pgd":
            pgd(name, options.data, options.weights)
        elif options.what == "accuracy":
            accuracy(name, options.data, options.weights, options.count)
        else:
            autoattack(name, options.data, options.weights, options.norm, options.count, options.seeds)


if __name__ == "__main__":
    main()
