"""The time that bounds by substitution take of one image, foretold in seconds where they may take hours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robust_nas.bounds import Bound, LinearMargins
from robust_nas.bounds._graph import lower_bound
from robust_nas.bounds._linear import Region, flat
from robust_nas.bounds._margins import Network, in_chunks
from robust_nas.bounds.alpha_crown import AlphaCROWN
from robust_nas.bounds.auto import Auto
from robust_nas.bounds.crown import CROWN
from robust_nas.bounds.crown_ibp import CROWNIBP
from robust_nas.threat import ThreatModel

_SAMPLED = 16
"""Values before each ReLU that are looked at."""

_LIVE = 12
"""Zonotopes as large as the largest that there are at once, roughly: those of a cell network do not fit into 2 GiB at
32 x 32 pixels and 8 channels, and fit into 6 GiB."""


@dataclass(frozen=True, eq=False)
class _Sample:
    """Values before one ReLU: how many there are, and bounds of some of their distances from 0, linear in the image."""

    count: int
    distances: LinearMargins

    def undecided(self, threat: ThreatModel) -> float:
        """Return how many of all values may have either sign in the ball, as a linear function of the image would."""
        return self.count * float((self.distances.lower(threat) <= 0).double().mean())


def slow_kind(bound: Bound) -> CROWN | AlphaCROWN | None:
    """Return the kind of bound, of those that `bound` takes, that bounds what is before each ReLU by substitution."""
    if isinstance(bound, Auto):
        slow = next((found for kind in bound.kinds if (found := slow_kind(kind))), None)
        return None if slow is None else replace(slow, memory=bound.memory)
    return bound if isinstance(bound, CROWN | AlphaCROWN) else None


def foretold_seconds(
    bound: CROWN | AlphaCROWN, model: nn.Module, image: Tensor, label: Tensor, threats: Sequence[ThreatModel]
) -> list[float]:
    """Return about how long one image [1, C, H, W] takes at each radius.

    A linear function of the image says which ReLUs are undecided, from a sample; so it is too short where these make
    many more undecided. The time of each is measured.
    """
    found: list[float] = []

    def look(network: Network, images: Tensor, labels: Tensor) -> LinearMargins:
        tiny = threats[0].with_epsilon(1e-9)
        region = Region(images, tiny, clip=True)
        logits = region.logits(network, None)
        # Other work on the machine does not count.
        started = time.thread_time()
        samples = [_sample(region, place) for place in range(len(region.relus))]
        per_function = (time.thread_time() - started) / max(1, _SAMPLED * len(samples))
        largest = max((sample.count for sample in samples), default=0)
        pixels = images[0].numel()
        for threat in threats:
            undecided = sum(sample.undecided(threat) for sample in samples)
            if _LIVE * largest * (1 + pixels + undecided) * 8 > bound.memory * 2**30:
                # Without zonotopes, intervals say what is undecided.
                wide = Region(images, threat, clip=True)
                wide.logits(network, None)
                undecided = float(sum(int(relu.undecided.sum()) for relu in wide.relus))
            # A direction of a zonotope for every pixel and undecided ReLU, through the whole network, which is twice
            # as far as to a ReLU; a function to its ReLU and its negative of everything undecided.
            found.append(2 * per_function * (pixels + 2 * undecided))
        del logits
        return CROWNIBP().bound(network, images, labels, tiny)

    in_chunks(model, image, label, bound, look)
    return found


def _sample(region: Region, place: int) -> _Sample:
    relu = region.relus[place]
    values = flat((relu.lower + relu.upper) / 2)[0]
    places = torch.linspace(0, len(values) - 1, min(_SAMPLED, len(values)), device=values.device).long()
    signs = torch.where(values[places] < 0, -1.0, 1.0).to(values)
    functions = values.new_zeros(len(places), len(values))
    functions[torch.arange(len(places), device=values.device), places] = signs
    _, slopes = lower_bound(relu.parent, functions.view(len(places), *relu.lower.shape), region.source)
    distances = (signs * values[places])[None]
    return _Sample(len(values), LinearMargins(distances, slopes, images=region.images))
