"""Our attacks beside other packages' on the same networks: time, and image by image what they leave.

    python benchmarks/attack_speed.py pgd digits mnist cifar10            # PGD.perturb
    python benchmarks/attack_speed.py accuracy digits mnist cifar10       # robust accuracy under PGD-100
    python benchmarks/attack_speed.py autoattack digits mnist cifar10     # the standard AutoAttack

The peers are `torchattacks` and `foolbox` (pgd, accuracy; one that is not installed is left out, and said so) and
`pyautoattack` (autoattack). MNIST and CIFAR-10 are read from `--data`, the latter from its folder `cifar10-jpeg` of
JPEG files. The networks are NAS-Bench-201 cells, trained by `robust_nas.train` on first use and kept in
`--weights`. One thread, of which the processor time is measured; packages take turns, and a ratio is the median over
the turns, so that a machine that is busy or drifts does not decide it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import robust_nas as rn
from robust_nas.attacks import Attack
from robust_nas.attacks.autoattack import AutoAttack
from robust_nas.attacks.autoattack_reference import AutoAttackReference
from robust_nas.attacks.pgd import PGD
from robust_nas.datasets import Dataset

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
}
# A published CIFAR-10 network of the space: too slow to train here, and without early stop PGD's time does not depend
# on the weights.
PUBLISHED = Network("8/255", 16, 5, 0)


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
    models = {"": (trained(name, data, weights), NETWORKS[name])}
    if name == "cifar10":
        space = PUBLISHED.space()
        models[" C=16 N=5"] = space.network(space.parse(CELL), data).eval(), PUBLISHED
    for suffix, (model, network) in models.items():
        threat = rn.ThreatModel(epsilon=network.epsilon)  # type: ignore[arg-type]
        step_size = threat.epsilon / 4
        ours = PGD(steps=10, step_size=step_size)
        for size in (1, 64, 256):
            part = data.test[torch.arange(size)]
            works: dict[str, Callable[[], object]] = {
                "ours": lambda part=part, model=model, threat=threat, ours=ours: ours.perturb(
                    model, part.images, part.labels, threat
                )
            }
            for peer, attack in peers(model, threat.epsilon, 10, step_size).items():
                works[peer] = lambda attack=attack, part=part: attack(part.images, part.labels)
            times = turns(works, 3 if suffix and size > 1 else 9)
            report(f"{name}{suffix} batch {size}", times)


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


def autoattack(name: str, folder: Path, weights: Path, count: int) -> None:
    """Print how long the standard AutoAttack takes, and on which images the two disagree."""
    data = load(name, folder)
    model, parts = trained(name, data, weights), torch.arange(min(count, len(data.test))).split(25)
    attacks: dict[str, Attack] = {"ours": AutoAttack(), "pyautoattack": AutoAttackReference()}
    for norm, scale in (("linf", 1.0), ("l2", 6.0)):
        radius = rn.ThreatModel(epsilon=NETWORKS[name].epsilon).epsilon * scale  # type: ignore[arg-type]
        threat = rn.ThreatModel(norm=norm, epsilon=radius)  # type: ignore[arg-type]
        stands: dict[str, list[Tensor]] = {who: [] for who in attacks}
        times: dict[str, list[float]] = {who: [] for who in attacks}
        # In turns of 25 images.
        for part in (data.test[indices] for indices in parts):
            for who, attack in attacks.items():
                start = time.process_time()
                points = attack.perturb(model, part.images, part.labels, threat)
                times[who].append(time.process_time() - start)
                with torch.no_grad():
                    stands[who].append(model(points).argmax(1) == part.labels)
        report(f"{name} {norm} {radius:.4f}, {len(parts)} turns of 25 images", times)
        ours, theirs = torch.cat(stands["ours"]), torch.cat(stands["pyautoattack"])
        print(
            f"    robust accuracy: ours {float(ours.float().mean()):.2%}, "
            f"pyautoattack {float(theirs.float().mean()):.2%}; "
            f"broken by ours only {int((theirs & ~ours).sum())}, by pyautoattack only {int((ours & ~theirs).sum())}",
            flush=True,
        )


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
            autoattack(name, options.data, options.weights, options.count)


if __name__ == "__main__":
    main()
