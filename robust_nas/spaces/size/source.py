"""Networks of size spaces as Python: those of cell spaces, whose cells may change the number of channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robust_nas.architectures.cell import Architecture
from robust_nas.spaces._source import AVERAGE_POOL
from robust_nas.spaces.cell.source import LIBRARY, cell_class, made, skeleton

if TYPE_CHECKING:
    from robust_nas.architectures.channels import ChannelConfiguration
    from robust_nas.datasets import DataForm
    from robust_nas.spaces import NetworkSource
    from robust_nas.spaces.size import SizeSpace

SKIP = '''
def skip(in_channels: int, out_channels: int) -> nn.Module:
    """Return the identity, or a 1x1 convolution with batch norm where the number of channels changes."""
    if in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
'''

POOL = f'''
def average_pool(in_channels: int, out_channels: int) -> nn.Module:
    """Return a pooling, behind a 1x1 convolution where the number of channels changes."""
    pool = {AVERAGE_POOL}
    if in_channels == out_channels:
        return pool
    return nn.Sequential(ReLUConvBN(in_channels, out_channels, 1), pool)
'''

WIDENING = {"skip_connect": "skip", "avg_pool_3x3": "average_pool"}


def source(space: SizeSpace, sizes: ChannelConfiguration, data: DataForm) -> NetworkSource:
    """Return an architecture's network."""
    architecture = Architecture.parse(space.cell)

    def make(node: int, name: str) -> str | None:
        """Return the call that makes an operation; those on the input change the number of channels."""
        if node == 0 and name in WIDENING:
            return f"{WIDENING[name]}(in_channels, out_channels)"
        return made(name, "out_channels" if node else "in_channels", "out_channels")

    first = sizes.channels[0]
    befores = (first, *sizes.channels)
    layers = [
        f"{'Reduction' if reduces else 'Cell'}({before}, {after})"
        for reduces, before, after in zip(space.reduces, befores, sizes.channels, strict=False)
    ]
    return skeleton(
        cell_class(architecture, "in_channels: int, out_channels: int", make),
        layers,
        (data.image_shape[0], first, 1),
        (sizes.channels[-1], len(data.classes)),
        architecture,
        {**LIBRARY, "skip": SKIP, "average_pool": POOL},
    )
