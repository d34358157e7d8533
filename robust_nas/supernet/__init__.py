"""The supernet: a network that holds every architecture of a cell space, mixed edge by edge.

The mixture is an argument, not a state: the same supernet serves a Dirichlet sample, the mean, or a one-hot choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from robust_nas.models.cells import CellNetwork, make_operation

if TYPE_CHECKING:
    from robust_nas.datasets import Dataset
    from robust_nas.spaces.cell import CellSpace


class MixedOperation(nn.Module):
    """sum_o w_o o(x) over the candidate operations o of an edge (DARTS, arXiv:1806.09055, equation 2)."""

    def __init__(self, operations: tuple[str, ...], channels: int) -> None:
        super().__init__()
        self.operations = nn.ModuleDict({name: make_operation(name, channels, affine=False) for name in operations})

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        terms = [w * operation(x) for w, operation in zip(weights, self.operations.values(), strict=True)]
        return sum(terms[1:], terms[0])


class Supernet(CellNetwork):
    """The skeleton of a cell space with a `MixedOperation` on every edge; one mixture [E, O] serves all cells."""

    def __init__(self, space: CellSpace, data: Dataset) -> None:
        super().__init__(space, data, lambda edge, channels: MixedOperation(space.operations, channels), affine=False)

    def at(self, mixture: Tensor) -> SampledSupernet:
        """Return the network that the supernet is at a mixture [E, O]: what an attack is pointed at."""
        return SampledSupernet(self, mixture)


class SampledSupernet(nn.Module):
    """A supernet with its mixture held fixed: images to logits, like any network."""

    def __init__(self, supernet: Supernet, mixture: Tensor) -> None:
        super().__init__()
        self.supernet, self.mixture = supernet, mixture

    def forward(self, images: Tensor) -> Tensor:
        return self.supernet(images, self.mixture)
