"""The supernet of the DARTS space: its network with a mixture of operations on every edge of both cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.architectures.genotype import edges_of
from robust_nas.core.errors import InputError
from robust_nas.spaces.cell.network import Zero
from robust_nas.spaces.cell.supernet import FixedMixture, Mixed, Supernet, Weights
from robust_nas.spaces.darts.network import CellForm, DartsNetwork, Inputs, make_operation

if TYPE_CHECKING:
    from robust_nas.architectures import AnyArchitecture
    from robust_nas.datasets import Dataset
    from robust_nas.spaces.darts import DartsSpace


class DartsSupernet(Supernet, DartsNetwork):
    """The skeleton of a DARTS space with all operations on every edge; one mixture [E, O] serves all cells.

    The first half of the mixture's rows is that of the normal cells, the second half that of the reduction cells.

    Args:
        partial: k: an edge's operations see 1/k of the channels; see `Mixed`.

    Raises:
        InputError: if k does not divide the number of channels, or leaves fewer than two.
    """

    def __init__(self, space: DartsSpace, data: Dataset, partial: int = 1) -> None:
        if partial < 1 or space.channels % partial or space.channels // partial < 2:
            raise InputError(
                f"Partial channels of 1/{partial} must divide space.channels and be two or more, but got "
                f"{space.channels} channels."
            )
        super().__init__(
            space,
            data,
            lambda form: MixedDartsCell(space, form, partial),
            space.channels,
            space.num_cells,
            affine=False,
        )
        self.space, self.operations, self.partial = space, space.operations, [partial]

    @property
    def mixed_operations(self) -> list[tuple[int, MixedDartsOperation]]:
        """Every mixed operation of every cell, with its edge."""
        half = len(self.space.edges) // 2
        return [
            (edge + half * (number in self.reductions), mixed)
            for number, cell in enumerate(self.cells)
            for edge, mixed in enumerate(cell.edges)  # type: ignore[arg-type]
        ]

    def forward(self, images: Tensor, mixture: Tensor) -> Tensor:  # type: ignore[override]
        """Return logits [B, K] of [0, 1] images [B, C, H, W] at a mixture [E, O].

        An operation whose weight is exactly 0 is not computed, unless the mixture is to be differentiated.
        """
        rows = self.rows_of(mixture)
        half = len(rows) // 2
        normal, reduction = rows[:half], rows[half:]
        return self.through_cells(
            images, lambda reduces, cell, *inputs: cell(*inputs, reduction if reduces else normal)
        )

    def choose(self, architecture: AnyArchitecture) -> FixedMixture:
        """Return a genotype's network, as deep and wide as the supernet, with copies of its weights and statistics."""
        mixture = torch.zeros(len(self.space.edges), len(self.operations))
        for edge, place in enumerate(self.space.indices_of(architecture)):
            if place is not None:
                mixture[edge, place] = 1
        return self.alone(mixture.to(self.mean))


class MixedDartsCell(nn.Module):
    """A cell whose nodes are the sums of mixed operations on both inputs and all earlier nodes."""

    def __init__(self, space: DartsSpace, form: CellForm, partial: int = 1) -> None:
        super().__init__()
        self.inputs = Inputs(form, affine=False)
        self.pairs = edges_of(space.num_nodes)
        self.edges = nn.ModuleList(
            MixedDartsOperation(space.operations, form.channels, partial, form.stride_from(source))
            for source, _ in self.pairs
        )

    def forward(self, before: Tensor, last: Tensor, weights: Sequence[Weights]) -> Tensor:
        """Return the concatenation of the nodes, for each edge's weights."""
        nodes = self.inputs(before, last)
        edges = zip(self.pairs, self.edges, weights, strict=True)
        for target in range(2, 2 + self.pairs[-1][1] - 1):
            terms = []
            for _ in range(target):
                (source, _), edge, row = next(edges)
                terms.append(edge(nodes[source], row))
            nodes.append(sum(terms[1:], terms[0]))
        return torch.cat(nodes[2:], 1)


class MixedDartsOperation(Mixed):
    """An edge of a DARTS space; channels pass by under 2 x 2 max pooling where the resolution is halved."""

    def make(self, name: str, width: int) -> nn.Module:
        return make_operation(name, width, self.stride, affine=False, normed_pools=True)

    def forward(self, x: Tensor, weights: Weights) -> Tensor:
        """Return the mixture [B, C, H', W'] of the operations on x [B, C, H, W]."""
        if self.width == self.channels:
            return self.joined(self._mixed(x, weights), None)
        seen, passed = x[:, : self.width], x[:, self.width :]
        return self.joined(self._mixed(seen, weights), self._passed(passed))

    def _passed(self, x: Tensor) -> Tensor:
        return x if self.stride == 1 else F.max_pool2d(x, 2, ceil_mode=True)

    def _mixed(self, x: Tensor, weights: Weights) -> Tensor:
        terms = []
        for name, operation in self.operations.items():
            weight = weights[self.names.index(name)]
            if weight is not None and not isinstance(operation, Zero):
                terms.append(weight * operation(x))
        if self.auxiliary:
            # DARTS- has a factorised reduction of its own where the resolution is halved; a mean needs no weights.
            own = x if self.stride == 1 else F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
            terms.append(self.auxiliary * own)
        mixed = sum(terms[1:], terms[0]) if terms else torch.zeros_like(x[:, :, :: self.stride, :: self.stride])
        return self.let_pass(mixed, self._passed(x)) if self.passing else mixed
