"""Residual networks of any depth and width, with torchvision's names of modules, so that its weights can be loaded."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from robust_nas.architectures.resnet import EXPANSION, NETS
from robust_nas.core.errors import InputError
from robust_nas.spaces._images import ImageNetwork
from robust_nas.spaces.residual.network import ACTIVATIONS, ResidualBlock, SqueezeExcitation, make_norm

if TYPE_CHECKING:
    from robust_nas.architectures.resnet import ResNetArchitecture
    from robust_nas.datasets import NetworkData


class Denoising(nn.Module):
    """Feature denoising (Xie et al. 2019, arXiv:1812.03411, section 4): non-local means, 1x1 convolution, norm, sum.

    Every pixel's features are replaced by a weighted mean of all pixels'. Of its non-local means there are both kinds.
    "gaussian" has the weights softmax_j(theta(x_i) . phi(x_j) / sqrt(d)), where theta and phi are 1x1 convolutions to d
    channels, half of the features' as in the authors' code. "dot" has (x_i . x_j) / N, for N pixels, and no embedding.
    The norm's scale begins at 0, so that the block begins as the identity.

    Args:
        channels: of input and output.
        kind: "gaussian" or "dot".
        norm: as in `make_norm`.
        affine: whether the norm has weights of its own; if not, the block does not begin as the identity.
    """

    def __init__(self, channels: int, kind: str, norm: str = "batch", affine: bool = True) -> None:
        super().__init__()
        self.theta = self.phi = None
        if kind == "gaussian":
            between = max(1, channels // 2)
            self.theta, self.phi = (nn.Conv2d(channels, between, 1, bias=False) for _ in range(2))
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = make_norm(norm, channels, affine)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, H, W]."""
        return x + self.norm(self.conv(self.means(x)))

    def means(self, x: Tensor) -> Tensor:
        """Return the non-local means [B, C, H, W] of features."""
        features = x.flatten(2)
        if self.theta is not None and self.phi is not None:
            queries, keys = self.theta(x).flatten(2), self.phi(x).flatten(2)
            weights = (queries.transpose(1, 2) @ keys / math.sqrt(queries.shape[1])).softmax(dim=2)
            return (features @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])
        # (F F^T) F / N and F (F^T F) / N are equal: the smaller matrix in the middle costs less.
        if features.shape[1] < features.shape[2]:
            found = (features @ features.transpose(1, 2)) @ features
        else:
            found = features @ (features.transpose(1, 2) @ features)
        return (found / features.shape[2]).unflatten(2, x.shape[2:])


class PostBlock(nn.Module):
    """(convolution, norm, activation) two or three times, and the shortcut around them before the last activation.

    A bottleneck halves the resolution in its 3x3 convolution, as torchvision's does. Squeeze-and-excitation is before
    the sum (arXiv:1709.01507, figure 3).

    Args:
        in_channels: of the input.
        channels: of the 3x3 convolutions; a bottleneck's output has four times as many.
        stride: 2 if it halves the resolution.
        form: gives block, norm, activation and squeeze-and-excitation.
        reduction: of squeeze-and-excitation.
        affine: whether normalisation has weights of its own.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, form: ResNetArchitecture, reduction: int, affine: bool
    ) -> None:
        super().__init__()
        out = EXPANSION[form.block] * channels
        sizes, kernels, strides = [in_channels, channels, out], [3, 3], [stride, 1]
        if form.block == "bottleneck":
            sizes, kernels, strides = [in_channels, channels, channels, out], [1, 3, 1], [1, stride, 1]
        self.count = len(kernels)
        for place, (before, after) in enumerate(itertools.pairwise(sizes)):
            kernel = kernels[place]
            convolution = nn.Conv2d(before, after, kernel, strides[place], padding=kernel // 2, bias=False)
            self.add_module(f"conv{place + 1}", convolution)
            self.add_module(f"bn{place + 1}", make_norm(form.norm, after, affine))
        self.activation = ACTIVATIONS[form.activation]()
        self.downsample = None
        if stride > 1 or in_channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out, 1, stride, bias=False), make_norm(form.norm, out, affine)
            )
        self.excitation = nn.Identity() if form.se == "none" else SqueezeExcitation(out, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C', H', W']."""
        shortcut = x if self.downsample is None else self.downsample(x)
        for place in range(1, self.count + 1):
            x = self.get_submodule(f"bn{place}")(self.get_submodule(f"conv{place}")(x))
            if place < self.count:
                x = self.activation(x)
        return self.activation(self.excitation(x) + shortcut)


class ResNet(ImageNetwork):
    """Stem, stages of residual blocks, pooling, linear classifier.

    The first block of every stage but the first halves the resolution. Without pre-activation, the names of the modules
    are torchvision's; beside them there are `mean` and `std`, for the images. Pre-activated networks have norm and
    activation behind the last stage (arXiv:1603.05027), and blocks of the kind of space `residual`. Shortcuts that
    change the channels are convolutions of one pixel, also in the line for CIFAR, where the paper pads with zeros.

    Args:
        form: the decisions.
        data: gives the number of classes, the image's channels, and the mean and deviation to normalise by.
        se_reduction: of squeeze-and-excitation.
        affine: whether normalisation has weights of its own.

    Raises:
        InputError: if the images are too small for the number of stages.
    """

    def __init__(
        self, form: ResNetArchitecture, data: NetworkData, se_reduction: int = 16, affine: bool = True
    ) -> None:
        super().__init__(data)
        self.preactivated = NETS[form.net].preactivated
        image_channels, height, width = data.image_shape
        least = 2 ** (len(form.stages) - 1) * (4 if form.stem == "imagenet" else 1)
        if min(height, width) < least:
            raise InputError(
                f"{form} needs images of at least {least} pixels a side, but {data.name} has {height} x {width}; "
                + ("set stem=cifar." if form.stem == "imagenet" else "cifar-resnet and wrn have fewer stages.")
            )
        channels = form.stem_channels
        if form.stem == "imagenet":
            self.conv1 = nn.Conv2d(image_channels, channels, 7, 2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(image_channels, channels, 3, padding=1, bias=False)
        if not self.preactivated:
            self.bn1 = make_norm(form.norm, channels, affine)
        self.activation = ACTIVATIONS[form.activation]()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if form.stem == "imagenet" else nn.Identity()
        self.stages = [f"layer{stage}" for stage in range(1, len(form.stages) + 1)]
        for stage, (name, depth, own) in enumerate(zip(self.stages, form.stages, form.channels, strict=True)):
            layer, out = nn.Sequential(), EXPANSION[form.block] * own
            for place in range(depth):
                stride = 2 if stage > 0 and place == 0 else 1
                if self.preactivated:
                    layer.append(ResidualBlock(channels, out, stride, form, se_reduction, affine))
                else:
                    layer.append(PostBlock(channels, own, stride, form, se_reduction, affine))
                channels = out
            if form.denoise != "none":
                layer.append(Denoising(channels, form.denoise, form.norm, affine))
            self.add_module(name, layer)
        self.last = nn.Sequential()
        if self.preactivated:
            self.last.extend([make_norm(form.norm, channels, affine), ACTIVATIONS[form.activation]()])
        self.fc = nn.Linear(channels, len(data.classes))
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation (fan out) for convolutions, torch's default for others; denoising begins as identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, Denoising) and isinstance(scale := module.norm.weight, nn.Parameter):
                nn.init.zeros_(scale)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] of [0, 1] images [B, C, H, W]."""
        x = self.conv1(self.normalised(images))
        if not self.preactivated:
            x = self.activation(self.bn1(x))
        x = self.maxpool(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(self.last(x).mean(dim=(2, 3)))
