"""The NAS-Bench-201 network (arXiv:2001.00326, section 2): operations, cell, reduction block and macro skeleton."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from robust_nas.core.errors import InputError
from robust_nas.models.average_pool import AveragePool3x3
from robust_nas.spaces._images import ImageNetwork

if TYPE_CHECKING:
    from robust_nas.datasets import NetworkData
    from robust_nas.spaces.cell import CellSpace


class Zero(nn.Module):
    """The operation `none`: no connection."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class ReLUConvBN(nn.Sequential):
    """ReLU, convolution, batch norm: the published networks' `nor_conv_*`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, affine: bool = True) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(out_channels, affine=affine),
        )

    @property
    def convolution(self) -> nn.Conv2d:
        """The convolution."""
        return cast(nn.Conv2d, self[1])

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The batch norm."""
        return cast(nn.BatchNorm2d, self[2])


def make_operation(name: str, channels: int, affine: bool) -> nn.Module:
    """Return the operation called `name`, [B, channels, H, W] to the same shape."""
    if name == "none":
        return Zero()
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return AveragePool3x3()
    kernel = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}[name]
    return ReLUConvBN(channels, channels, kernel, affine=affine)


class Cell(nn.Module):
    """A complete directed acyclic graph: every node is the sum of its edges' operations on the earlier nodes.

    Args:
        num_nodes: nodes, input included.
        make_edge: the module of edge number e.
    """

    def __init__(self, num_nodes: int, make_edge: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.num_nodes = num_nodes
        self.edges = nn.ModuleList(make_edge(edge) for edge in range(num_nodes * (num_nodes - 1) // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the last node [B, C, H, W]."""
        nodes, edge = [x], 0
        for _ in range(1, self.num_nodes):
            incoming = []
            for source in nodes:
                operation = self.edges[edge]
                if not isinstance(operation, Zero):
                    incoming.append(operation(source))
                edge += 1
            nodes.append(sum(incoming[1:], incoming[0]) if incoming else torch.zeros_like(x))
        return nodes[-1]


class Reduction(nn.Module):
    """The residual block of stride 2 between stages; it doubles the channels and halves the resolution."""

    def __init__(self, in_channels: int, out_channels: int, affine: bool) -> None:
        super().__init__()
        self.first = ReLUConvBN(in_channels, out_channels, 3, stride=2, affine=affine)
        self.second = ReLUConvBN(out_channels, out_channels, 3, affine=affine)
        # Rounding up and leaving the padding out of the mean changes nothing at even sizes and admits odd ones.
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, stride=2, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.second(self.first(x))


class CellNetwork(ImageNetwork):
    """The macro skeleton: stem, stages of equal cells with a reduction between them, pooling, linear classifier.

    Args:
        space: gives the skeleton's sizes.
        data: gives the number of classes, the image's channels, and the mean and deviation to normalise by.
        make_cell: a cell of the given channels.
        affine: whether batch norm outside the cells has weights of its own (not in a supernet).

    Raises:
        InputError: if the images are too small for the number of stages.
    """

    def __init__(
        self, space: CellSpace, data: NetworkData, make_cell: Callable[[int], nn.Module], affine: bool = True
    ) -> None:
        super().__init__(data)
        image_channels, height, width = data.image_shape
        least = space.stem_stride * 2 ** (space.stages - 1)
        if min(height, width) < least:
            raise InputError(
                f"{space.stages} stages behind a stem of stride {space.stem_stride} need images of at least {least} "
                f"pixels a side, but {data.name} has {height} x {width}; set space.stages lower."
            )
        channels = space.channels
        self.stem = nn.Sequential(
            nn.Conv2d(image_channels, channels, 3, space.stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )
        self.layers = nn.ModuleList()
        for stage in range(space.stages):
            if stage:
                self.layers.append(Reduction(channels, 2 * channels, affine))
                channels *= 2
            for _ in range(space.cells_per_stage):
                self.layers.append(make_cell(channels))
        self.last = nn.Sequential(nn.BatchNorm2d(channels, affine=affine), nn.ReLU())
        self.classifier = nn.Linear(channels, len(data.classes))
        initialise(self)

    def forward(self, images: Tensor, *mixture: Any) -> Tensor:
        """Return logits [B, K] of [0, 1] images [B, C, H, W]; the cells of a supernet need a `mixture` too."""
        x = self.stem(self.normalised(images))
        for layer in self.layers:
            x = layer(x) if isinstance(layer, Reduction) else layer(x, *mixture)
        return self.classifier(self.last(x).mean(dim=(2, 3)))


def initialise(model: nn.Module) -> None:
    """He initialisation (fan out) for convolutions, torch's default elsewhere."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
