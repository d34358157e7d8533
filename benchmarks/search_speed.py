"""An epoch of our Dirichlet search beside DrNAS's own code, on the same images, on clean ones as published.

    git clone https://github.com/xiangning-chen/DrNAS
    python benchmarks/search_speed.py --drnas DrNAS --data FOLDER

DrNAS's code is for a GPU; here `cuda()` gives back what it is called on. Both supernets of NAS-Bench-201 begin with the
same convolutions, and have to give the same logits at the same mixture. Then they take turns with an epoch: for every
batch of 64 training images a step of alpha on as many others and a step of the weights, first order. The ratio is
DrNAS's time over ours, the median over turns. Images are read from the folder `cifar10-jpeg` in `--data`. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import robust_nas as rn
from robust_nas.datasets import Dataset
from robust_nas.runtime.distributed import World
from robust_nas.runtime.environment import describe_environment
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.searches._trainer import BilevelTrainer
from robust_nas.searches.dirichlet import Dirichlet
from robust_nas.training.standard import Standard

SIZES = [(1, 1), (5, 1), (5, 2), (5, 4)]
"""Cells a stage, and k of the partial channels."""


def ours(data: Dataset, cells: int, partial: int) -> BilevelTrainer:
    """Return our search, before its first epoch."""
    plan = Dirichlet(epochs=50, objective=Standard(), partial_channels=(partial,))
    space = rn.spaces.load("nasbench201", cells_per_stage=cells)
    stage = Stage("search", 0, World(), Progress(quiet=True))
    return plan.trainer(space, data, rn.ThreatModel(epsilon="8/255"), stage)


class Reference:
    """DrNAS's network, its architect and its loop, `train` of `201-space/train_search.py`."""

    def __init__(self, folder: Path, data: Dataset, cells: int, partial: int) -> None:
        torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
        sys.path[:0] = [str(folder), str(folder / "201-space")]
        from architect import Architect
        from cell_operations import NAS_BENCH_201
        from search_model import TinyNetwork

        plan = Dirichlet()
        self.data, self.plan = data, plan
        self.network = TinyNetwork(
            C=16,
            N=cells,
            max_nodes=4,
            num_classes=len(data.classes),
            criterion=nn.CrossEntropyLoss(),
            search_space=NAS_BENCH_201,
            k=partial,
            species="dirichlet",
        )
        settings = {"momentum": 0.9, "weight_decay": plan.weight_decay, "reg_type": "l2", "reg_scale": 1e-3}
        self.architect = Architect(
            self.network, SimpleNamespace(arch_learning_rate=plan.alpha_learning_rate, **settings)
        )
        self.optimiser = torch.optim.SGD(
            self.network.get_weights(), plan.learning_rate, 0.9, weight_decay=plan.weight_decay
        )

    def normalised(self, images: Tensor) -> Tensor:
        """Return the images as its data loader gives them."""
        mean, deviation = (statistic.view(-1, 1, 1) for statistic in self.data.channel_statistics)
        return (images - mean) / deviation

    def logits(self, images: Tensor, mixture: Tensor) -> Tensor:
        """Return logits at a mixture [E, O]."""
        import search_model

        drawn, search_model.process_step_matrix = search_model.process_step_matrix, lambda *_: mixture
        logits: Tensor = self.network(self.normalised(images))
        search_model.process_step_matrix = drawn
        return logits

    def learn(self) -> None:
        """Go through the training split once."""
        network, size = self.network, self.plan.batch_size
        train, validation = (torch.randperm(len(part)).split(size) for part in (self.data.train, self.data.validation))
        network.train()
        for chosen, others in zip(train, validation, strict=True):
            batch, searched = self.data.train[chosen], self.data.validation[others]
            images = self.normalised(batch.images)
            self.architect.step(
                images, batch.labels, self.normalised(searched.images), searched.labels, 0.0, self.optimiser, False
            )
            self.optimiser.zero_grad()
            self.architect.optimizer.zero_grad()
            loss = F.cross_entropy(network(images), batch.labels)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), self.plan.gradient_clip)
            self.optimiser.step()


@torch.no_grad()
def check_equal(search: BilevelTrainer, reference: Reference, images: Tensor) -> float:
    """Give the reference our weights, and return how far logits are apart.

    Raises:
        AssertionError: if they are not equal but for rounding.
    """

    def weights(network: nn.Module) -> list[Tensor]:
        layers = (nn.Conv2d, nn.Linear)
        return [p for m in network.modules() if isinstance(m, layers) for p in m.parameters(recurse=False)]

    for theirs, own in zip(weights(reference.network), weights(search.supernet), strict=True):
        theirs.copy_(own)
    mixture = torch.distributions.Dirichlet(torch.ones(6, 5)).sample()
    # In training mode: the statistics of the batch, with which both begin.
    difference = search.supernet.train()(images, mixture) - reference.logits(images, mixture)
    largest = float(difference.abs().max())
    assert largest < 1e-3, largest
    return largest


def seconds(call: Callable[[], Any]) -> float:
    """Return a call's processor time."""
    started = time.process_time()
    call()
    return time.process_time() - started


def row(data: Dataset, folder: Path, cells: int, partial: int, turns: int) -> str:
    """Return a row of the table."""
    search, reference = ours(data, cells, partial), Reference(folder, data, cells, partial)
    apart = check_equal(search, reference, data.train.images[:64])
    sides: Sequence[tuple[Callable[[], Any], list[float]]] = [(lambda: search.learn(0), []), (reference.learn, [])]
    for turn in range(turns + 1):
        for call, times in sides if turn % 2 else sides[::-1]:
            times.append(seconds(call))
    (_, us), (_, them) = ((call, times[1:]) for call, times in sides)  # the first turn warms up
    ratios = [theirs / own for own, theirs in zip(us, them, strict=True)]
    shown = [f"{1000 * statistics.median(times) * 64 / len(data.train):.0f}" for times in (us, them)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"| {cells} | 1/{partial} | {' | '.join(shown)} | {statistics.median(ratios):.2f} | {spread} | {apart:.0e} |"


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drnas", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--turns", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {"train_size": 256, "validation_size": 256, "test_size": 100}
    data = rn.datasets.load("folder", root=chosen.data / "cifar10-jpeg", **sizes)
    print(f"torch {torch.__version__}, {describe_environment(World(), []).cpu}, one thread\n")
    print("| cells a stage | channels | ours, ms an iteration | DrNAS's | ratio | from turn to turn | logits apart |")
    print("|---|---|---|---|---|---|---|")
    for cells, partial in SIZES:
        print(row(data, chosen.drnas, cells, partial, chosen.turns), flush=True)


if __name__ == "__main__":
    main()
