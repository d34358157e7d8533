"""Wide pre-activation residual networks (Zagoruyko & Komodakis 2016, arXiv:1605.07146), their blocks as decided."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from robust_nas.core.errors import InputError
from robust_nas.spaces._images import ImageNetwork

if TYPE_CHECKING:
    from robust_nas.architectures.residual import ResidualArchitecture
    from robust_nas.datasets import NetworkData

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
}

GROUP = 16
"""Channels of a group of the group norm (Wu & He 2018, arXiv:1803.08494, table 3, has it among others)."""

BOTTLENECK = 4
"""The ratio of a bottleneck's output width to its middle's (He et al. 2016, arXiv:1512.03385)."""


def make_norm(name: str, channels: int, affine: bool = True) -> nn.Module:
    """Return a normalisation of `channels`: batch, group, group:G, instance, or none, the identity.

    The groups of "group" have `GROUP` channels, or as many as divide both; those of "group:8" are eight.
    """
    if name == "batch":
        return nn.BatchNorm2d(channels, affine=affine)
    if name == "group":
        return nn.GroupNorm(channels // math.gcd(channels, GROUP), channels, affine=affine)
    if name.startswith("group:"):
        return nn.GroupNorm(int(name.removeprefix("group:")), channels, affine=affine)
    if name == "instance":
        return nn.InstanceNorm2d(channels, affine=affine)
    return nn.Identity()


class BlockForm(Protocol):
    """What a residual block is made of; `architectures.residual.ResidualArchitecture` says what each may be."""

    @property
    def kernel(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def norm(self) -> str: ...
    @property
    def se(self) -> str: ...
    @property
    def block(self) -> str: ...


class SqueezeExcitation(nn.Module):
    """Weigh channels by what their means say of them (Hu et al. 2018, arXiv:1709.01507): linear, ReLU, linear, sigmoid.

    Args:
        channels: of input and output.
        reduction: number of them that share one in between.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        between = max(1, channels // reduction)
        self.weigh = nn.Sequential(nn.Linear(channels, between), nn.ReLU(), nn.Linear(between, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, H, W]."""
        return x * self.weigh(x.mean(dim=(2, 3))).unsqueeze(2).unsqueeze(3)


class ResidualBlock(nn.Module):
    """(norm, activation, convolution) two or three times, and the shortcut around them.

    Where the block changes the number of channels or the resolution, the shortcut is a convolution of one pixel on what
    the first norm and activation give, else the identity. Squeeze-and-excitation is before the sum.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, form: BlockForm, reduction: int, affine: bool
    ) -> None:
        super().__init__()
        if form.block == "basic":
            channels, kernels, strides = [in_channels, out_channels, out_channels], [form.kernel] * 2, [stride, 1]
        else:
            between = max(1, out_channels // BOTTLENECK)
            channels, kernels = [in_channels, between, between, out_channels], [1, form.kernel, 1]
            strides = [1, stride, 1]
        self.activation = ACTIVATIONS[form.activation]()
        self.norms = nn.ModuleList(make_norm(form.norm, before, affine) for before in channels[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel, step, padding=kernel // 2, bias=form.norm == "none")
            for before, after, kernel, step in zip(channels[:-1], channels[1:], kernels, strides, strict=True)
        )
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if in_channels != out_channels or stride > 1
            else None
        )
        self.excitation = nn.Identity() if form.se == "none" else SqueezeExcitation(out_channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C', H', W']."""
        shortcut = x
        for place, (norm, convolution) in enumerate(zip(self.norms, self.convolutions, strict=True)):
            x = self.activation(norm(x))
            if place == 0 and self.shortcut is not None:
                shortcut = self.shortcut(x)
            x = convolution(x)
        return shortcut + self.excitation(x)


class ResidualNetwork(ImageNetwork):
    """Stem, stages of residual blocks, norm and activation, pooling, linear classifier.

    The first block of every stage but the first halves the resolution. WRN-28-10 is `depths=4-4-4 widths=160-320-640
    kernel=3 activation=relu norm=batch se=none block=basic stem=16`.

    Args:
        form: the decisions.
        data: gives the number of classes, the image's channels, and the mean and deviation to normalise by.
        se_reduction: of squeeze-and-excitation.
        affine: whether normalisation has weights of its own.

    Raises:
        InputError: if the images are too small for the number of stages.
    """

    def __init__(
        self, form: ResidualArchitecture, data: NetworkData, se_reduction: int = 16, affine: bool = True
    ) -> None:
        super().__init__(data)
        image_channels, height, width = data.image_shape
        # Of one pixel alone, instance norm knows no variance.
        least = 2 ** len(form.depths)
        if min(height, width) < least:
            raise InputError(
                f"A residual network of {len(form.depths)} stages needs images of at least {least} pixels a side, but "
                f"{data.name} has {height} x {width}; give space.depths and space.widths fewer stages."
            )
        self.stem = nn.Conv2d(image_channels, form.stem, 3, padding=1, bias=form.norm == "none")
        self.blocks, channels = nn.ModuleList(), form.stem
        for stage, (depth, out_channels) in enumerate(zip(form.depths, form.widths, strict=True)):
            for place in range(depth):
                stride = 2 if stage > 0 and place == 0 else 1
                self.blocks.append(ResidualBlock(channels, out_channels, stride, form, se_reduction, affine))
                channels = out_channels
        self.last = nn.Sequential(make_norm(form.norm, channels, affine), ACTIVATIONS[form.activation]())
        self.classifier = nn.Linear(channels, len(data.classes))
        self._initialise(form)

    def _initialise(self, form: ResidualArchitecture) -> None:
        """He initialisation (fan out) for convolutions, torch's default for linear layers.

        Without normalisation, the variance would double with every block: what a block adds is scaled by one over the
        root of their number, at the start.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if form.norm == "none":
            for block in self.blocks:
                block.convolutions[-1].weight.data /= sum(form.depths) ** 0.5  # type: ignore[index,union-attr]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] of [0, 1] images [B, C, H, W]."""
        x = self.stem(self.normalised(images))
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.last(x).mean(dim=(2, 3)))
