"""Spaces within a limit on the networks' cost: whatever a sampler decides, the architecture keeps to it."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from robust_nas.core.errors import InputError
from robust_nas.core.seeds import seed_at
from robust_nas.datasets import DataForm
from robust_nas.spaces import ElasticCosts, ElasticSpace, extreme

if TYPE_CHECKING:
    from torch import nn

    from robust_nas.architectures import AnyArchitecture
    from robust_nas.datasets import NetworkData

_UNITS = {"parameters": "parameters", "multiply_adds": "multiply-adds"}


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit on the cost of every network.

    Args:
        quantity: trainable parameters, or multiply-adds for an image.
        limit: the most that a network may have.

    Raises:
        InputError: if the limit is not above 0.
    """

    quantity: Literal["parameters", "multiply_adds"] = "parameters"
    limit: float

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise InputError(f"search.resource.limit must be above 0, but got {self.limit}.")


@dataclass(frozen=True)
class LimitedSpace:
    """The architectures of an elastic space that keep to a limit, for samplers.

    What is decided beyond the limit loses one size after the other, in an order that is drawn once for these values,
    until it is within. Options that no network within the limit has are left out.

    Args:
        space: the whole space.
        form: the form of the images.
        limit: the limit; None for none.

    Raises:
        InputError: if the smallest network is beyond the limit.
    """

    space: ElasticSpace
    form: DataForm
    limit: Limit | None = None
    costs: ElasticCosts = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "costs", ElasticCosts(self.space, self.form))
        smallest = extreme(self.space, self.space.decisions, min)
        if self.limit is not None and not self.holds(smallest):
            unit, least = _UNITS[self.limit.quantity], self.costs.of(smallest)[self.limit.quantity]
            raise InputError(
                f"search.resource.limit is {self.limit.limit:g} {unit}, but the smallest network of {self.name}, "
                f"'{smallest}', has {least}; set it higher."
            )

    @property
    def name(self) -> str:
        """The whole space's name."""
        return self.space.name

    def holds(self, architecture: AnyArchitecture) -> bool:
        """Whether an architecture keeps to the limit."""
        limit = self.limit
        return limit is None or self.costs.of(architecture)[limit.quantity] <= limit.limit

    @functools.cached_property
    def decisions(self) -> dict[str, tuple[str, ...]]:
        """The decisions with those options of depth and width that some network within the limit has."""
        least = self.space.decisions_of(extreme(self.space, self.space.decisions, min))
        found = dict(self.space.decisions)
        for place, (name, values) in enumerate(found.items()):
            if name in self.space.sizes:
                # If the smallest network with an option is beyond the limit, so are all with it.
                others = [self.space.decided((*least[:place], value, *least[place + 1 :])) for value in values]
                found[name] = tuple(value for value, other in zip(values, others, strict=True) if self.holds(other))
        return found

    def decided(self, values: Sequence[str]) -> AnyArchitecture:
        """Return the architecture of the values of `decisions`, made smaller until it keeps to the limit."""
        chosen = dict(zip(self.decisions, values, strict=True))
        architecture = self.space.decided(tuple(chosen.values()))
        order = random.Random(seed_at(0, "limit", *values))
        while not self.holds(architecture):
            smaller = {
                name: max(less, key=float)
                for name in self.space.sizes
                if (less := [value for value in self.decisions[name] if float(value) < float(chosen[name])])
            }
            name = order.choice(list(smaller))
            chosen[name] = smaller[name]
            architecture = self.space.decided(tuple(chosen.values()))
        return architecture

    def decisions_of(self, architecture: AnyArchitecture) -> tuple[str, ...]:
        """Return the values of `decisions` that make an architecture."""
        return self.space.decisions_of(architecture)

    def parse(self, text: str) -> AnyArchitecture:
        """Read an architecture of the whole space."""
        return self.space.parse(text)

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The whole space's."""
        return self.space.choices

    def indices_of(self, architecture: AnyArchitecture) -> list[int | None]:
        """Return the index of an architecture's option in each of `choices`."""
        return self.space.indices_of(architecture)

    def posterior(self, probabilities: Sequence[Sequence[float]]) -> Sequence[Mapping[tuple[str, ...], float]]:
        """Return the whole space's."""
        return self.space.posterior(probabilities)

    def network(self, architecture: AnyArchitecture, data: NetworkData, *, affine: bool = True) -> nn.Module:
        """Return an architecture's network."""
        return self.space.network(architecture, data, affine=affine)
