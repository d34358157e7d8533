"""Cell spaces: one cell, repeated along a fixed skeleton; every edge takes one of a few operations (NAS-Bench-201)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.cell import OPERATIONS, Architecture, edges_of
from robust_nas.core.errors import InputError
from robust_nas.spaces import BuiltFrom, Site
from robust_nas.spaces._limits import check_sizes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robust_nas.datasets import DataForm, Dataset, NetworkData
    from robust_nas.spaces import NetworkSource
    from robust_nas.spaces.cell.network import CellNetwork
    from robust_nas.spaces.cell.supernet import CellSupernet


@dataclass(frozen=True, kw_only=True)
class CellSpace:
    """A cell of `num_nodes` nodes on the skeleton stem - [cells, reduction] * stages - classifier.

    Args:
        name: the declaration's name.
        num_nodes: nodes of the cell, input included.
        operations: the operations of an edge; the digits form counts in this list.
        channels: channels of the first stage; every later stage doubles them and halves the resolution.
        cells_per_stage: cells in a stage (NAS-Bench-201: 5).
        stages: stages (NAS-Bench-201: 3).
        stem_stride: pixels from one place of the stem's convolution to the next; 2 makes a network four times cheaper.

    Raises:
        InputError: for an unknown operation, or a size below 1 or beyond reason.
    """

    name: str
    num_nodes: int
    operations: tuple[str, ...]
    channels: int = 16
    cells_per_stage: int = 5
    stages: int = 3
    stem_stride: int = 1

    def __post_init__(self) -> None:
        low = {"num_nodes": 2, "channels": 1, "cells_per_stage": 1, "stages": 1, "stem_stride": 1}
        check_sizes(low, vars(self))
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown or len(set(self.operations)) < max(len(self.operations), 2):
            raise InputError(
                f"space.operations must be two or more different ones of {', '.join(OPERATIONS)}, "
                f"but got {', '.join(unknown or self.operations)}."
            )

    @property
    def final_operations(self) -> tuple[str, ...]:
        """All operations."""
        return self.operations

    @property
    def edges(self) -> list[tuple[int, int]]:
        """The cell's (source, target) pairs."""
        return edges_of(self.num_nodes)

    @property
    def edge_names(self) -> list[str]:
        """The names of the edges."""
        return [f"{source}-{target}" for source, target in self.edges]

    def parse(self, text: str) -> Architecture:
        """Read an architecture of this space, in the string or the digits form.

        Raises:
            InputError: if it is malformed, or has another number of nodes.
        """
        architecture = Architecture.parse(text, self.operations)
        if architecture.num_nodes != self.num_nodes:
            raise InputError(
                f"An architecture of {self.name} has {len(self.edges)} edges, "
                f"but '{text}' has {len(architecture.operations)}."
            )
        return architecture

    def is_connected(self, choice: Sequence[int]) -> bool:
        """Whether the output depends on the input where each edge has the operation at its place in `operations`."""
        return Architecture(tuple(self.operations[place] for place in choice)).is_connected

    @property
    def decisions(self) -> dict[str, tuple[str, ...]]:
        """Each edge's operation."""
        return {f"edge {name}": self.operations for name in self.edge_names}

    def decided(self, values: Sequence[str]) -> Architecture:
        """Return the architecture of the values of `decisions`."""
        return Architecture(tuple(values))

    def decisions_of(self, architecture: AnyArchitecture) -> tuple[str, ...]:
        """Return the values of `decisions` that make an architecture."""
        assert isinstance(architecture, Architecture)
        return architecture.operations

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The edges, each with the operations."""
        return dict.fromkeys(self.edge_names, self.operations)

    def indices_of(self, architecture: AnyArchitecture) -> list[int | None]:
        """Return each edge's operation as an index into `operations`."""
        assert isinstance(architecture, Architecture)
        return [self.operations.index(name) for name in architecture.operations]

    def posterior(self, probabilities: Sequence[Sequence[float]]) -> list[Mapping[tuple[str, ...], float]]:
        """Return the probability of each operation, edge by edge."""
        return [{(name,): p for name, p in zip(self.operations, row, strict=True)} for row in probabilities]

    def marginals(self, mixture: Tensor) -> Tensor:
        """Return the mixture: an architecture has an operation on every edge."""
        return mixture

    def sites(self, data: NetworkData) -> list[list[Site]]:
        """Return the cells, which all edges are in."""
        from robust_nas.models.complexity import output_shapes
        from robust_nas.spaces.cell.network import Cell

        name = next(name for name in self.operations if name != "none")
        network = self.network(self.decided([name] * len(self.edges)), data)
        cells = [layer for layer in network.layers if isinstance(layer, Cell)]
        found = [Site(shape) for shape in output_shapes(network.to(network.mean.device), cells, data.image_shape)]
        return [found] * len(self.edges)

    def operation_at(self, name: str, site: Site) -> nn.Module:
        """Return an operation of the networks."""
        from robust_nas.spaces.cell.network import make_operation

        return make_operation(name, site.shape[0], affine=True)

    def network(self, architecture: AnyArchitecture, data: NetworkData, *, affine: bool = True) -> CellNetwork:
        """Return the discrete network; `affine=False` gives the supernet's batch norm, to inherit its weights.

        Edges that count as zero or do not lead to the output are left out (`Architecture.pruned`): their parameters
        would never get a gradient, or only add a constant.
        """
        from robust_nas.spaces.cell.network import Cell, CellNetwork, make_operation

        assert isinstance(architecture, Architecture) and architecture.num_nodes == self.num_nodes
        operations = architecture.pruned.operations

        def cell(channels: int) -> Cell:
            return Cell(self.num_nodes, lambda edge: make_operation(operations[edge], channels, affine))

        network = CellNetwork(self, data, cell, affine)
        network.built_from = BuiltFrom.of(self, architecture, data)
        return network

    def source(self, architecture: AnyArchitecture, data: DataForm) -> NetworkSource:
        """Return what `network` builds, as code."""
        from robust_nas.spaces.cell.source import source

        assert isinstance(architecture, Architecture)
        return source(self, architecture, data)

    def supernet(self, data: Dataset, *, partial: int = 1) -> CellSupernet:
        """Return the supernet: the skeleton with a mixture of all operations on every edge, batch norm not affine."""
        from robust_nas.spaces.cell.supernet import CellSupernet

        return CellSupernet(self, data, partial)
