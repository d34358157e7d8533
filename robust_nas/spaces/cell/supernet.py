"""The supernet: a network that holds every architecture of a space, mixed edge by edge.

The mixture is an argument, not a state: the same supernet serves a sample, the mean, or a one-hot choice. Its size does
change, in progressive shrinking: operations are left out (`keep`), partial channels become more (`widen`).
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import has_torch_function_unary

from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.models.average_pool import AveragePool3x3
from robust_nas.spaces._widening import embed
from robust_nas.spaces.cell.network import CellNetwork, ReLUConvBN, Zero, initialise, make_operation

Weights = Sequence[Tensor | None]
"""The weights of an edge's operations; None is exactly 0."""

if TYPE_CHECKING:
    from robust_nas.architectures import AnyArchitecture
    from robust_nas.datasets import Dataset
    from robust_nas.spaces.cell import CellSpace


class Supernet(nn.Module):
    """The base class of supernets of all kinds of space.

    Attributes:
        operations: the candidates on every edge.
        partial: k of every stage of progressive shrinking until now: operations see 1/k of the channels.
    """

    operations: tuple[str, ...]
    partial: list[int]

    @property
    @abstractmethod
    def mixed_operations(self) -> Sequence[tuple[int, Mixed]]:
        """Every mixed operation of every cell, with its edge."""

    @abstractmethod
    def choose(self, architecture: AnyArchitecture) -> FixedMixture:
        """Return an architecture's network with copies of the supernet's weights and statistics.

        Raises:
            InputError: if the supernet has an operation of it no more (`keep`).
        """

    def alone(self, mixture: Tensor) -> FixedMixture:
        """Return a copy with the operations that a mixture [E, O] of zeros and ones has, and no others."""
        copied = copy.deepcopy(self)
        copied.keep(mixture.bool())
        return FixedMixture(copied, mixture)

    @property
    def structure(self) -> dict[str, Any]:
        """The result of `widen` and `keep`, as JSON values."""
        mixed = dict(self.mixed_operations)  # one of every edge; all cells are alike
        return {
            "partial": self.partial,
            "passing": mixed[0].passing,
            "operations": [list(mixed[edge].operations) for edge in sorted(mixed)],
        }

    def load_structure(self, structure: Mapping[str, Any]) -> None:
        """Make a new supernet, with the first of the structure's partial channels, one that such weights fit."""
        for partial in structure["partial"][1:]:
            self.widen(partial)
        self.pass_by(structure["passing"])
        self.keep(torch.tensor([[name in names for name in self.operations] for names in structure["operations"]]))

    def at(self, mixture: Tensor) -> FixedMixture:
        """Return the supernet at a mixture [E, O] as a network, for an attack."""
        return FixedMixture(self, mixture)

    def rows_of(self, mixture: Tensor) -> list[Weights]:
        """Return each edge's weights; None for those of exactly 0, unless the mixture is to be differentiated."""
        weights: list[Weights] = [list(row.unbind()) for row in mixture]
        if mixture.requires_grad:
            return weights
        return [
            [weight if number else None for weight, number in zip(row, numbers, strict=True)]
            for row, numbers in zip(weights, mixture.tolist(), strict=True)
        ]

    def keep(self, active: Tensor) -> None:
        """Leave out the operations that are not `active` [E, O], for good; a mixture must have no weight on them."""
        for edge, mixed in self.mixed_operations:
            mixed.keep(active[edge].nonzero().flatten().tolist())

    def widen(self, partial: int) -> dict[Tensor, Tensor]:
        """Let the operations see more channels, 1/`partial` of them, without a change of the supernet's function.

        The new channels pass by at first, as they did: `passing`, 1 after this, is the share that still does, for
        `pass_by`. A convolution's old outputs do not see its new inputs until they learn to.

        Returns:
            For every new parameter, the one that is at its beginning.
        """
        self.partial.append(partial)
        like = next(self.parameters())
        return {new: place for _, mixed in self.mixed_operations for new, place in mixed.widen(partial, like).items()}

    def pass_by(self, share: float) -> None:
        """Let the channels that the last widening brought pass by to this share; the rest comes from the operations."""
        for _, mixed in self.mixed_operations:
            mixed.passing = share

    def add_skip(self, scale: float) -> None:
        """Add the operations' input to their output, times `scale` (DARTS-, arXiv:2009.01027)."""
        for _, mixed in self.mixed_operations:
            mixed.auxiliary = scale


class FixedMixture(nn.Module):
    """A supernet with its mixture held fixed: images to logits, like any network."""

    def __init__(self, supernet: Supernet, mixture: Tensor) -> None:
        super().__init__()
        self.supernet, self.mixture = supernet, mixture

    def forward(self, images: Tensor) -> Tensor:
        return self.supernet(images, self.mixture)


class CellSupernet(Supernet, CellNetwork):
    """The skeleton of a cell space with all operations on every edge; one mixture [E, O] serves all cells.

    Args:
        partial: k: an edge's operations see 1/k of the channels; see `Mixed`.

    Raises:
        InputError: if k does not divide the number of channels.
    """

    def __init__(self, space: CellSpace, data: Dataset, partial: int = 1) -> None:
        if partial < 1 or space.channels % partial:
            raise InputError(
                f"Partial channels of 1/{partial} must divide space.channels, but got {space.channels} channels."
            )
        super().__init__(space, data, lambda channels: MixedCell(space, channels, partial), affine=False)
        self.operations, self.partial = space.operations, [partial]

    @property
    def mixed_operations(self) -> list[tuple[int, MixedOperation]]:
        """Every mixed operation of every cell, with its edge."""
        cells = [layer for layer in self.layers if isinstance(layer, MixedCell)]
        return [(edge, mixed) for cell in cells for edge, mixed in enumerate(cell.edges)]  # type: ignore[misc]

    def forward(self, images: Tensor, mixture: Tensor) -> Tensor:
        """Return logits [B, K] of [0, 1] images [B, C, H, W] at a mixture [E, O].

        An operation whose weight is exactly 0 is not computed, unless the mixture is to be differentiated.
        """
        return super().forward(images, self.rows_of(mixture))

    def choose(self, architecture: AnyArchitecture) -> FixedMixture:
        """Return an architecture's network with copies of the supernet's weights and statistics."""
        assert isinstance(architecture, Architecture)
        rows = torch.tensor([self.operations.index(name) for name in architecture.pruned.operations])
        return self.alone(F.one_hot(rows, len(self.operations)).to(self.mean))


class MixedCell(nn.Module):
    """A cell whose nodes are the sums of mixed operations on all earlier nodes."""

    def __init__(self, space: CellSpace, channels: int, partial: int = 1) -> None:
        super().__init__()
        self.num_nodes = space.num_nodes
        self.edges = nn.ModuleList(MixedOperation(space.operations, channels, partial) for _ in space.edges)

    def forward(self, x: Tensor, weights: Sequence[Weights]) -> Tensor:
        """Return the last node [B, C, H, W], for each edge's weights."""
        last = self.num_nodes - 1
        incoming: list[list[Tensor]] = [[] for _ in range(self.num_nodes)]
        for source in range(last):
            features = sum(incoming[source][1:], incoming[source][0]) if source else x
            # Edges are numbered target by target: those from the first, the second, ... node into each.
            numbers = [target * (target - 1) // 2 + source for target in range(source + 1, last + 1)]
            edges: list[MixedOperation] = [self.edges[number] for number in numbers]  # type: ignore[misc]
            node = _Node(features, edges[0].width)
            node.convolve(
                [block for edge, number in zip(edges, numbers, strict=True) for block in edge.blocks(weights[number])]
            )
            for target, edge, number in zip(range(source + 1, last + 1), edges, numbers, strict=True):
                incoming[target].append(edge.mix(node, weights[number]))
        return sum(incoming[last][1:], incoming[last][0])


class _Node:
    """A node's features, and what several edges make of them alike, computed once.

    Args:
        x: [B, C, H, W].
        width: number of channels that operations see.
    """

    passed: Tensor | None

    def __init__(self, x: Tensor, width: int) -> None:
        self.seen, self.passed = x, None
        if width < x.shape[1]:
            self.seen, self.passed = x[:, :width], x[:, width:]
        self.convolved: dict[ReLUConvBN, Tensor] = {}
        """Weighted outputs of blocks."""

    def convolve(self, blocks: Sequence[tuple[ReLUConvBN, Tensor]]) -> None:
        """Compute the given blocks, times their weights, in one convolution and one batch norm for each kernel size.

        Channels do not see each other in either, and a batch norm's scale can be the mixture's weight: what comes out
        is what the blocks give one by one, but for rounding, in less time.
        """
        if has_torch_function_unary(self.seen):  # such as bounds, which follow modules
            return
        alike: dict[Any, list[tuple[ReLUConvBN, Tensor]]] = {}
        for block, weight in blocks:
            if (kind := _kind(block)) is not None:
                alike.setdefault(kind, []).append((block, weight))
        for pairs in alike.values():
            if len(pairs) > 1:
                self.convolved |= _computed_jointly(self.rectified, pairs)

    @cached_property
    def rectified(self) -> Tensor:
        return F.relu(self.seen)

    @cached_property
    def pooled(self) -> Tensor:
        pooled: Tensor = AveragePool3x3()(self.seen)
        return pooled


def _kind(block: ReLUConvBN) -> Any:
    """Return the key of blocks that are computed together; None if something watches or replaces their parts."""
    convolution, norm = block.convolution, block.norm
    if type(convolution) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or norm.momentum is None:
        return None
    if convolution._forward_pre_hooks or norm._forward_pre_hooks or convolution._forward_hooks or norm._forward_hooks:
        return None
    return convolution.kernel_size, norm.training, norm.running_mean is None, norm.momentum, norm.eps


def _computed_jointly(x: Tensor, pairs: Sequence[tuple[ReLUConvBN, Tensor]]) -> dict[ReLUConvBN, Tensor]:
    """Return w BN(conv(x)) of blocks of one kind, with the running statistics moved as each block would."""
    blocks = [block for block, _ in pairs]
    convolution, norm = blocks[0].convolution, blocks[0].norm
    widths = [block.convolution.out_channels for block in blocks]
    kernels = torch.cat([block.convolution.weight for block in blocks])
    convolved = F.conv2d(x, kernels, padding=convolution.padding)
    scale = torch.cat([weight.expand(width) for (_, weight), width in zip(pairs, widths, strict=True)])
    # A network in double precision may be given a mixture in single precision; half precision keeps its float32 norms.
    scale = scale.to(torch.promote_types(scale.dtype, convolved.dtype))
    means, variances = ([getattr(block.norm, name) for block in blocks] for name in ("running_mean", "running_var"))
    tracked = norm.running_mean is not None
    mean, variance = (torch.cat(means), torch.cat(variances)) if tracked else (None, None)
    normed = F.batch_norm(
        convolved,
        mean,
        variance,
        scale,
        torch.zeros_like(scale),
        training=norm.training or not tracked,
        momentum=cast(float, norm.momentum),
        eps=norm.eps,
    )
    if norm.training and mean is not None and variance is not None:
        with torch.no_grad():
            torch._foreach_copy_([*means, *variances], [*mean.split(widths), *variance.split(widths)])
            torch._foreach_add_([cast(Tensor, block.norm.num_batches_tracked) for block in blocks], 1)
    return dict(zip(blocks, normed.split(widths, 1), strict=True))


class Mixed(nn.Module):
    """A mixture of operations on an edge, sum_o w_o o(x) (DARTS, arXiv:1806.09055, equation 2).

    Of partial channels (PC-DARTS, arXiv:1907.05737), operations see the first ones, and the others pass by. The output
    is shuffled (arXiv:1707.01083), so that the operations of the next edge see some of either: without it, channels
    would hardly meet in a cell. The shuffle stays as it is when the supernet widens: DrNAS's code changes it, and with
    it what is computed. An architecture's own network has neither, and nothing passes by its `none`.

    Args:
        names: the candidates' names, in the space's order.
        channels: of x.
        partial: k: the operations see 1/k of the channels.
        stride: 2 halves the resolution.

    Attributes:
        operations: those that are left, by name.
        width: number of channels that they see.
        groups: blocks of channels, from each of which the shuffle takes one after the other.
        passing: the share of the channels of the last widening that pass by.
        fresh: the places of these among the operations' channels, as ones and zeros.
        auxiliary: the added share of the operations' input.
    """

    fresh: Tensor

    def __init__(self, names: tuple[str, ...], channels: int, partial: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.names, self.channels, self.stride = names, channels, stride
        self.width, self.groups = channels // partial, partial
        self.operations = nn.ModuleDict({name: self.make(name, self.width) for name in names})
        self.passing = self.auxiliary = 0.0
        self.register_buffer("fresh", torch.zeros(self.width), persistent=False)

    @abstractmethod
    def make(self, name: str, width: int) -> nn.Module:
        """Return an operation that sees as many channels."""

    def keep(self, places: Sequence[int]) -> None:
        """Leave out all operations but those at `places` of the space's list.

        Raises:
            InputError: if one of them was left out before, and had weights.
        """
        kept = [self.names[place] for place in places]
        # A choice has `none` where no other operation leads to the output, also where the search has left it out.
        if gone := [name for name in kept if name not in self.operations and name != "none"]:
            raise InputError(f"The supernet has left out {', '.join(gone)} on an edge, and has no weights for it.")
        for name in [name for name in self.operations if name not in kept]:
            del self.operations[name]

    def initialise(self, operation: nn.Module) -> None:
        """Initialise a new operation's weights as the supernet does, where that is not as torch does."""

    def widen(self, partial: int, like: Tensor) -> dict[Tensor, Tensor]:
        """Let the operations see 1/`partial` of the channels; see `Supernet.widen`."""
        width = self.channels // partial
        places: dict[Tensor, Tensor] = {}
        for name, old in self.operations.items():
            wide = self.make(name, width)
            self.initialise(wide)
            places |= embed(wide.to(like), old)
            self.operations[name] = wide.train(old.training)
        self.fresh = torch.ones(width).to(like)
        self.fresh[: self.width] = 0
        self.width, self.passing = width, 1.0
        return places

    def let_pass(self, mixed: Tensor, passed: Tensor) -> Tensor:
        """Return the operations' channels: their mixture, and the input as far as new channels still pass by."""
        return mixed + (self.passing * self.fresh).view(-1, 1, 1) * (passed - mixed) if self.passing else mixed

    def joined(self, mixed: Tensor, passed: Tensor | None) -> Tensor:
        """Return mixed channels and those that pass by, shuffled: the first of every group, then the second ones."""
        x = mixed if passed is None else torch.cat([mixed, passed], 1)
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2) if self.groups > 1 else x


class MixedOperation(Mixed):
    """An edge of a cell space."""

    def make(self, name: str, width: int) -> nn.Module:
        return make_operation(name, width, affine=False)

    def initialise(self, operation: nn.Module) -> None:
        initialise(operation)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.mix(_Node(x, self.width), list(weights.unbind()))

    def blocks(self, weights: Weights) -> list[tuple[ReLUConvBN, Tensor]]:
        """Return the convolutions, with their weights."""
        pairs = [(operation, weights[self.names.index(name)]) for name, operation in self.operations.items()]
        return [(block, weight) for block, weight in pairs if isinstance(block, ReLUConvBN) and weight is not None]

    def mix(self, node: _Node, weights: Weights) -> Tensor:
        """Return the mixture [B, C, H, W] of the operations on a node's features."""
        return self.joined(self._mixed(node, weights), node.passed)

    def _mixed(self, node: _Node, weights: Weights) -> Tensor:
        terms = []
        for name, operation in self.operations.items():
            weight = weights[self.names.index(name)]
            if weight is None:
                continue
            if isinstance(operation, ReLUConvBN) and operation in node.convolved:
                terms.append(node.convolved[operation])
            elif isinstance(operation, ReLUConvBN):
                terms.append(weight * operation.norm(operation.convolution(node.rectified)))
            elif isinstance(operation, AveragePool3x3):
                terms.append(weight * node.pooled)
            elif not isinstance(operation, Zero):
                terms.append(weight * operation(node.seen))
        if self.auxiliary:
            terms.append(self.auxiliary * node.seen)
        mixed = sum(terms[1:], terms[0]) if terms else torch.zeros_like(node.seen)
        return self.let_pass(mixed, node.seen)
