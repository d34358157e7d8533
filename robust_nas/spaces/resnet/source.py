"""ResNets as Python: the block of `network.py` as it was decided, and the stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robust_nas.architectures.resnet import EXPANSION, NETS
from robust_nas.spaces import NetworkSource
from robust_nas.spaces._source import convolution, indented, sequential, with_used
from robust_nas.spaces.residual.source import ACTIVATIONS, block_class, library, norm_call, renamed

if TYPE_CHECKING:
    from robust_nas.architectures.resnet import ResNetArchitecture
    from robust_nas.datasets import DataForm

_MEANS = {
    "gaussian": (
        "queries, keys = self.theta(x).flatten(2), self.phi(x).flatten(2)",
        "weights = (queries.transpose(1, 2) @ keys / math.sqrt(queries.shape[1])).softmax(dim=2)",
        "means = x.flatten(2) @ weights.transpose(1, 2)",
    ),
    "dot": (
        "features = x.flatten(2)",
        "means = (features @ features.transpose(1, 2)) @ features / features.shape[2]",
    ),
}


def source(form: ResNetArchitecture, data: DataForm, reduction: int) -> NetworkSource:
    """Return an architecture's network, of whose squeeze-and-excitation `reduction` channels share one."""
    preactivated, norm = NETS[form.net].preactivated, norm_call(form.norm)
    assert norm is not None
    activation, channels = ACTIVATIONS[form.activation], form.stem_channels
    colours, large = data.image_shape[0], form.stem == "imagenet"
    layers = [f"self.conv1 = {convolution(colours, channels, 7 if large else 3, 2 if large else 1)}"]
    layers += [] if preactivated else [f"self.bn1 = {norm.format(channels)}", f"self.activation = {activation}"]
    layers += ["self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)"] if large else []
    forward = ["x = self.conv1(x)" if preactivated else "x = self.activation(self.bn1(self.conv1(x)))"]
    forward += ["x = self.maxpool(x)"] if large else []
    blocks: list[str] = []
    for stage, (depth, own) in enumerate(zip(form.stages, form.channels, strict=True), start=1):
        out, made = EXPANSION[form.block] * own, []
        for place in range(depth):
            stride = ", stride=2" if stage > 1 and place == 0 else ""
            made.append(f"ResidualBlock({channels}, {out if preactivated else own}{stride})")
            blocks.append(f"layer{stage}.{place}")
            channels = out
        made += [] if form.denoise == "none" else [f"Denoising({out})"]
        layers += sequential(f"layer{stage}", made)
        forward.append(f"x = self.layer{stage}(x)")
    layers += [f"self.last = nn.Sequential({norm.format(channels)}, {activation})"] if preactivated else []
    layers.append(f"self.fc = nn.Linear({channels}, {len(data.classes)})")
    forward.append(f"return self.fc({'self.last(x)' if preactivated else 'x'}.mean(dim=(2, 3)))")
    used = {**library(reduction), "Denoising": _denoising(form)}
    return NetworkSource(
        classes=with_used(used, block_class(form) if preactivated else _post_block(form), layers),
        layers=tuple(layers),
        forward=tuple(forward),
        names=renamed(form, blocks) if preactivated else {},
    )


def _post_block(form: ResNetArchitecture) -> str:
    """Return the class of the blocks without pre-activation."""
    norm = norm_call(form.norm)
    assert norm is not None
    basic, init, forward = form.block == "basic", ["super().__init__()"], []
    sizes, kernels, strided = ["in_channels", "channels", "channels"], [3, 3], 1
    if not basic:
        init.append(f"out_channels = {EXPANSION[form.block]} * channels")
        sizes, kernels, strided = ["in_channels", "channels", "channels", "out_channels"], [1, 3, 1], 2
    for place, (before, after, kernel) in enumerate(zip(sizes, sizes[1:], kernels, strict=False), start=1):
        made = convolution(before, after, kernel, "stride" if place == strided else 1)
        init += [f"self.conv{place} = {made}", f"self.bn{place} = {norm.format(after)}"]
        layer = f"self.bn{place}(self.conv{place}(x))"
        forward.append(f"x = {layer}" if place == len(kernels) else f"x = self.activation({layer})")
    init += ["self.excitation = SqueezeExcitation(" + sizes[-1] + ")"] if form.se != "none" else []
    init += [
        f"self.activation = {ACTIVATIONS[form.activation]}",
        "self.downsample = None",
        f"if stride > 1 or in_channels != {sizes[-1]}:",
        "    self.downsample = nn.Sequential(",
        f"        nn.Conv2d(in_channels, {sizes[-1]}, 1, stride, bias=False), {norm.format(sizes[-1])}",
        "    )",
    ]
    return f'''class ResidualBlock(nn.Module):
    """{"Two" if basic else "Three"} convolutions with norms, and a shortcut around them before the last activation."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
{indented(init, 2)}

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
{indented(forward, 2)}
        return self.activation({"x" if form.se == "none" else "self.excitation(x)"} + shortcut)
'''


def _denoising(form: ResNetArchitecture) -> str:
    """Return the class of feature denoising."""
    norm = norm_call(form.norm)
    if form.denoise == "none" or norm is None:
        return ""
    init = ["super().__init__()"]
    if form.denoise == "gaussian":
        init.append("between = max(1, channels // 2)")
        init += [f"self.{name} = nn.Conv2d(channels, between, 1, bias=False)" for name in ("theta", "phi")]
    init += ["self.conv = nn.Conv2d(channels, channels, 1, bias=False)", f"self.norm = {norm.format('channels')}"]
    return f'''
class Denoising(nn.Module):
    """Non-local means of the features, a convolution of one pixel, norm, and the sum with the features."""

    def __init__(self, channels: int) -> None:
{indented(init, 2)}
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
{indented(_MEANS[form.denoise], 2)}
        return x + self.norm(self.conv(means.unflatten(2, x.shape[2:])))
'''
