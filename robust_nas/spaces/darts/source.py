"""Networks of genotypes as Python: the classes of `network.py`, as far as a genotype uses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robust_nas.spaces import NetworkSource
from robust_nas.spaces._source import (
    AVERAGE_POOL,
    RELU_CONV_BN,
    convolution,
    in_runs,
    indented,
    sequential,
    with_used,
)

if TYPE_CHECKING:
    from robust_nas.architectures.genotype import Genotype
    from robust_nas.datasets import DataForm
    from robust_nas.spaces.darts import DartsSpace
    from robust_nas.spaces.darts.network import CellForm

FACTORISED_REDUCTION = '''
class FactorisedReduction(nn.Module):
    """Halve the resolution: two 1x1 convolutions of stride 2, one of them a pixel further, side by side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.first = nn.Conv2d(in_channels, half, 1, stride=2, bias=False)
        self.second = nn.Conv2d(in_channels, out_channels - half, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        further = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.first(x), self.second(further)], dim=1))
'''

SEPARABLE_CONVOLUTION = '''
class SeparableConvolution(nn.Sequential):
    """ReLU, depthwise convolution, 1x1 convolution and batch norm, twice; the stride is the first one's."""

    def __init__(self, channels: int, kernel: int, stride: int = 1) -> None:
        layers = []
        for step in (stride, 1):
            layers += [
                nn.ReLU(),
                nn.Conv2d(channels, channels, kernel, step, padding=kernel // 2, groups=channels, bias=False),
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
            ]
        super().__init__(*layers)
'''

DILATED_CONVOLUTION = '''
class DilatedConvolution(nn.Sequential):
    """ReLU, depthwise convolution on every second pixel, 1x1 convolution and batch norm."""

    def __init__(self, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel, stride, padding=kernel - 1, dilation=2, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
'''

LIBRARY = {
    "ReLUConvBN": RELU_CONV_BN,
    "FactorisedReduction": FACTORISED_REDUCTION,
    "SeparableConvolution": SEPARABLE_CONVOLUTION,
    "DilatedConvolution": DILATED_CONVOLUTION,
}

CLASSES = {False: "NormalCell", True: "ReductionCell"}
"""The classes of cells, by whether they halve the resolution."""


def source(space: DartsSpace, genotype: Genotype, data: DataForm) -> NetworkSource:
    """Return a genotype's network."""
    from robust_nas.spaces.darts.network import cell_forms

    channels = space.final_channels or space.channels
    forms = cell_forms(space, channels, space.final_cells or space.num_cells)
    calls: list[str] = []
    names: dict[str, str] = {}
    for place, form in enumerate(forms):
        after = ", after_reduction=True" if form.after_reduction and _varies(forms, form.reduces) else ""
        calls.append(f"{CLASSES[form.reduces]}({form.inputs[0]}, {form.inputs[1]}, {form.channels}{after})")
        own = {"inputs.first": "input_0", "inputs.second": "input_1"}
        own |= {f"operations.{number}": edge for number, (edge, _, _) in enumerate(_edges(genotype, form.reduces))}
        names |= {f"cells.{place}.{old}": f"cells.{place}.{new}" for old, new in own.items()}
    stem, begin = _stem(space, data.image_shape[0], channels)
    cells = ["self.cells = nn.ModuleList(", "    [", *(f"        {call}," for call in in_runs(calls)), "    ]", ")"]
    classifier = f"self.classifier = nn.Linear({space.num_nodes * forms[-1].channels}, {len(data.classes)})"
    return NetworkSource(
        classes=with_used(LIBRARY, "\n\n".join(_cell_class(genotype, forms, reduces) for reduces in CLASSES)),
        layers=(*stem, *cells, classifier),
        forward=(
            *begin,
            "for cell in self.cells:",
            "    before, last = last, cell(before, last)",
            "return self.classifier(last.mean(dim=(2, 3)))",
        ),
        names=names,
    )


def _stem(space: DartsSpace, image_channels: int, channels: int) -> tuple[list[str], list[str]]:
    """Return the lines that make the stem, and those that compute the first cell's inputs."""
    if space.skeleton == "cifar":
        modules = [convolution(image_channels, 3 * channels), f"nn.BatchNorm2d({3 * channels})"]
        return sequential("stem", modules), ["before = last = self.stem(x)"]
    half, norm = channels // 2, f"nn.BatchNorm2d({channels})"
    first = [convolution(image_channels, half, stride=2), f"nn.BatchNorm2d({half})", "nn.ReLU()"]
    stem = [*first, convolution(half, channels, stride=2), norm]
    second = ["nn.ReLU()", convolution(channels, channels, stride=2), norm]
    lines = [*sequential("stem", stem), *sequential("second_stem", second)]
    return lines, ["before = self.stem(x)", "last = self.second_stem(before)"]


def _edges(genotype: Genotype, reduces: bool) -> list[tuple[str, str, int]]:
    """Return the name of each edge of a cell, its operation's name, and its source."""
    chosen = genotype.reduce if reduces else genotype.normal
    return [(f"edge_{source}_{2 + place // 2}", name, source) for place, (name, source) in enumerate(chosen)]


def _varies(forms: Sequence[CellForm], reduces: bool) -> bool:
    """Whether of one kind of cell some follow a reduction, and some do not."""
    return len({form.after_reduction for form in forms if form.reduces == reduces}) > 1


def _cell_class(genotype: Genotype, forms: Sequence[CellForm], reduces: bool) -> str:
    """Return the class of the cells of one kind."""
    varies = _varies(forms, reduces)
    init = ["super().__init__()", *_first_input(forms, reduces), "self.input_1 = ReLUConvBN(last, channels, 1)"]
    forward = ["node_0 = self.input_0(before)", "node_1 = self.input_1(last)"]
    terms: list[str] = []
    nodes: list[str] = []
    for edge, name, source in _edges(genotype, reduces):
        operation = _operation(name, 2 if reduces and source < 2 else 1)
        if operation is not None:
            init.append(f"self.{edge} = {operation}")
        terms.append(f"node_{source}" if operation is None else f"self.{edge}(node_{source})")
        if len(terms) % 2 == 0:
            nodes.append(f"node_{2 + len(nodes)}")
            forward.append(f"{nodes[-1]} = {terms[-2]} + {terms[-1]}")
    arguments = "before: int, last: int, channels: int" + (", after_reduction: bool = False" if varies else "")
    return f'''class {CLASSES[reduces]}(nn.Module):
    """A cell that {"halves" if reduces else "keeps"} the resolution: nodes 0 and 1 come from the cells before it.

    Every other node is the sum of two edges, and these nodes together are the output.
    """

    def __init__(self, {arguments}) -> None:
{indented(init, 2)}

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
{indented(forward, 2)}
        return torch.cat([{", ".join(nodes)}], dim=1)
'''


def _first_input(forms: Sequence[CellForm], reduces: bool) -> list[str]:
    """Return the lines that make the first input, which behind a reduction is twice as large as the second."""
    plain, halving = "ReLUConvBN(before, channels, 1)", "FactorisedReduction(before, channels)"
    if not _varies(forms, reduces):
        follows = any(form.after_reduction for form in forms if form.reduces == reduces)
        return [f"self.input_0 = {halving if follows else plain}"]
    return [
        "if after_reduction:  # before is twice as large as last",
        f"    self.input_0 = {halving}",
        "else:",
        f"    self.input_0 = {plain}",
    ]


def _operation(name: str, stride: int) -> str | None:
    """Return the call that makes an operation, or None for the identity."""
    step = f", stride={stride}" if stride > 1 else ""
    if name == "skip_connect":
        return "FactorisedReduction(channels, channels)" if stride > 1 else None
    if name == "max_pool_3x3":
        return f"nn.MaxPool2d(3, stride={stride}, padding=1)"
    if name == "avg_pool_3x3":
        return AVERAGE_POOL.replace("stride=1", f"stride={stride}")
    kind = "SeparableConvolution" if name.startswith("sep_conv") else "DilatedConvolution"
    return f"{kind}(channels, {name[-1]}{step})"
