"""Networks of cell spaces as Python: the classes of `network.py`, as far as an architecture uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from robust_nas.architectures.cell import Architecture
from robust_nas.spaces import NetworkSource
from robust_nas.spaces._source import AVERAGE_POOL, RELU_CONV_BN, convolution, indented, sequential, summed, with_used

if TYPE_CHECKING:
    from robust_nas.datasets import DataForm
    from robust_nas.spaces.cell import CellSpace

REDUCTION = '''
class Reduction(nn.Module):
    """Halve the resolution: two convolutions, and a shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = ReLUConvBN(in_channels, out_channels, 3, stride=2)
        self.second = ReLUConvBN(out_channels, out_channels, 3)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, stride=2, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.second(self.first(x))
'''

LIBRARY = {"ReLUConvBN": RELU_CONV_BN, "Reduction": REDUCTION}

FORWARD = (
    "x = self.stem(x)",
    "x = self.layers(x)",
    "return self.classifier(self.last(x).mean(dim=(2, 3)))",
)


def source(space: CellSpace, architecture: Architecture, data: DataForm) -> NetworkSource:
    """Return an architecture's network."""
    channels, layers = space.channels, [f"Cell({space.channels})"] * space.cells_per_stage
    for _ in range(space.stages - 1):
        layers.append(f"Reduction({channels}, {2 * channels})")
        channels *= 2
        layers += [f"Cell({channels})"] * space.cells_per_stage
    return skeleton(
        cell_class(architecture, "channels: int", lambda _, name: made(name, "channels", "channels")),
        layers,
        (data.image_shape[0], space.channels, space.stem_stride),
        (channels, len(data.classes)),
        architecture,
    )


def skeleton(
    cell: str,
    layers: list[str],
    stem: tuple[int, int, int],
    classifier: tuple[int, int],
    architecture: Architecture,
    library: dict[str, str] = LIBRARY,
) -> NetworkSource:
    """Return the network of a stem, cells with reductions between them, pooling and a linear classifier.

    Args:
        cell: the class `Cell`.
        layers: the calls of `Cell` and `Reduction`.
        stem: channels of the images and of the stem, and its stride.
        classifier: the last layer's channels, and the classes.
        architecture: of each cell.
        library: what the classes use.
    """
    image_channels, channels, stride = stem
    statements = [
        *sequential("stem", [convolution(image_channels, channels, stride=stride), f"nn.BatchNorm2d({channels})"]),
        *sequential("layers", layers),
        f"self.last = nn.Sequential(nn.BatchNorm2d({classifier[0]}), nn.ReLU())",
        f"self.classifier = nn.Linear({classifier[0]}, {classifier[1]})",
    ]
    edges = enumerate(architecture.edges)
    names = {f"edges.{number}": f"edge_{source}_{target}" for number, (source, target, _) in edges}
    cells = [place for place, layer in enumerate(layers) if layer.startswith("Cell(")]
    return NetworkSource(
        classes=with_used(library, cell, layers),
        layers=tuple(statements),
        forward=FORWARD,
        names={f"layers.{place}.{old}": f"layers.{place}.{new}" for place in cells for old, new in names.items()},
    )


def made(name: str, before: str, after: str) -> str | None:
    """Return the call that makes an operation, or None for the identity."""
    if name == "skip_connect":
        return None
    if name == "avg_pool_3x3":
        return AVERAGE_POOL
    return f"ReLUConvBN({before}, {after}, {1 if name == 'nor_conv_1x1' else 3})"


def cell_class(architecture: Architecture, arguments: str, make: Callable[[int, str], str | None]) -> str:
    """Return the class of a cell, without the edges that count as zero or lead nowhere.

    Args:
        architecture: the cell.
        arguments: of `__init__`.
        make: the call that makes the operation of a name on a node; None for the identity.
    """
    init, forward, last = ["super().__init__()"], [], architecture.num_nodes - 1
    edges = [(source, target, name) for source, target, name in architecture.pruned.edges if name != "none"]
    for target in range(1, last + 1):
        terms = []
        for source, name in ((source, name) for source, end, name in edges if end == target):
            node, edge, operation = f"node_{source}" if source else "x", f"edge_{source}_{target}", make(source, name)
            if operation is not None:
                init.append(f"self.{edge} = {operation}")
            terms.append(node if operation is None else f"self.{edge}({node})")
        if terms or target == last or target in {source for source, _, _ in edges}:
            forward += summed("return" if target == last else f"node_{target} =", terms or ["torch.zeros_like(x)"])
    return f'''class Cell(nn.Module):
    """A cell: a node is the sum of the edges into it, and x is node 0."""

    def __init__(self, {arguments}) -> None:
{indented(init, 2)}

    def forward(self, x: Tensor) -> Tensor:
{indented(forward, 2)}
'''
