"""What the expected network costs, as a penalty or a limit of alpha (RC-DARTS, Jin et al. 2019, arXiv:1912.12814)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from robust_nas.complexity import count_multiply_adds, count_parameters
from robust_nas.errors import InputError
from robust_nas.models.cells import make_operation
from robust_nas.spaces.cell import CellSpace
from robust_nas.supernet import MixedCell

if TYPE_CHECKING:
    from robust_nas.datasets import NetworkData
    from robust_nas.spaces import Space
    from robust_nas.supernet._relaxation import Relaxation

TIMED = 20
"""Passes of which the median is an operation's latency."""

LARGEST_STEP, STEPS = 0.05, 200
"""Of alpha, back to where a hard limit is kept."""


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A limit on what a network costs, for the mean over architectures.

    Args:
        quantity: trainable parameters, multiply-adds for an image, or the measured latency of one image on the device
            of the search, in milliseconds.
        limit: of the whole network.
        weight: of the penalty, how far the expected network is above the limit, as a share of it.
        hard: whether alpha goes back after each of its steps to where the expected network keeps to the limit. If it
            cannot, it goes as near as `STEPS` of at most `LARGEST_STEP` lead.

    Raises:
        InputError: if the limit is not above 0, or the weight is below 0.
    """

    quantity: Literal["parameters", "multiply_adds", "latency"] = "parameters"
    limit: float
    weight: float = 1.0
    hard: bool = False

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise InputError(f"search.resource.limit must be above 0, but got {self.limit}.")
        if self.weight < 0:
            raise InputError(f"search.resource.weight must not be negative, but got {self.weight}.")

    def cost(self, space: Space, data: NetworkData, device: torch.device) -> Cost:
        """Return what the space's networks cost, operation by operation.

        Raises:
            InputError: if no network keeps to a hard limit, or for another kind of space than cells.
        """
        if not isinstance(space, CellSpace):
            raise InputError(
                "search.resource knows what operations cost in cell spaces, such as nasbench201, but the space is "
                f"{space.name}; leave it out."
            )
        measure: Callable[[nn.Module, tuple[int, int, int]], float] = {
            "parameters": lambda module, _: float(count_parameters(module)),
            "multiply_adds": lambda module, shape: float(count_multiply_adds(module, shape)),
            "latency": lambda module, shape: _milliseconds(module, shape, device),
        }[self.quantity]
        shapes = _shapes_of_cells(space, data, device)
        table = torch.zeros(len(space.edges), len(space.operations))
        for shape in shapes:
            row = [measure(make_operation(name, shape[0], affine=True), shape) for name in space.operations]
            table += torch.tensor(row)
        # A network with one operation everywhere, which leaves out no edge, tells what there is beside the cells.
        connected = [place for place in range(len(space.operations)) if space.is_connected([place] * len(space.edges))]
        plain = space.network(space.parse(str(connected[0]) * len(space.edges)), data)
        cost = Cost(measure(plain, data.image_shape) - float(table[:, connected[0]].sum()), table)
        least = cost.fixed + float(table.min(1).values.sum())
        if self.hard and least > self.limit:
            raise InputError(
                f"search.resource.limit is {self.limit:g}, but the least that a network of {space.name} costs in "
                f"{self.quantity} is {least:g}; set it higher."
            )
        return cost

    def penalty(self, cost: Cost, mixture: Tensor) -> Tensor:
        """Return the penalty at a mixture [E, O], differentiable in it."""
        return self.weight * (cost.of(mixture) / self.limit - 1).clamp_min(0)

    def keep(self, cost: Cost, relaxation: Relaxation) -> None:
        """Move alpha down the expected cost until the limit is kept."""
        for _ in range(STEPS):
            expected = cost.of(relaxation.expected())
            if float(expected.detach()) <= self.limit:
                return
            (gradient,) = torch.autograd.grad(expected, [relaxation.alpha])
            # Along the gradient as far as a linear cost would need, and not far in one step.
            length = (expected.detach() - self.limit) / gradient.square().sum().clamp_min(1e-12)
            step = length * gradient
            with torch.no_grad():
                relaxation.alpha -= step * (LARGEST_STEP / step.abs().max().clamp_min(1e-12)).clamp(max=1.0)


@dataclass(frozen=True)
class Cost:
    """What a space's networks cost.

    Args:
        fixed: what all have: stem, reductions, classifier.
        operations: [E, O], what an operation on an edge adds, in all cells together.
    """

    fixed: float
    operations: Tensor

    def of(self, mixture: Tensor) -> Tensor:
        """Return the expected cost at a mixture [E, O], differentiable in it."""
        return self.fixed + (self.operations.to(mixture) * mixture).sum()


def _shapes_of_cells(space: CellSpace, data: NetworkData, device: torch.device) -> list[tuple[int, int, int]]:
    """Return every cell's channels, height and width."""
    shapes: list[tuple[int, int, int]] = []
    supernet = space.supernet(data).to(device).eval()  # type: ignore[arg-type]
    for layer in supernet.modules():
        if isinstance(layer, MixedCell):
            layer.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[1:])))
    mixture = torch.zeros(len(space.edges), len(space.operations))
    with torch.no_grad():
        supernet(torch.zeros(1, *data.image_shape, device=device), mixture)
    return shapes


@torch.no_grad()
def _milliseconds(module: nn.Module, shape: tuple[int, int, int], device: torch.device) -> float:
    """Return the median time of a pass with one image."""
    module, image, times = module.to(device).eval(), torch.zeros(1, *shape, device=device), []
    for _ in range(TIMED):
        started = time.perf_counter()
        module(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)
