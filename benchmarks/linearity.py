"""How linear the loss is near images, for sound networks and for masked ones: where the check's threshold is from.

    python benchmarks/linearity.py [--cifar10 FOLDER]

Networks of three small convolutions, trained here with and without adversarial training: on digits, and with
`--cifar10` also on 4,000 images of that folder's `train`. Prints the mean of `linearity_error`, over an eighth of
epsilon as in the check, on images of `test` that are classified correctly.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import robust_nas as rn
from robust_nas.datasets import Dataset
from robust_nas.evaluation.masking import linearity_error
from robust_nas.models.frozen import frozen
from robust_nas.runtime.distributed import World
from robust_nas.runtime.progress import Progress
from robust_nas.runtime.stages import Stage
from robust_nas.training import Training, fit
from robust_nas.training.pgd_at import PGDAT
from robust_nas.training.standard import Standard

THREATS = [("linf", (4 / 255, 8 / 255, 0.1, 0.2)), ("l2", (0.3, 1.0)), ("l1", (3.0, 12.0))]


def network(data: Dataset) -> nn.Module:
    """Return a small network, initialised from a fixed seed."""
    torch.manual_seed(0)
    channels, width = data.image_shape[0], 24
    layers: list[nn.Module] = []
    for inputs, stride in ((channels, 1), (width, 2), (width, 2)):
        layers += [nn.Conv2d(inputs, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, len(data.classes)))


def trained(data: Dataset, threat: rn.ThreatModel, *, adversarially: bool) -> nn.Module:
    """Return the network after 12 epochs of training."""
    method = PGDAT() if adversarially else Standard()
    plan = Training(method=method, epochs=12, batch_size=64)
    return fit(network(data), data, threat, plan, Stage("train", 0, World(), Progress(quiet=True))).model.eval()


class Masked(nn.Module):
    """A network behind what hides its gradients: rounded input, a gradient of the wrong sign, or a ripple."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "rounded to 32 levels":
            images = (31 * images).round() / 31
        elif self.kind == "wrong sign":
            images = 2 * images.detach() - images
        elif self.kind == "rippled":
            images = images + (2 * torch.pi * 255 * images).sin() / 255
        logits: Tensor = self.inner(images)
        return logits


def models(data: Dataset, threat: rn.ThreatModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield sound and masked networks of a data set, by name."""
    plain = trained(data, threat, adversarially=False)
    yield "standard", plain
    yield "adversarially trained", trained(data, threat, adversarially=True)
    for kind in ("rounded to 32 levels", "wrong sign", "rippled"):
        yield f"standard, {kind}", Masked(plain, kind).eval()


def error(model: nn.Module, data: Dataset, threat: rn.ThreatModel, count: int = 200) -> float:
    """Return the mean linearity error over an eighth of the threat's radius."""
    images, labels = data.test.images[:count], data.test.labels[:count]
    with frozen(model, fold=False):
        right = model(images).argmax(1) == labels
        found = linearity_error(model, images[right], labels[right], threat.with_epsilon(threat.epsilon / 8))
    return float(found.mean())


def main() -> None:
    """Measure and print a table per data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = [(rn.datasets.load("digits"), rn.ThreatModel(epsilon=0.1))]
    if options.cifar10:
        sizes = {"train_size": 4000, "validation_size": 200, "test_size": 500}
        sets.append((rn.datasets.load("folder", root=options.cifar10, **sizes), rn.ThreatModel(epsilon="4/255")))
    columns = [(norm, epsilon) for norm, epsilons in THREATS for epsilon in epsilons]
    for data, trained_at in sets:
        print(f"\n{data.name}, trained at linf {trained_at.epsilon:.3g}\n")
        print("| network | " + " | ".join(f"{norm} {epsilon:.3g}" for norm, epsilon in columns) + " |")
        print("|---" * (len(columns) + 1) + "|")
        for name, model in models(data, trained_at):
            found = [error(model, data, rn.ThreatModel(norm=norm, epsilon=epsilon)) for norm, epsilon in columns]  # type: ignore[arg-type]
            print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in found) + " |", flush=True)


if __name__ == "__main__":
    main()
