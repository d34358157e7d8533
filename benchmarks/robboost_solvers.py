"""RobBoost's two solvers on linear bounds of small MNIST networks: objective, certified gap, seconds, memory.

    python benchmarks/robboost_solvers.py --data-root FOLDER_WITH_MNIST                # small sizes
    python benchmarks/robboost_solvers.py --data-root FOLDER_WITH_MNIST --full         # and 20 members, 5,000 images
    python benchmarks/robboost_solvers.py --data-root FOLDER_WITH_MNIST --select       # and 5 of 20, 1,000 images

The members have one hidden layer of 24 to 64 units and are trained for three epochs of 12,000 images on cross-entropy
and its interval bound at linf 0.1 in equal parts; seeds 0 to 19. Their bounds are linear (one CROWN step back from
interval bounds of the hidden units) at linf 0.1, inside [0, 1], on validation images. Every fit runs in a process of
its own, whose peak of resident memory includes the bounds; seconds are wall time, without the bounds. Written for one
thread.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_nas as rn
from robust_nas.bounds import LinearMargins
from robust_nas.ensembles.robboost import RobBoost
from robust_nas.ensembles.uniform import Uniform

EPSILON = 0.1
HIDDEN = (24, 32, 48, 64)
NETWORKS, LARGEST = 20, 5000
SIZES = ((5, 200), (10, 500), (20, 1000))
COLUMNS = ("members", "images", "hinge", "solver", "objective", "gap", "weights above 0", "evaluations", "s", "peak GB")


def preactivations(hidden: nn.Linear, images: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return interval bounds [B, H] of the hidden units before the ReLU, over the ball inside [0, 1]."""
    lower, upper = (images - epsilon).clamp_min(0), (images + epsilon).clamp_max(1)
    centre, radius = hidden((lower + upper) / 2), (upper - lower) / 2 @ hidden.weight.abs().T
    return centre - radius, centre + radius


def trained(all_images: Tensor, all_labels: Tensor, seed: int) -> nn.Sequential:
    """Return a network trained on cross-entropy and its interval bound in equal parts; the radius grows at first."""
    torch.manual_seed(seed)
    hidden, last = nn.Linear(784, HIDDEN[seed % len(HIDDEN)]), nn.Linear(HIDDEN[seed % len(HIDDEN)], 10)
    model = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), last)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    batches = [batch for _ in range(3) for batch in torch.randperm(len(all_labels)).split(100)]
    for step, batch in enumerate(batches):
        images, labels = all_images[batch].flatten(1), all_labels[batch]
        lower, upper = (
            bound.relu() for bound in preactivations(hidden, images, EPSILON * min(1, 2 * (step + 1) / len(batches)))
        )
        rows = last.weight[labels][:, None] - last.weight
        bias = last.bias[labels][:, None] - last.bias
        worst = torch.einsum("bkh,bh->bk", rows, (lower + upper) / 2) + bias
        worst = worst - torch.einsum("bkh,bh->bk", rows.abs(), (upper - lower) / 2)
        loss = (F.cross_entropy(model(images), labels) + F.cross_entropy(-worst, labels)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@torch.no_grad()
def linear_margins(model: nn.Sequential, images: Tensor, labels: Tensor) -> LinearMargins:
    """Return linear bounds of the margins: ReLU is between a line of slope 0 or 1 below and its chord above."""
    hidden, last = model[1], model[3]
    assert isinstance(hidden, nn.Linear) and isinstance(last, nn.Linear)
    offsets, slopes = torch.empty(len(labels), 10), torch.empty(len(labels), 10, 784)
    for part in torch.arange(len(labels)).split(250):
        flat = images[part].flatten(1)
        lower, upper = preactivations(hidden, flat, EPSILON)
        chord = (upper.relu() - lower.relu()) / (upper - lower).clamp_min(1e-12)
        intercept = upper.relu() - chord * upper
        below = (upper > -lower).float().where((lower < 0) & (upper > 0), chord)
        rows = last.weight[labels[part]][:, None] - last.weight
        through = rows.clamp_min(0) * below[:, None] + rows.clamp_max(0) * chord[:, None]
        constant = (through * hidden(flat)[:, None]).sum(2) + (rows.clamp_max(0) * intercept[:, None]).sum(2)
        offsets[part] = constant + last.bias[labels[part]][:, None] - last.bias
        slopes[part] = through @ hidden.weight
    logits, own = model(images), labels[:, None]
    clean = logits.gather(1, own) - logits
    inf = torch.inf
    return LinearMargins(offsets.scatter(1, own, inf), slopes, clean=clean.scatter(1, own, inf), images=images)


def peak_memory() -> float:
    """Return this process's largest resident memory in GB (2^30 bytes); `getrusage` includes the parent's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 2**20


def measure(
    models: list[nn.Sequential], images: Tensor, labels: Tensor, rule: RobBoost | Uniform, queue: multiprocessing.Queue
) -> None:
    """Put the row of one fit into `queue`."""
    torch.set_num_threads(1)
    threat = rn.ThreatModel(epsilon=EPSILON)
    bounds = [linear_margins(model, images, labels) for model in models]
    start = time.perf_counter()
    fitted = rule.fit(bounds, threat)
    seconds = time.perf_counter() - start
    gap = "" if fitted.lower is None else f"{fitted.objective - fitted.lower:.1e}"
    name = "uniform"
    if isinstance(rule, RobBoost):
        name = rule.solver + ("" if rule.members is None else f", {rule.members} members")
    row = (
        len(models),
        len(labels),
        rule.hinge if isinstance(rule, RobBoost) else "target",
        name,
        f"{fitted.objective:.8f}",
        gap,
        int((fitted.weights > 0).sum()),
        len(fitted.objectives),
        f"{seconds:.1f}",
        f"{peak_memory():.2f}",
    )
    queue.put(row)


def main() -> None:
    """Print a row per size, hinge and solver."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--select", action="store_true")
    parser.add_argument("--without-coordinate", action="store_true", help="leave out what takes most of the time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = rn.datasets.load("mnist", root=options.data_root, train_size=12000, validation_size=LARGEST)
    # Taken out once: every look converts the stored bytes.
    train, validation = data.train, data.validation
    images, labels = train.images, train.labels
    models = [trained(images, labels, seed) for seed in range(NETWORKS)]
    jobs: list[tuple[int, int, RobBoost | Uniform]] = []
    for num, count in (*SIZES, *([(NETWORKS, LARGEST)] if options.full else [])):
        jobs += [(num, count, Uniform()), (num, count, RobBoost(solver="coordinate"))]
        jobs += [(num, count, RobBoost()), (num, count, RobBoost(hinge="example"))]
    if options.without_coordinate:
        jobs = [job for job in jobs if getattr(job[2], "solver", "") != "coordinate"]
    if options.select:
        jobs.append((*SIZES[-1], RobBoost(members=5)))
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    context = multiprocessing.get_context("spawn")
    for num, count, rule in jobs:
        queue = context.Queue()
        chosen = validation[:count]
        process = context.Process(target=measure, args=(models[:num], chosen.images, chosen.labels, rule, queue))
        process.start()
        print("| " + " | ".join(str(value) for value in queue.get()) + " |", flush=True)
        process.join()


if __name__ == "__main__":
    main()
