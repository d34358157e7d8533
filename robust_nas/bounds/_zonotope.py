"""Zonotopes: what a network's values can be, as a centre and directions in which they move together.

Forward through the network in one pass, so much cheaper than one substitution per neuron, and about as tight where few
ReLUs are undecided: what it decides needs no substitution (Singh et al. 2018, "Fast and effective robustness
certification", section 3; Wong and Kolter 2018, arXiv:1711.00851, is its dual).
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from robust_nas.bounds._graph import Affine, Leaf, Node, Relu
from robust_nas.bounds._linear import Region, undecided
from robust_nas.bounds._memory import memory

_SHARE = 8
"""Zonotopes are not begun where so many of the first one's size do not fit."""


class Zonotopes:
    """The zonotopes of the values of one graph.

    A zonotope is [1 + D + E, B, *shape]: the centre; one direction for every pixel, which all together move by a change
    inside the ball; one for every undecided ReLU so far, each of which moves by its own number in [-1, 1]. Values
    computed earlier have fewer of the last.

    Args:
        region: the images that are bounded.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._known: dict[Node, Tensor | None] = {}

    def bounds(self, node: Node, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds of a value [B, *shape] that are at least as tight as `lower` and `upper`."""
        values = self._of(node)
        if values is None:
            return lower, upper
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
        if node not in self._known:
            value = self._computed(node)
            if value is not None:
                memory().hold(value.numel(), value.shape[1])
            self._known[node] = value
        return self._known[node]

    def _computed(self, node: Node) -> Tensor | None:
        if isinstance(node, Leaf):
            return self._leaf(node)
        if isinstance(node, Relu):
            return None if (value := self._of(node.parent)) is None else self._relu(node, value)
        assert isinstance(node, Affine)
        node.check_unchanged()
        values = [value for parent in node.parents if (value := self._of(parent)) is not None]
        if len(values) < len(node.parents):
            return None
        most = max(len(value) for value in values)
        padded = [torch.cat([value, value.new_zeros(most - len(value), *value.shape[1:])]) for value in values]
        result = node.push(padded)
        if node.constant is not None:
            result = torch.cat([(result[:1] + node.constant), result[1:]])
        return result

    def _leaf(self, node: Leaf) -> Tensor | None:
        rows = 1 + self._num_pixels
        if not memory().fits(rows * node.lower.numel() * _SHARE):
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
        """Return what lies between the upper line and the line parallel to it through 0."""
        _, slope, intercept = node.lines
        places = undecided(node.lower.flatten(1), node.upper.flatten(1))
        result = values.new_empty(len(values) + places.shape[1], *values.shape[1:])
        torch.mul(values, slope, out=result[: len(values)])
        result[0] += intercept / 2
        moves = result[len(values) :].zero_().flatten(2)
        index = places.T.unsqueeze(2)
        moves.scatter_(2, index, (intercept / 2).flatten(1).gather(1, places).T.unsqueeze(2))
        return result
