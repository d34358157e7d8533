"""The networks of NATS-Bench's size space (arXiv:2009.00437): NAS-Bench-201's skeleton, any channels in each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.spaces._images import ImageNetwork
from robust_nas.spaces.cell.network import Cell, Reduction, ReLUConvBN, make_operation

if TYPE_CHECKING:
    from robust_nas.architectures.channels import ChannelConfiguration
    from robust_nas.datasets import NetworkData
    from robust_nas.spaces.size import SizeSpace


def make_widening(name: str, in_channels: int, out_channels: int, affine: bool) -> nn.Module:
    """Return the operation called `name`, [B, in_channels, H, W] to [B, out_channels, H, W].

    Where the channels change, a skip is a convolution of one pixel and batch norm, and pooling has these, behind a
    ReLU, before it, as in the benchmark.
    """
    if in_channels == out_channels or name == "none":
        return make_operation(name, out_channels, affine)
    if name == "skip_connect":
        convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(out_channels, affine=affine))
    if name == "avg_pool_3x3":
        first = ReLUConvBN(in_channels, out_channels, 1, affine=affine)
        return nn.Sequential(first, make_operation(name, out_channels, affine))
    return ReLUConvBN(in_channels, out_channels, {"nor_conv_1x1": 1, "nor_conv_3x3": 3}[name], affine=affine)


class SizeNetwork(ImageNetwork):
    """Stem, cells with reductions between stages, pooling, linear classifier.

    A cell's operations on its input bring it to the cell's channels.

    Args:
        space: gives the cell and the skeleton.
        sizes: each layer's channels; the first layer's are the stem's too.
        data: gives the number of classes, the image's channels, and the mean and deviation to normalise by.
        affine: whether batch norm has weights of its own.

    Raises:
        InputError: if the images are too small for the number of stages.
    """

    def __init__(self, space: SizeSpace, sizes: ChannelConfiguration, data: NetworkData, affine: bool = True) -> None:
        super().__init__(data)
        image_channels, height, width = data.image_shape
        least = 2 ** (space.stages - 1)
        if min(height, width) < least:
            raise InputError(
                f"{space.stages} stages need images of at least {least} pixels a side, but {data.name} has {height} x "
                f"{width}; set space.stages lower."
            )
        architecture = Architecture.parse(space.cell)
        edges = architecture.pruned.edges
        channels = sizes.channels[0]
        self.stem = nn.Sequential(
            nn.Conv2d(image_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels, affine=affine)
        )

        def cell(before: int, after: int) -> Cell:
            def make_edge(edge: int) -> nn.Module:
                source, _, name = edges[edge]
                return make_widening(name, after if source else before, after, affine)

            return Cell(architecture.num_nodes, make_edge)

        self.layers = nn.ModuleList()
        for reduces, after in zip(space.reduces, sizes.channels, strict=True):
            self.layers.append(Reduction(channels, after, affine) if reduces else cell(channels, after))
            channels = after
        self.last = nn.Sequential(nn.BatchNorm2d(channels, affine=affine), nn.ReLU())
        self.classifier = nn.Linear(channels, len(data.classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] of [0, 1] images [B, C, H, W]."""
        x = self.stem(self.normalised(images))
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.last(x).mean(dim=(2, 3)))
