"""The cost of the expected network, as a penalty or a limit of alpha (RC-DARTS, Jin et al. 2019, arXiv:1912.12814)."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from robust_nas.core.errors import InputError
from robust_nas.models.complexity import count_multiply_adds, count_parameters
from robust_nas.searches import SearchResult

if TYPE_CHECKING:
    from robust_nas.architectures import AnyArchitecture
    from robust_nas.datasets import NetworkData
    from robust_nas.relaxations.relaxation import Relaxation
    from robust_nas.spaces import MixedSpace, Site

TIMED = 20
"""Passes of which the median is an operation's latency."""

MISSED = 1.05
"""A cost above this multiple of the limit misses it: the excess is neither rounding nor one operation between two."""

_UNITS = {"parameters": "parameters", "multiply_adds": "multiply-adds", "latency": "ms"}

LARGEST_STEP, STEPS = 0.05, 200
"""Of alpha, back to where a hard limit is kept."""


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A limit on the cost of networks, as the mean over architectures.

    Args:
        quantity: trainable parameters, multiply-adds for an image, or the measured latency of one image on the device
            of the search, in milliseconds.
        limit: the limit of the whole network.
        weight: the weight of the penalty, the excess of the expected network over the limit, as a share of it.
        hard: whether alpha moves until the expected network keeps to the limit: at the start, after each of its steps,
            and where operations are left out. If it cannot, it goes as near as `STEPS` of at most `LARGEST_STEP` lead.

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

    def cost(self, space: MixedSpace, data: NetworkData, device: torch.device) -> Cost:
        """Return the cost of the space's networks, operation by operation.

        Raises:
            InputError: if no network keeps to a hard limit.
        """
        measure: Callable[[nn.Module, tuple[int, int, int]], float] = {
            "parameters": lambda module, _: float(count_parameters(module)),
            "multiply_adds": lambda module, shape: float(count_multiply_adds(module, shape)),
            "latency": lambda module, shape: _milliseconds(module, shape, device),
        }[self.quantity]

        @functools.cache
        def at(name: str, site: Site) -> float:
            return measure(space.operation_at(name, site), site.shape)

        table = torch.tensor(
            [[sum(at(name, site) for site in sites) for name in space.operations] for sites in space.sites(data)]
        )
        count = len(space.operations)
        # One with the same operation everywhere leaves none out, and tells what there is beside the operations.
        same = next(place for place in range(count) if space.is_connected([place] * len(space.edges)))
        plain = SearchResult(space, [[float(place == same) for place in range(count)] for _ in table], None, {}).best
        operations = Cost(space, 0.0, table)
        network = space.network(plain, data)
        cost = replace(operations, fixed=measure(network, data.image_shape) - operations.of_one(plain))
        # Where the logarithms of probabilities are costs, the most probable architecture is the cheapest.
        weights = (-table.double() / table.max().clamp_min(1e-12)).exp()
        least = cost.of_one(SearchResult(space, weights.tolist(), None, {}).best)
        if self.hard and least > self.limit:
            raise InputError(
                f"search.resource.limit is {self.limit:g}, but the least that a network of {space.name} costs in "
                f"{self.quantity} is {least:g}; set it higher."
            )
        return cost

    def penalty(self, cost: Cost, mixture: Tensor) -> Tensor:
        """Return the penalty at a mixture [E, O], differentiable in it."""
        return self.weight * (cost.of(mixture) / self.limit - 1).clamp_min(0)

    def outcome(self, cost: Cost, expected: Tensor, best: AnyArchitecture) -> dict[str, Any]:
        """The outcome of the limit, for search.json, with a sentence where it is not kept to.

        Args:
            cost: of the space's networks.
            expected: the mixture [E, O] at the end.
            best: the most probable architecture.
        """
        got = {"expected": float(cost.of(expected)), "most_probable": cost.of_one(best)}
        found = {"quantity": self.quantity, "limit": self.limit, **got}
        if (worst := max(got.values())) <= MISSED * self.limit:
            return found
        remedy = (
            "set it lower, as it is one of the mean network"
            if self.hard
            else "raise search.resource.weight, or set hard to true"
        )
        return {
            **found,
            "note": f"search.resource.limit is {self.limit:g} {_UNITS[self.quantity]}, but the most probable network "
            f"has {got['most_probable']:g} and the expected one {got['expected']:g}, up to {worst / self.limit:.2g} "
            f"times as much: {remedy}.",
        }

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
    """The cost of a space's networks.

    Args:
        space: the space.
        fixed: the cost that all have: stem, reductions, classifier.
        operations: [E, O], the cost that an operation on an edge adds, in all cells together.
    """

    space: MixedSpace
    fixed: float
    operations: Tensor

    def of(self, mixture: Tensor) -> Tensor:
        """Return the expected cost at a mixture [E, O], differentiable in it."""
        return self.fixed + (self.operations.to(mixture) * self.space.marginals(mixture)).sum()

    def of_one(self, architecture: AnyArchitecture) -> float:
        """Return the cost of an architecture's network."""
        chosen = enumerate(self.space.indices_of(architecture))
        return self.fixed + float(sum(self.operations[edge, place] for edge, place in chosen if place is not None))


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
