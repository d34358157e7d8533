"""How far black-box attacks get with how many queries, on a small MNIST network; beside ART and foolbox.

    python benchmarks/black_box.py --data-root FOLDER_WITH_MNIST [--images 20]
    python benchmarks/black_box.py --data-root FOLDER_WITH_MNIST --part peers --network perceptron
    python benchmarks/black_box.py --data-root FOLDER_WITH_MNIST --part scores --network perceptron --images 32

Seconds are processor time. Written for one thread. ART (`pip install adversarial-robustness-toolbox`) and `foolbox` are
needed for the peers alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import robust_nas as rn
from robust_nas.attacks.opt import OPT
from robust_nas.attacks.sign_opt import SignOPT
from robust_nas.attacks.szvr_g import SZVRG
from robust_nas.core.seeds import seeded
from robust_nas.models.frozen import frozen
from robust_nas.models.losses import margin
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.training import Training, fit
from robust_nas.training.standard import Standard

ARCHITECTURE = "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|nor_conv_3x3~1|none~2|"
STEPS = (0.05, 0.1, 0.2, 0.4)  # of SZVR-G and the two-point estimators, over epsilon
CHECKPOINTS = (1000, 2000, 4000, 8000, 14000, 20500)


def trained(root: Path, images: int, network: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network, and the first test images that it classifies correctly with their labels.

    "cell" is a small cell network, whose forward pass takes most of an attack's time; "perceptron" has one hidden layer
    of 64 units, so that what is around the forward pass counts.
    """
    data = rn.datasets.load("mnist", root=root, train_size=12000, validation_size=1000)
    space = rn.spaces.load("nasbench201", channels=8, cells_per_stage=1)
    threat = rn.ThreatModel(norm="l2", epsilon=0.1)
    with seeded(0):
        model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
        if network == "cell":
            model = space.network(space.parse(ARCHITECTURE), data)
    training = Training(method=Standard(), epochs=4, learning_rate=0.05)
    model = fit(model, data, threat, training, Stage("train", 0, World(), Progress())).model.eval()
    with torch.no_grad():
        right = torch.cat([model(part) for part in data.test[:1000].images.split(250)]).argmax(1)
    right = right == data.test.labels[:1000]
    print(f"test accuracy on the first 1,000 test images: {right.float().mean():.3f}")
    chosen = right.nonzero().squeeze(1)[:images]
    return model, data.test[chosen].images, data.test[chosen].labels


class Counted(nn.Module):
    """A model that counts the images it is asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.asked = model, 0

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        self.asked += len(images)
        logits: Tensor = self.model(images)
        return logits


def labels_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function that a hard-label attack may ask."""

    def predict(points: Tensor) -> Tensor:
        with torch.no_grad():
            return model(points).argmax(1)

    return predict


def curves(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Print the distortion over queries of OPT and Sign-OPT."""
    print(f"\nl2 distortion of {len(images)} images: median (mean) with at most so many queries")
    print("| attack | " + " | ".join(f"{count:,}" for count in CHECKPOINTS) + " | not fooled | seconds |")
    for attack in (OPT(queries=CHECKPOINTS[-1]), SignOPT(queries=CHECKPOINTS[-1])):
        start = time.process_time()
        found = attack.minimise(labels_of(model), images, labels)
        seconds = time.process_time() - start
        cells = [f"{found.after(count).median():.3f} ({found.after(count).mean():.3f})" for count in CHECKPOINTS]
        name, missed = type(attack).__name__, int(found.distances.isinf().sum())
        print(f"| {name} | " + " | ".join(cells) + f" | {missed} | {seconds:.0f} |", flush=True)


def peers(model: nn.Module, images: Tensor, labels: Tensor, budget: int) -> None:
    """Print distortion and time beside ART's Sign-OPT and foolbox's boundary attack."""
    print(f"\n{len(images)} images, at most {budget:,} queries each; l2 distortion")
    outcomes: list[tuple[str, int, float, Tensor, Tensor]] = []

    def run(name: str, attack: Callable[[nn.Module], Tensor]) -> None:
        counted = Counted(model).eval()
        start = time.process_time()
        found = attack(counted).clamp(0, 1)
        seconds = time.process_time() - start
        with torch.no_grad():
            fooled = model(found).argmax(1) != labels
        outcomes.append((name, counted.asked, seconds, (found - images).flatten(1).norm(dim=1), fooled))

    def ours(target: nn.Module) -> Tensor:
        # As `perturb` holds a model: on a CPU, with batch norms folded into convolutions.
        with frozen(target):
            return SignOPT(queries=budget).minimise(labels_of(target), images, labels).images

    run("Sign-OPT, ours", ours)
    run(
        "Sign-OPT, ours, model as it is",
        lambda target: SignOPT(queries=budget).minimise(labels_of(target), images, labels).images,
    )
    try:
        from art.attacks.evasion import SignOPTAttack
        from art.estimators.classification import PyTorchClassifier
    except ImportError as error:
        print(f"ART is left out: {error}")
    else:

        def art(target: nn.Module) -> Tensor:
            wrapped = PyTorchClassifier(
                target, nn.CrossEntropyLoss(), tuple(images.shape[1:]), 10, clip_values=(0, 1), device_type="cpu"
            )
            attack = SignOPTAttack(wrapped, targeted=False, query_limit=budget, verbose=False)
            return torch.as_tensor(attack.generate(images.numpy(), labels.numpy()))

        run("Sign-OPT, ART", art)
    try:
        import foolbox
    except ImportError as error:
        print(f"foolbox is left out: {error}")
    else:

        def boundary(target: nn.Module) -> Tensor:
            wrapped: Any = foolbox.PyTorchModel(target, bounds=(0, 1), device="cpu")
            # Its own starts, white noise, find none for some images: each starts from an image of another class.
            others = torch.stack([images[(labels != label).nonzero()[0, 0]] for label in labels])
            # A step asks 1.1 times on average.
            attack = foolbox.attacks.BoundaryAttack(steps=int(budget / 1.1))
            found: Tensor = attack(wrapped, images, labels, epsilons=None, starting_points=others)[0]
            return found

        torch.manual_seed(0)
        run("boundary attack, foolbox", boundary)
    common = torch.stack([fooled for *_, fooled in outcomes]).all(0)
    print(f"distances on the {int(common.sum())} images that all of them fool")
    print("| attack | queries per image | median | mean | fooled | seconds | ms per query |")
    for name, asked, seconds, distances, fooled in outcomes:
        print(
            f"| {name} | {asked / len(images):.0f} | {distances[common].median():.3f} | {distances[common].mean():.3f} "
            f"| {int(fooled.sum())} | {seconds:.1f} | {1000 * seconds / asked:.2f} |"
        )


def reached(
    attack: SZVRG, model: nn.Module, images: Tensor, labels: Tensor, threat: rn.ThreatModel, seed: int = 0
) -> Tensor:
    """Return the margins [B] of the other classes over the label after an attack."""
    found = attack.perturb(model, images, labels, threat, seed=seed)
    with torch.no_grad():
        return margin(model(found), labels)


def scores(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Print what SZVR-G and two-point estimators reach at equal queries, each at its own best step size.

    The step size is chosen on the second half of the images, and the first half is reported, with three seeds.
    """
    estimators: dict[str, dict[str, Any]] = {
        "SZVR-G": {},
        "SZVR-G, snapshots": {"variance_reduction": "snapshot", "directions": 2, "snapshot_directions": 50},
        **{
            f"two-point, {directions} directions": {"variance_reduction": "none", "directions": directions}
            for directions in (5, 20, 50)
        },
    }
    half = len(images) // 2
    for universal, budgets, threat in (
        (False, (300, 1000), rn.ThreatModel(norm="l2", epsilon=1.0)),
        (False, (300, 1000), rn.ThreatModel(norm="linf", epsilon=0.06)),
        (True, (100, 300), rn.ThreatModel(norm="l2", epsilon=2.0)),
        (True, (100, 300), rn.ThreatModel(norm="linf", epsilon=0.15)),
    ):
        kind = "one perturbation for all" if universal else "one for each"
        print(f"\n{threat.norm}, epsilon {threat.epsilon}, {half} images, {kind}")
        print("mean margin of the other classes over the label [its range over seeds] (share fooled; step / epsilon)")
        print("| estimator | " + " | ".join(f"{queries:,} queries each" for queries in budgets) + " |")
        for name, options in estimators.items():
            cells = []
            for queries in budgets:
                attack = SZVRG(queries=queries, universal=universal, **options)
                best = max(
                    (dataclasses.replace(attack, step_size=share * threat.epsilon) for share in STEPS),
                    key=lambda tried: float(reached(tried, model, images[half:], labels[half:], threat).mean()),
                )
                found = [reached(best, model, images[:half], labels[:half], threat, seed) for seed in (1, 2, 3)]
                margins = torch.stack(found)
                means, fooled = margins.mean(1), (margins > 0).float().mean()
                step = (best.step_size or 0) / threat.epsilon
                cells.append(f"{means.mean():.2f} [{means.min():.2f}, {means.max():.2f}] ({fooled:.2f}; {step:g})")
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Train the network and print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--network", choices=["cell", "perceptron"], default="cell")
    parser.add_argument("--part", choices=["curves", "peers", "scores"], help="one table only")
    parser.add_argument("--budget", type=int, default=4000, help="queries for each image, beside the peers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, images, labels = trained(arguments.data_root, arguments.images, arguments.network)
    if arguments.part in (None, "curves"):
        curves(model, images, labels)
    if arguments.part in (None, "peers"):
        peers(model, images, labels, arguments.budget)
    if arguments.part in (None, "scores"):
        scores(model, images, labels)


if __name__ == "__main__":
    main()
