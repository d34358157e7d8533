"""Size spaces: the channels of each layer are decided, for one and the same cell (NATS-Bench, arXiv:2009.00437)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.cell import Architecture
from robust_nas.architectures.channels import ChannelConfiguration
from robust_nas.core.errors import InputError
from robust_nas.spaces import BuiltFrom
from robust_nas.spaces._decided import Decisions, check_options
from robust_nas.spaces._limits import check_sizes

if TYPE_CHECKING:
    from robust_nas.datasets import DataForm, NetworkData
    from robust_nas.spaces import NetworkSource
    from robust_nas.spaces.size.network import SizeNetwork


@dataclass(frozen=True, kw_only=True)
class SizeSpace(Decisions):
    """The skeleton stem - cells - (reduction - cells) - classifier; each layer's channels are one decision.

    The stem has as many channels as the first layer.

    Args:
        name: the declaration's name.
        cell: the cell of all layers, in the string or the digits form of NAS-Bench-201.
        channels: the options of every layer.
        stages: stages; a reduction is before each but the first.
        cells_per_stage: cells in a stage.

    Raises:
        InputError: for a cell that is none, or does not lead from its input to its output; an option that is below 1 or
            there twice; or a number below 1.
    """

    name: str
    cell: str
    channels: tuple[int, ...]
    stages: int = 3
    cells_per_stage: int = 1

    def __post_init__(self) -> None:
        try:
            parsed = Architecture.parse(self.cell)
        except InputError as error:
            raise InputError(f"space.cell: {error}") from None
        if not parsed.is_connected:
            raise InputError(f"space.cell must lead from its input to its output, but {parsed} does not.")
        check_options("channels", self.channels)
        sizes = {"channels": min(self.channels), "stages": self.stages, "cells_per_stage": self.cells_per_stage}
        check_sizes(dict.fromkeys(sizes, 1), sizes)

    @property
    def reduces(self) -> list[bool]:
        """Whether each layer is a reduction; the others are cells."""
        cells = [False] * self.cells_per_stage
        return [*cells, *[True, *cells] * (self.stages - 1)]

    @property
    def decisions(self) -> dict[str, tuple[str, ...]]:
        """Each layer's channels."""
        options = tuple(map(str, self.channels))
        return {f"layer {number}": options for number in range(1, len(self.reduces) + 1)}

    @property
    def sizes(self) -> tuple[str, ...]:
        """All decisions are of width."""
        return tuple(self.decisions)

    @property
    def unshared(self) -> dict[str, tuple[object, ...]]:
        """There are no other options."""
        return {}

    def shared_names(self, architecture: AnyArchitecture) -> dict[str, str]:
        """Every module has the same name in all networks."""
        return {}

    def parse(self, text: str) -> ChannelConfiguration:
        """Read an architecture of this space.

        Raises:
            InputError: if it is malformed, or has another number of layers or channels that are no option.
        """
        sizes = ChannelConfiguration.parse(text)
        self._check_number(text, "layers", len(sizes.channels), len(self.reduces))
        return self._checked(sizes)

    def decided(self, values: Sequence[str]) -> ChannelConfiguration:
        """Return the architecture of the values of `decisions`."""
        return ChannelConfiguration(tuple(map(int, values)))

    def decisions_of(self, architecture: AnyArchitecture) -> tuple[str, ...]:
        """Return the values of `decisions` that make an architecture."""
        assert isinstance(architecture, ChannelConfiguration)
        return tuple(map(str, architecture.channels))

    def network(self, architecture: AnyArchitecture, data: NetworkData, *, affine: bool = True) -> SizeNetwork:
        """Return the architecture's network; `affine=False` gives batch norm without weights of its own."""
        from robust_nas.spaces.size.network import SizeNetwork

        assert isinstance(architecture, ChannelConfiguration)
        network = SizeNetwork(self, architecture, data, affine)
        network.built_from = BuiltFrom.of(self, architecture, data)
        return network

    def source(self, architecture: AnyArchitecture, data: DataForm) -> NetworkSource:
        """Return what `network` builds, as code."""
        from robust_nas.spaces.size.source import source

        assert isinstance(architecture, ChannelConfiguration)
        return source(self, architecture, data)
