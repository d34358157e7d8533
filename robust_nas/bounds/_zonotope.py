"""Zonotopes: what a network's values can be, as a centre and directions in which they move together.

Forward through the network in one pass, so much cheaper than one substitution per neuron, and about as tight where few
ReLUs are undecided: what it decides needs no substitution (Singh et al. 2018, "Fast and effective robustness
certification", section 3; Wong and Kolter 2018, arXiv:1711.00851, is its dual).
"""

from __future__ import annotations

import math
import warnings
from functools import cached_property

import torch
from torch import Tensor

from robust_nas.bounds._graph import Affine, Leaf, Node, Relu
from robust_nas.bounds._linear import Region, flat, undecided
from robust_nas.bounds._memory import TooManyImages, memory

TOO_LITTLE = (
    "An image's zonotopes do not fit into the memory that CROWN may take, so that it bounds value after value by "
    "substitution, which takes hours where there are many; allow more memory, or take crown_ibp."
)


class Zonotopes:
    """The zonotopes of the values of one graph.

    A zonotope is [1 + D + E, B, *shape]: the centre; one direction for every pixel, which all together move by a change
    inside the ball; one for every undecided ReLU so far, each of which moves by its own number in [-1, 1]. Values
    computed earlier have fewer of the last.

    Those of values that were asked for are kept, from which the next ones are computed, as far as they fit: the oldest
    are given up first. Values computed from such a zonotope have none.

    Args:
        region: the images that are bounded.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._kept: dict[Node, Tensor] = {}
        self._without: set[Node] = set()
        self._passing: dict[Node, Tensor | None] = {}
        self._lacks_memory = False

    def bounds(self, node: Node, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds of a value [B, *shape] that are at least as tight as `lower` and `upper`."""
        values = self._of(node)
        self._passing = {}
        if values is None:
            if self._lacks_memory:
                warnings.warn(TOO_LITTLE, stacklevel=2)
                self._lacks_memory = False
            return lower, upper
        if node not in self._kept:
            self._kept[node] = values
            memory().hold(values.numel(), values.shape[1])
        centre, radius = values[0], self._radius(values)
        return torch.maximum(lower, centre - radius), torch.minimum(upper, centre + radius)

    def _radius(self, values: Tensor) -> Tensor:
        pixels, own = values[1 : 1 + self._num_pixels], values[1 + self._num_pixels :]
        dual = {"linf": 1.0, "l2": 2.0, "l1": math.inf}[self._region.threat.norm]
        radius: Tensor = pixels.norm(p=dual, dim=0) + own.abs().sum(0)
        return radius

    @cached_property
    def _num_pixels(self) -> int:
        return self._region.images[0].numel()

    def _of(self, node: Node) -> Tensor | None:
        """Return a value's zonotope, or None if it would be too large."""
        if node in self._kept:
            return self._kept[node]
        if node not in self._passing:
            self._passing[node] = None if node in self._without else self._computed(node)
        if self._passing[node] is None:
            self._without.add(node)
        return self._passing[node]

    def _computed(self, node: Node) -> Tensor | None:
        if isinstance(node, Leaf):
            return self._leaf(node)
        if isinstance(node, Relu):
            value = self._of(node.parent)
            return None if value is None or not self._has_room(len(value), node) else self._relu(node, value)
        assert isinstance(node, Affine)
        node.check_unchanged()
        values = [value for parent in node.parents if (value := self._of(parent)) is not None]
        if len(values) < len(node.parents):
            return None
        most = max(len(value) for value in values)
        if not self._has_room(most, node):
            return None
        result = node.push([_padded(value, most) for value in values])
        if node.constant is not None:
            result = torch.cat([(result[:1] + node.constant), result[1:]])
        return result

    def _has_room(self, rows: int, node: Node) -> bool:
        """Give up the oldest zonotopes until there is room for another; return whether there is.

        Raises:
            TooManyImages: if there is not, and fewer images would take less.
        """
        # Copies of what comes in, what goes out, and that with a constant; and what is there for the next ReLU alone.
        parents = len(node.parents) if isinstance(node, Affine) else 1
        passing = sum(values.numel() for values in self._passing.values() if values is not None)
        count = (parents + 2) * rows * node.shape.numel() + passing
        while not memory().fits(count) and self._kept:
            oldest = next(iter(self._kept))
            memory().held -= self._kept.pop(oldest).numel()
            self._without.add(oldest)
            self._lacks_memory = True
        fits = memory().fits(count)
        if not fits and node.shape[0] > 1:
            raise TooManyImages
        self._lacks_memory |= not fits
        return fits

    def _leaf(self, node: Leaf) -> Tensor | None:
        rows = 1 + self._num_pixels
        if not self._has_room(rows, node):
            return None
        centre = (node.lower + node.upper) / 2
        if node is not self._region.source:
            return None if (node.lower != node.upper).any() else self._constant(centre, rows)
        pixels = torch.eye(self._num_pixels, dtype=centre.dtype, device=centre.device).unsqueeze(1)
        if self._region.threat.norm == "linf":
            moves = pixels * ((node.upper - node.lower) / 2).flatten(1)
        else:
            # The ball itself, not the box around it.
            centre, moves = self._region.images, (pixels * self._region.threat.epsilon).expand(-1, len(centre), -1)
        return torch.cat([centre.unsqueeze(0), moves.unflatten(2, centre.shape[1:])])

    @staticmethod
    def _constant(centre: Tensor, rows: int) -> Tensor:
        return torch.cat([centre.unsqueeze(0), centre.new_zeros(rows - 1, *centre.shape)])

    def _relu(self, node: Relu, values: Tensor) -> Tensor:
        """Return the zonotope between the upper line and the line parallel to it through 0."""
        _, slope, intercept = node.lines
        lower = flat(node.lower)
        places = undecided(lower, flat(node.upper))
        result = values.new_empty(len(values) + places.shape[1], *values.shape[1:])
        torch.mul(values, slope, out=result[: len(values)])
        result[0] += intercept / 2
        moves = result[len(values) :].zero_().view(places.shape[1], *lower.shape)
        index = places.T.unsqueeze(2)
        moves.scatter_(2, index, flat(intercept / 2).gather(1, places).T.unsqueeze(2))
        return result


def _padded(values: Tensor, rows: int) -> Tensor:
    """Return a zonotope with as many directions as another, the last of which do not move it."""
    missing = rows - len(values)
    return torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) if missing else values
