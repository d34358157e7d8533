"""The graph of a network's affine operations and ReLUs, along which linear functions of its values are pulled back.

A linear function of a value, sum_i g_i value_i, is a linear function of what the value was computed from: an affine
operation gives its adjoint to the coefficients g and a constant to the sum; a ReLU lies between two lines, of which the
sign of g_i says the one that keeps the sum a lower bound (CROWN, Zhang et al. 2018, arXiv:1811.00866, theorem 3.2;
backward mode of Xu et al. 2020, arXiv:2002.12920). At the input, and at values whose operation has no such rule, the
function meets bounds of the values themselves.

Coefficients are [S, B, *shape]: S linear functions for each of the B images, of whose values alone they are functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_nas.core.errors import InputError

Pull = Callable[[Tensor], Sequence[Tensor]]
"""Coefficients on a value [S, B, *shape] to those on what it was computed from."""

Push = Callable[[Sequence[Tensor]], Tensor]
"""Directions in which what a value was computed from moves, each [S, B, *its shape], to those of the value."""

_numbers = itertools.count()

_COPIES = 2**22
"""Numbers that a convolution of directions may copy at once."""


@dataclass(eq=False)
class Node:
    """A value of the network, [B, *shape].

    Args:
        shape: of the value, B included.
        number: nodes are numbered in the order in which they are computed.
    """

    shape: torch.Size
    number: int = field(default_factory=lambda: next(_numbers), init=False)


@dataclass(eq=False)
class Leaf(Node):
    """A value that is known by its bounds alone: the network's input, a constant, or an operation's result."""

    lower: Tensor
    upper: Tensor


@dataclass(eq=False)
class Affine(Node):
    """A value that is an affine function of others.

    Args:
        parents: those.
        pull: the adjoint of its linear part.
        push: its linear part.
        constant: the added constant, shaped to go with the value; None for nothing.
        reads: tensors of the network that `pull`, `push` and `constant` read.
    """

    parents: tuple[Node, ...]
    pull: Pull
    push: Push
    constant: Tensor | float | None = None
    reads: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        self._versions = [_version(tensor) for tensor in self.reads]

    def check_unchanged(self) -> None:
        """Raise InputError if a tensor that was read in the forward pass has been written to since."""
        if [_version(tensor) for tensor in self.reads] != self._versions:
            raise InputError(
                "Bounds need a model that leaves its weights and constants as they are; this one writes to one of them "
                "in place after it was used."
            )


def _version(tensor: Any) -> int | None:
    """Return a number that changes whenever a tensor is written to; None for what is no such tensor."""
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else None


@dataclass(eq=False)
class Convolution(Affine):
    """An affine function that is a convolution, and can be merged with a batch norm after it.

    Args:
        weight: [O, C // groups, h, w].
        options: stride, padding, dilation and groups.
    """

    weight: Tensor = field(default_factory=lambda: torch.empty(0))
    options: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int] = ((1, 1), (0, 0), (1, 1), 1)


@dataclass(eq=False)
class Relu(Node):
    """max(z, slope z), by the bounds of z.

    Args:
        parent: z.
        lower: of z.
        upper: of z.
        slope: of the negative side: 0 for ReLU.
        chosen: slopes of the lower line, [B, *shape] or [S, B, *shape], in [slope, 1]; None for CROWN's choice, the
            one that leaves the smaller area: 1 where upper > -lower, and the negative side's elsewhere.
    """

    parent: Node
    lower: Tensor
    upper: Tensor
    slope: float = 0.0
    chosen: Tensor | None = None

    @property
    def undecided(self) -> Tensor:
        """The places where z may have either sign, [B, *shape]. NaN is undecided."""
        return ~((self.lower >= 0) | (self.upper <= 0))

    @cached_property
    def lines(self) -> tuple[Tensor, Tensor, Tensor]:
        """CROWN's slopes of the lower line, and the slopes and intercepts of the upper line, each [B, *shape]."""
        # u / (u - l) where z may have either sign; 1 where it is positive, 0 where it is negative, NaN where either is.
        most, least = self.upper.clamp(min=0), self.lower.clamp(max=0)
        share = most / (most - least).clamp_min(torch.finfo(most.dtype).tiny)
        below, above, intercept = (share > 0.5).to(share.dtype), share, -share * least
        if self.slope == 0:
            return below, above, intercept
        rise = 1 - self.slope
        return self.slope + rise * below, self.slope + rise * above, rise * intercept

    def lower_slopes(self) -> Tensor:
        """Return the slopes of the lower line."""
        below, above, _ = self.lines
        return below if self.chosen is None else torch.where(self.undecided, self.chosen, above)


def linear_pull(function: Callable[[Tensor], Tensor], shape: torch.Size) -> Pull:
    """Return the adjoint of a linear function of values of `shape`, by automatic differentiation.

    Raises:
        InputError: by the adjoint, if the function mixes the images of a batch.
    """

    def pull(coefficients: Tensor) -> list[Tensor]:
        _check_apart(function, shape, coefficients)
        adjoint = torch.func.vjp(function, coefficients.new_zeros(shape))[1]
        pulled: Tensor = torch.vmap(lambda one: adjoint(one)[0])(coefficients)
        return [pulled]

    return pull


def linear_push(function: Callable[[Tensor], Tensor], shape: torch.Size) -> Push:
    """Return a linear function of values of `shape`, for many directions.

    Raises:
        InputError: by the function, if it mixes the images of a batch: a direction is for every image by itself.
    """

    def push(directions: Sequence[Tensor]) -> Tensor:
        _check_apart(function, shape, directions[0])
        return torch.vmap(function)(directions[0])

    return push


def _check_apart(function: Callable[[Tensor], Tensor], shape: torch.Size, like: Tensor) -> None:
    """Raise InputError unless a linear function treats every image of a batch by itself.

    Then to scale the images is to scale its results, image by image.
    """
    numbers = torch.arange(1, shape[0] + 1, dtype=like.dtype, device=like.device)

    def scaled(values: Tensor) -> Tensor:
        return values * numbers.view(-1, *[1] * (values.ndim - 1))

    with torch.no_grad():
        ones = like.new_ones(shape)
        result = function(ones)
        if result.shape[:1] != shape[:1] or not torch.allclose(function(scaled(ones)), scaled(result)):
            raise mixed_images()


class MixedImages(InputError):
    """The network mixes the images of a batch."""


def mixed_images() -> InputError:
    return MixedImages(
        "Linear bounds need a model that treats every image of a batch by itself, [B, ...] all the way; this one "
        "changes or mixes the first dimension. If it only changes it, use interval bounds."
    )


def convolution(parent: Node, weight: Tensor, constant: Tensor | None, shape: torch.Size, options: Any) -> Convolution:
    """Return the node of a convolution of images [B, C, H, W], with a constant [1, O, 1, 1]."""
    stride, padding, dilation, groups = options
    size = parent.shape[2:]

    def pull(coefficients: Tensor) -> list[Tensor]:
        flat = coefficients.flatten(0, 1)
        reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        around = [r - p for r, p in zip(reach, padding, strict=True)]
        if flat.dtype == torch.float64 and stride == (1, 1) and groups == 1 and min(around) >= 0:
            # As a convolution with the kernel turned round, which is faster where oneDNN has none: in double precision.
            pulled = F.conv2d(flat, weight.flip(2, 3).transpose(0, 1), None, 1, around, dilation)
        else:
            # A stride leaves out the last rows or columns where it does not divide.
            left = [(h + 2 * p - r - 1) % s for h, p, r, s in zip(size, padding, reach, stride, strict=True)]
            pulled = F.conv_transpose2d(flat, weight, None, stride, padding, left, groups, dilation)
        return [pulled.unflatten(0, coefficients.shape[:2])]

    def push(directions: Sequence[Tensor]) -> Tensor:
        # Some implementations copy every value once for each weight that meets it.
        at_once = max(1, _COPIES // (weight[0].numel() * shape[2:].numel()))
        flat = directions[0].flatten(0, 1)
        result = flat.new_empty(len(flat), *shape[1:])
        for some, moved in zip(flat.split(at_once), result.split(at_once), strict=True):
            moved.copy_(F.conv2d(some, weight, None, stride, padding, dilation, groups))
        return result.unflatten(0, directions[0].shape[:2])

    return Convolution(shape, (parent,), pull, push, constant, (weight, constant), weight, options)


def lower_bound(node: Node, coefficients: Tensor, source: Leaf | None = None) -> tuple[Tensor, Tensor | None]:
    """Return offsets [B, S] and slopes [B, S, D]: <coefficients, value> >= offset + <slopes, input> on the whole box.

    Args:
        node: of the value.
        coefficients: [S, B, *shape].
        source: the input, of which the bound is to be a linear function; slopes are None if the value does not depend
            on it, or if it is None. Every other leaf is met by its bounds.

    Raises:
        InputError: if the network mixes the images of a batch.
    """
    functions, batch = coefficients.shape[:2]
    offset = coefficients.new_zeros(batch, functions)
    slopes: Tensor | None = None
    pending: dict[Node, Tensor] = {node: coefficients}
    while pending:
        node = max(pending, key=lambda found: found.number)
        g = pending.pop(node)
        if node.shape[:1] != (batch,):
            raise mixed_images()
        if node is source:
            slopes = g.flatten(2).transpose(0, 1)
        elif isinstance(node, Leaf):
            offset = offset + _least(g, node.lower, node.upper)
        elif isinstance(node, Relu):
            _, above, intercept = node.lines
            below, negative = node.lower_slopes(), g.clamp(max=0)
            offset = offset + _dot(negative, intercept)
            # The lower line where g is positive, and the upper one where it is negative.
            _add(pending, node.parent, (g * below).addcmul_(negative, above - below))
        elif isinstance(node, Affine):
            node.check_unchanged()
            if node.constant is not None:
                offset = offset + _constant(g, node.constant)
            for parent, pulled in zip(node.parents, node.pull(g), strict=True):
                _add(pending, parent, pulled)
    return offset, slopes


def _least(coefficients: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return [B, S], the least that functions of a value between two bounds can be."""
    return _dot(coefficients, (lower + upper) / 2) - _dot(coefficients.abs(), (upper - lower) / 2)


def largest_value(node: Node) -> int:
    """Return the most numbers of any value that a value was computed from, or of itself; at least 1."""
    seen, pending = {node}, [node]
    while pending:
        found = pending.pop()
        parents = found.parents if isinstance(found, Affine) else [found.parent] if isinstance(found, Relu) else []
        pending += [parent for parent in parents if parent not in seen]
        seen.update(parents)
    return max(1, *(found.shape.numel() for found in seen))


def _add(pending: dict[Node, Tensor], node: Node, coefficients: Tensor) -> None:
    pending[node] = pending[node] + coefficients if node in pending else coefficients


def _dot(coefficients: Tensor, values: Tensor) -> Tensor:
    """Return [B, S] sums of the products of coefficients [S, B, *shape] and values [B, *shape]."""
    rows = coefficients.flatten(2) if coefficients.ndim > 2 else coefficients.unsqueeze(2)
    return torch.linalg.vecdot(rows, values.expand(coefficients.shape[1:]).reshape(len(values), -1)).T


def _constant(coefficients: Tensor, constant: Tensor | float) -> Tensor:
    """Return [B, S] sums of the products with a constant that is broadcast to [B, *shape]."""
    channels = coefficients.shape[2:3]
    per_channel = isinstance(constant, Tensor) and coefficients.ndim == 5 and constant.shape == (1, *channels, 1, 1)
    if per_channel and isinstance(constant, Tensor) and constant.dtype == coefficients.dtype:
        sums: Tensor = coefficients.flatten(3).sum(3) @ constant.flatten()
        return sums.T
    sums = (coefficients * constant).flatten(2).sum(2) if coefficients.ndim > 2 else coefficients * constant
    return sums.T
