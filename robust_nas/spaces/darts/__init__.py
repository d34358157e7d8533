"""The DARTS space: two cells, each node of two operations on earlier nodes (Liu et al. 2019, arXiv:1806.09055)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.genotype import CELLS, OPERATIONS, Genotype, edges_of
from robust_nas.core.errors import InputError
from robust_nas.spaces import BuiltFrom, Site
from robust_nas.spaces._limits import check_sizes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robust_nas.datasets import DataForm, Dataset, NetworkData
    from robust_nas.spaces import NetworkSource
    from robust_nas.spaces.darts.network import CellForm, DartsCell, DartsNetwork
    from robust_nas.spaces.darts.supernet import DartsSupernet


@dataclass(frozen=True, kw_only=True)
class DartsSpace:
    """A normal and a reduction cell on the skeleton stem - cells - classifier; two of the cells reduce.

    Args:
        name: the declaration's name.
        operations: of an edge of the supernet. A genotype has no `none`, which counts for nothing there but
            takes its share of the mixture.
        num_nodes: nodes that a cell computes (DARTS: 4).
        skeleton: "cifar" keeps the resolution of small images, "imagenet" begins with three convolutions of stride 2.
        channels: of the nodes of the first cells, in the supernet; every cell that reduces doubles them.
        num_cells: of the supernet; those at 1/3 and 2/3 of the depth reduce.
        final_channels: as `channels`, in the networks of genotypes; `channels`, if not given (DARTS: 36 for CIFAR-10,
            48 for ImageNet).
        final_cells: as `num_cells`, in the networks of genotypes; `num_cells`, if not given (DARTS: 20 and 14).

    Raises:
        InputError: for an unknown operation, fewer than two besides `none`, or a size that is too small.
    """

    name: str
    operations: tuple[str, ...] = OPERATIONS
    num_nodes: int = 4
    skeleton: Literal["cifar", "imagenet"] = "cifar"
    channels: int = 16
    num_cells: int = 8
    final_channels: int | None = None
    final_cells: int | None = None

    def __post_init__(self) -> None:
        low = {"num_nodes": 1, "channels": 2, "num_cells": 3, "final_channels": 2, "final_cells": 3}
        check_sizes(low, vars(self))
        if self.skeleton not in ("cifar", "imagenet"):
            raise InputError(f"space.skeleton must be 'cifar' or 'imagenet', but got '{self.skeleton}'.")
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown or len(set(self.operations)) < len(self.operations) or len(self.final_operations) < 2:
            raise InputError(
                f"space.operations must be different ones of {', '.join(OPERATIONS)}, two besides none or more, but "
                f"got {', '.join(unknown or self.operations)}."
            )

    @property
    def final_operations(self) -> tuple[str, ...]:
        """The operations that genotypes can have."""
        return tuple(name for name in self.operations if name != "none")

    @property
    def edges(self) -> list[tuple[int, int]]:
        """The (source, target) pairs of the normal cell, and then of the reduction cell."""
        return 2 * edges_of(self.num_nodes)

    @property
    def edge_names(self) -> list[str]:
        """The names of the edges."""
        return [f"{cell} {source}-{target}" for cell in CELLS for source, target in edges_of(self.num_nodes)]

    def parse(self, text: str) -> Genotype:
        """Read a genotype of this space.

        Raises:
            InputError: if it is malformed, or has another number of nodes or an operation that the space has not.
        """
        genotype = Genotype.parse(text)
        if genotype.num_nodes != self.num_nodes:
            raise InputError(
                f"A genotype of {self.name} has {self.num_nodes} nodes in each cell, but '{text}' has "
                f"{genotype.num_nodes}."
            )
        if missing := {name for name, _ in genotype.normal + genotype.reduce} - set(self.operations):
            raise InputError(
                f"The genotype has the operation '{min(missing)}', but {self.name} has "
                f"{', '.join(self.final_operations)} only."
            )
        return genotype

    def is_connected(self, choice: Sequence[int]) -> bool:
        """Whether the output depends on the input where each edge has the operation at its place in `operations`."""
        edges, half = edges_of(self.num_nodes), len(choice) // 2
        # One cell of each kind is on every path: an output of a constant is a constant.
        for rows in (choice[:half], choice[half:]):
            fed = {0, 1}
            for (source, target), place in zip(edges, rows, strict=True):
                if source in fed and self.operations[place] != "none":
                    fed.add(target)
            if fed == {0, 1}:
                return False
        return True

    # An architecture is made of decisions: for each node, its two sources, and the operation on each of them.

    @property
    def decisions(self) -> dict[str, tuple[str, ...]]:
        """The decisions, by name, each with its choices: sources such as "0,2", and operations."""
        found: dict[str, tuple[str, ...]] = {}
        for cell in CELLS:
            for target in range(2, 2 + self.num_nodes):
                node = f"{cell} {target}"
                found[f"{node} sources"] = tuple(f"{a},{b}" for a, b in itertools.combinations(range(target), 2))
                found[f"{node} first"] = found[f"{node} second"] = self.final_operations
        return found

    def decided(self, values: Sequence[str]) -> Genotype:
        """Return the genotype of the values of `decisions`."""
        chosen = []
        for sources, first, second in zip(values[::3], values[1::3], values[2::3], strict=True):
            a, b = sources.split(",")
            chosen += [(first, int(a)), (second, int(b))]
        return Genotype(tuple(chosen[: 2 * self.num_nodes]), tuple(chosen[2 * self.num_nodes :]))

    def decisions_of(self, architecture: AnyArchitecture) -> tuple[str, ...]:
        """Return the values of `decisions` that make a genotype."""
        assert isinstance(architecture, Genotype)
        found: list[str] = []
        chosen = architecture.normal + architecture.reduce
        for pair in zip(chosen[::2], chosen[1::2], strict=True):
            (first, a), (second, b) = sorted(pair, key=lambda choice: choice[1])
            found += [f"{a},{b}", first, second]
        return tuple(found)

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The edges, each with the operations."""
        return dict.fromkeys(self.edge_names, self.operations)

    def indices_of(self, architecture: AnyArchitecture) -> list[int | None]:
        """Return each edge's operation as an index into `operations`, None where a genotype has no edge."""
        assert isinstance(architecture, Genotype)
        return architecture.operations_of(self.operations)

    def posterior(self, probabilities: Sequence[Sequence[float]]) -> list[Mapping[tuple[str, ...], float]]:
        """Return, node by node, the probability of its three decisions at a mixture [E][O].

        That of two sources and their operations is the product of the two operations' weights on these edges, as a
        share of all the node's possibilities. The most probable ones are the two edges with the largest weight of an
        operation other than none, each with this operation: the genotype as DARTS derives it (section 2.4).

        Raises:
            InputError: if a node has fewer than two edges with an operation other than none.
        """
        rows = [
            {name: weight for name, weight in zip(self.operations, row, strict=True) if name != "none"}
            for row in probabilities
        ]
        found: list[Mapping[tuple[str, ...], float]] = []
        edge = 0
        for cell, target in itertools.product(CELLS, range(2, 2 + self.num_nodes)):
            weights: dict[tuple[str, ...], float] = {}
            for a, b in itertools.combinations(range(target), 2):
                for (first, v), (second, w) in itertools.product(rows[edge + a].items(), rows[edge + b].items()):
                    weights[f"{a},{b}", first, second] = v * w
            edge += target
            if not (total := sum(weights.values())) > 0:
                raise InputError(
                    f"The search has left fewer than two edges into node {target} of the {cell} cell with an operation "
                    f"other than none; keep more operations, or leave none out of space.operations, as darts-7 does."
                )
            found.append({choice: weight / total for choice, weight in weights.items()})
        return found

    def marginals(self, mixture: Tensor) -> Tensor:
        """Return the probability that a node takes an edge as one of its two, with an operation other than none."""
        import torch

        allowed = torch.tensor([name != "none" for name in self.operations], device=mixture.device)
        found, edge = [], 0
        for target in 2 * [*range(2, 2 + self.num_nodes)]:
            weights = mixture[edge : edge + target] * allowed
            of_edges = weights.sum(-1)
            with_another = of_edges * (of_edges.sum() - of_edges)  # every pair is in two of these
            found.append(weights * (of_edges.sum() - of_edges)[:, None] / (with_another.sum() / 2).clamp_min(1e-12))
            edge += target
        return torch.cat(found)

    def sites(self, data: NetworkData) -> list[list[Site]]:
        """Return, for the edges of either cell, its places in the networks."""
        from robust_nas.models.complexity import output_shapes
        from robust_nas.spaces.darts.network import DartsCell

        network = self.network(self.decided([values[0] for values in self.decisions.values()]), data)
        cells = [cell for cell in network.cells if isinstance(cell, DartsCell)]
        inputs = [cell.inputs.second for cell in cells]
        edges = edges_of(self.num_nodes)
        found: list[list[Site]] = [[] for _ in self.edges]
        shapes = output_shapes(network.to(network.mean.device), inputs, data.image_shape)
        for cell, (channels, height, width) in zip(cells, shapes, strict=True):
            for edge, (source, _) in enumerate(edges):
                size = (height, width)
                if cell.form.reduces and source >= 2:
                    size = (-(-height // 2), -(-width // 2))
                site = Site((channels, *size), cell.form.stride_from(source))
                found[edge + len(edges) * cell.form.reduces].append(site)
        return found

    def operation_at(self, name: str, site: Site) -> nn.Module:
        """Return an operation of the networks."""
        from robust_nas.spaces.darts.network import make_operation

        return make_operation(name, site.shape[0], site.stride, affine=True)

    def network(self, architecture: AnyArchitecture, data: NetworkData, *, affine: bool = True) -> DartsNetwork:
        """Return a genotype's network, of `final_cells` cells with `final_channels` channels."""
        from robust_nas.spaces.darts.network import DartsCell, DartsNetwork

        assert isinstance(architecture, Genotype) and architecture.num_nodes == self.num_nodes

        def cell(form: CellForm) -> DartsCell:
            return DartsCell(architecture.reduce if form.reduces else architecture.normal, form, affine)

        channels, num_cells = self.final_channels or self.channels, self.final_cells or self.num_cells
        network = DartsNetwork(self, data, cell, channels, num_cells, affine)
        network.built_from = BuiltFrom.of(self, architecture, data)
        return network

    def source(self, architecture: AnyArchitecture, data: DataForm) -> NetworkSource:
        """Return what `network` builds, as code."""
        from robust_nas.spaces.darts.source import source

        assert isinstance(architecture, Genotype)
        return source(self, architecture, data)

    def supernet(self, data: Dataset, *, partial: int = 1) -> DartsSupernet:
        """Return the network with a mixture of all operations on every edge, batch norm not affine."""
        from robust_nas.spaces.darts.supernet import DartsSupernet

        return DartsSupernet(self, data, partial)
