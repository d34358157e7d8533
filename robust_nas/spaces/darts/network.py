"""The DARTS network (Liu et al. 2019, arXiv:1806.09055, section 2.1 and appendix A): operations, cell and skeletons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_nas.core.errors import InputError
from robust_nas.models.average_pool import AveragePool3x3
from robust_nas.spaces._images import ImageNetwork
from robust_nas.spaces.cell.network import ReLUConvBN, Zero

if TYPE_CHECKING:
    from robust_nas.architectures.genotype import Choice
    from robust_nas.datasets import NetworkData
    from robust_nas.spaces.darts import DartsSpace


class FactorisedReduction(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2, one of them a pixel further, side by side, and batch norm.

    Attributes:
        order: the places of the output's channels among those of the first and then the second, if it is another one.
    """

    order: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, affine: bool) -> None:
        super().__init__()
        half = out_channels // 2
        self.first = nn.Conv2d(in_channels, half, 1, stride=2, bias=False)
        self.second = nn.Conv2d(in_channels, out_channels - half, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)
        self.register_buffer("order", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        # The zeros at the far ends change nothing at even sizes and admit odd ones.
        further = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        joined = torch.cat([self.first(x), self.second(further)], 1)
        return self.norm(joined if self.order is None else joined[:, self.order])


class SeparableConvolution(nn.Sequential):
    """Depthwise separable convolutions: (ReLU, depthwise, 1x1, batch norm) `times` times; the first one has the stride.

    `sep_conv_*` is applied twice, `dil_conv_*` once, with dilation 2.
    """

    def __init__(
        self, channels: int, kernel: int, stride: int, affine: bool, *, dilation: int = 1, times: int = 1
    ) -> None:
        parts: list[nn.Module] = []
        for number in range(times):
            step = stride if number == 0 else 1
            parts += [
                nn.ReLU(),
                nn.Conv2d(
                    channels,
                    channels,
                    kernel,
                    step,
                    padding=dilation * (kernel // 2),
                    dilation=dilation,
                    groups=channels,
                    bias=False,
                ),
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels, affine=affine),
            ]
        super().__init__(*parts)


def make_operation(name: str, channels: int, stride: int, affine: bool, *, normed_pools: bool = False) -> nn.Module:
    """Return the operation called `name`, [B, channels, H, W] to the same number of channels.

    Args:
        name: one of `genotype.OPERATIONS`.
        channels: in and out.
        stride: 2 halves the resolution.
        affine: whether batch norm has weights of its own.
        normed_pools: whether batch norm, without weights, follows pooling, as in mixtures (appendix A.1.1).
    """
    if name == "none":
        return Zero()
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorisedReduction(channels, channels, affine)
    if name.endswith("pool_3x3"):
        pool: nn.Module
        if name == "max_pool_3x3":
            pool = nn.MaxPool2d(3, stride, padding=1)
        else:
            pool = AveragePool3x3() if stride == 1 else nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        return nn.Sequential(pool, nn.BatchNorm2d(channels, affine=False)) if normed_pools else pool
    kernel = int(name[-1])
    if name.startswith("sep_conv"):
        return SeparableConvolution(channels, kernel, stride, affine, times=2)
    return SeparableConvolution(channels, kernel, stride, affine, dilation=2)


@dataclass(frozen=True)
class CellForm:
    """The place of a cell in the skeleton.

    Args:
        inputs: channels of the outputs of the cell before the last one, and of the last one.
        channels: of each of its nodes.
        reduces: whether it halves the resolution.
        after_reduction: whether the cell before it does, so that its first input is twice as large as its second.
    """

    inputs: tuple[int, int]
    channels: int
    reduces: bool
    after_reduction: bool

    def stride_from(self, source: int) -> int:
        """Return the stride of operations on a node: a cell that reduces does so at its inputs."""
        return 2 if self.reduces and source < 2 else 1


def cell_forms(space: DartsSpace, channels: int, num_cells: int) -> list[CellForm]:
    """Return the places of the cells, of which those at 1/3 and 2/3 of the depth reduce.

    Args:
        space: gives the skeleton.
        channels: of the first cells' nodes; every cell that reduces doubles them.
        num_cells: cells.
    """
    is_small = space.skeleton == "cifar"
    outputs = 3 * channels if is_small else channels
    inputs, after_reduction, forms = (outputs, outputs), not is_small, []
    for number in range(num_cells):
        reduces = number in (num_cells // 3, 2 * num_cells // 3)
        channels = 2 * channels if reduces else channels
        forms.append(CellForm(inputs, channels, reduces, after_reduction))
        inputs, after_reduction = (inputs[1], space.num_nodes * channels), reduces
    return forms


class Inputs(nn.Module):
    """Bring the outputs of the two cells before to a cell's channels and to the size of the later one."""

    def __init__(self, form: CellForm, affine: bool) -> None:
        super().__init__()
        before, last = form.inputs
        self.first = (
            FactorisedReduction(before, form.channels, affine)
            if form.after_reduction
            else ReLUConvBN(before, form.channels, 1, affine=affine)
        )
        self.second = ReLUConvBN(last, form.channels, 1, affine=affine)

    def forward(self, before: Tensor, last: Tensor) -> list[Tensor]:
        """Return the cell's first two nodes."""
        return [self.first(before), self.second(last)]


class DartsCell(nn.Module):
    """A cell of a genotype: every node is the sum of two operations, the output is all nodes, joined.

    Args:
        chosen: two (operation, source) pairs for each node.
        form: its place.
        affine: whether batch norm has weights of its own.
    """

    def __init__(self, chosen: tuple[Choice, ...], form: CellForm, affine: bool) -> None:
        super().__init__()
        self.form, self.inputs = form, Inputs(form, affine)
        self.sources = [source for _, source in chosen]
        self.operations = nn.ModuleList(
            make_operation(name, form.channels, form.stride_from(source), affine) for name, source in chosen
        )

    def forward(self, before: Tensor, last: Tensor, drop_path: float = 0.0) -> Tensor:
        """Return the concatenation of the nodes; in training, terms are dropped with probability `drop_path`."""
        nodes = self.inputs(before, last)
        terms: list[Tensor] = []
        for source, operation in zip(self.sources, self.operations, strict=True):
            term = operation(nodes[source])
            if drop_path and self.training and not isinstance(operation, nn.Identity):
                term = dropped(term, drop_path)
            terms.append(term)
            if len(terms) % 2 == 0:
                nodes.append(terms[-2] + terms[-1])
        return torch.cat(nodes[2:], 1)


def dropped(x: Tensor, probability: float) -> Tensor:
    """Return x with whole images' features zeroed, and the others scaled to keep the mean (arXiv:1605.07648)."""
    kept = torch.full((len(x), 1, 1, 1), 1 - probability, dtype=x.dtype, device=x.device).bernoulli()
    return x * kept / (1 - probability)


class DartsNetwork(ImageNetwork):
    """The macro skeleton: stem, cells of which those at 1/3 and 2/3 of the depth reduce, pooling, linear classifier.

    The stem of "cifar" is a 3x3 convolution to three times the channels. That of "imagenet" is three of stride 2, of
    which the second's and the third's outputs are the first cell's inputs.

    Args:
        space: gives the skeleton.
        data: gives the number of classes, the image's channels, and the mean and deviation to normalise by.
        make_cell: a cell of the given form.
        channels: of the first cells' nodes; every cell that reduces doubles them.
        num_cells: cells, of which two reduce.
        affine: whether batch norm has weights of its own (not in a supernet).

    Raises:
        InputError: if the images are too small.
    """

    drop_path: float = 0.0
    """The probability with which a term of a node is dropped in training, but for identities."""

    def __init__(
        self,
        space: DartsSpace,
        data: NetworkData,
        make_cell: Callable[[CellForm], nn.Module],
        channels: int,
        num_cells: int,
        affine: bool = True,
    ) -> None:
        super().__init__(data)
        image_channels, height, width = data.image_shape
        is_small = space.skeleton == "cifar"
        least = 4 if is_small else 32
        if min(height, width) < least:
            raise InputError(
                f"The skeleton '{space.skeleton}' of {space.name} needs images of at least {least} pixels a side, but "
                f"{data.name} has {height} x {width}" + ("." if is_small else "; set space.skeleton to 'cifar'.")
            )
        if is_small:
            self.stem: nn.Module = nn.Sequential(*_convolved(image_channels, 3 * channels, 1, affine))
            self.second_stem: nn.Module = nn.Identity()
        else:
            half = _convolved(image_channels, channels // 2, 2, affine)
            self.stem = nn.Sequential(*half, nn.ReLU(), *_convolved(channels // 2, channels, 2, affine))
            self.second_stem = nn.Sequential(nn.ReLU(), *_convolved(channels, channels, 2, affine))
        forms = cell_forms(space, channels, num_cells)
        self.cells = nn.ModuleList(make_cell(form) for form in forms)
        self.reductions = tuple(number for number, form in enumerate(forms) if form.reduces)
        self.auxiliary_channels = space.num_nodes * forms[self.reductions[1]].channels
        self.classifier = nn.Linear(space.num_nodes * forms[-1].channels, len(data.classes))

    @property
    def auxiliary_at(self) -> nn.Module:
        """The cell whose output an auxiliary head classifies: the second that reduces, at 2/3 of the depth."""
        return self.cells[self.reductions[1]]

    def auxiliary_head(self) -> AuxiliaryHead:
        """Return a head that helps to train the network (arXiv:1806.09055, appendix A.2), and is no part of it."""
        return AuxiliaryHead(self.auxiliary_channels, self.classifier.out_features)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] of [0, 1] images [B, C, H, W]."""
        return self.through_cells(images, lambda _, cell, *inputs: cell(*inputs, self.drop_path))

    def through_cells(self, images: Tensor, call: Callable[..., Any]) -> Tensor:
        """Return logits [B, K]; `call` gets whether a cell reduces, the cell, and its two inputs."""
        before = self.stem(self.normalised(images))
        last = self.second_stem(before)
        for number, cell in enumerate(self.cells):
            before, last = last, call(number in self.reductions, cell, before, last)
        return self.classifier(last.mean(dim=(2, 3)))


class AuxiliaryHead(nn.Module):
    """ReLU, pooling to 2 x 2, two convolutions with batch norm, and a linear classifier.

    At 8 and 7 pixels a side the pooling is the published one, of 5 x 5 windows; smaller and larger ones are cut into
    2 x 2 parts, over which means are taken.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K] of features [B, C, H, W]."""
        x, side = F.relu(x), x.shape[2]
        pooled = F.avg_pool2d(x, 5, stride=side - 5) if x.shape[2:] in ((8, 8), (7, 7)) else F.adaptive_avg_pool2d(x, 2)
        return self.classifier(self.features(pooled).flatten(1))


def _convolved(in_channels: int, out_channels: int, stride: int, affine: bool) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels, affine=affine)]
