"""Small models and images whose right answers are known, and what the package says of them."""

from __future__ import annotations

import contextlib
import math
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from checks import true
from torch import Tensor, nn

import robust_nas as rn
from robust_nas.datasets import Dataset, ImageSet


def images(count: int = 24, shape: Sequence[int] = (1, 4, 4), seed: int = 1) -> Tensor:
    """Return random images."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def linear(num_classes: int = 3, shape: Sequence[int] = (1, 4, 4), seed: int = 0) -> nn.Sequential:
    """Return a linear model, of which worst cases are known."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_classes)).eval()


def small_network(num_classes: int = 3, channels: int = 1, seed: int = 0, **first: Any) -> nn.Sequential:
    """Return a convolution with batch norm whose statistics are not trivial, ReLU and a linear layer, for 4 x 4."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(4)
    network = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1, **first),
        norm,
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )
    with torch.no_grad():
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.05, 0.2)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.5, 0.5)
    return network.eval()


@torch.no_grad()
def answers(model: nn.Module, points: Tensor) -> Tensor:
    """Return a model's own classes, which count as labels where it is to be right about everything."""
    found: Tensor = model(points).argmax(1)
    return found


def exact_margins(model: nn.Sequential, points: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Return the least margin of a linear model over the linf ball inside [0, 1] of each image, in float64, [N]."""
    layer = model[-1]
    assert isinstance(layer, nn.Linear)
    weight, bias, flat = layer.weight.double(), layer.bias.double(), points.double().flatten(1)
    rows, offsets = weight[labels].unsqueeze(1) - weight, bias[labels].unsqueeze(1) - bias
    down, up = flat.clamp_max(epsilon).unsqueeze(1), (1 - flat).clamp_max(epsilon).unsqueeze(1)
    worst = torch.where(rows > 0, -down, up)
    margins = ((flat.unsqueeze(1) + worst) * rows).sum(2) + offsets
    own = F.one_hot(labels, len(weight)).bool()
    least: Tensor = margins.masked_fill(own, math.inf).amin(1).detach()
    return least


def quiet() -> contextlib.AbstractContextManager[Any]:
    """Ignore warnings."""
    return warnings.catch_warnings(action="ignore")


def attacked(model: nn.Module, points: Tensor, labels: Tensor, epsilon: float = 0.1, **options: Any) -> Tensor:
    """Return which images survive, [N]; by default an ascent towards every class, which is exact for linear models."""
    options = {"attacks": [rn.attacks.get("pgd")(loss="margin", targets=9)], **options}
    with quiet():
        found: Tensor = rn.evaluate(model, points, labels, rn.ThreatModel(epsilon=epsilon), **options).worst_case
    return found


def certified(model: nn.Module, points: Tensor, labels: Tensor, epsilon: float = 0.02, **options: Any) -> Tensor:
    """Return the proofs, as least margins, [N]."""
    data = ImageSet.of(points, labels)
    found: Tensor = rn.certify(model, data, rn.ThreatModel(epsilon=epsilon), **options)[0].margin
    return found


def sound(model: nn.Module, points: Tensor, margins: Tensor, labels: Tensor, epsilon: float) -> None:
    """Raise if a corner of the ball, or a point in it, has a lower margin than is proved."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(200):
        change = torch.rand(points.shape, generator=generator) * 2 - 1
        change = change.sign() if random.random() < 0.5 else change
        moved = (points + epsilon * change).clamp(0, 1)
        with torch.no_grad():
            logits = model(moved).double()
        own = logits.gather(1, labels[:, None])
        least = (own - logits).scatter(1, labels[:, None], math.inf).amin(1)
        true((least >= margins - 1e-4).all(), "a point of the ball has a lower margin than is proved")


def few_digits(count: int = 64) -> Dataset:
    """Return digits, of which few are for training."""
    data = rn.datasets.load("digits")
    return Dataset("digits", data.classes, data.train[:count], data.validation[:48], data.test[:32])


class Wrapped(nn.Module):
    """A model with something around it."""

    def __init__(self, model: nn.Module, before: Callable[[Any], Any] | None = None, after: Any = None) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, points: Tensor) -> Any:
        """Apply `before`, the model, and `after`."""
        logits = self.model(points if self.before is None else self.before(points))
        return logits if self.after is None else self.after(logits)


def modes(model: nn.Module) -> list[bool]:
    """Return every module's mode."""
    return [module.training for module in model.modules()]
