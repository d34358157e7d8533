"""Residual networks as Python: the block of `network.py` as it was decided, and the stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robust_nas.spaces import NetworkSource
from robust_nas.spaces._source import convolution, indented, sequential, with_used

if TYPE_CHECKING:
    from robust_nas.architectures.residual import ResidualArchitecture
    from robust_nas.datasets import DataForm
    from robust_nas.spaces.residual.network import BlockForm

ACTIVATIONS = {"relu": "nn.ReLU()", "silu": "nn.SiLU()", "gelu": "nn.GELU()", "softplus": "nn.Softplus()"}

_NORMS = {
    "batch": "nn.BatchNorm2d({})",
    "group": "group_norm({})",
    "instance": "nn.InstanceNorm2d({}, affine=True)",
}

GROUP_NORM = '''
def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group norm whose groups have {group} channels, or as many as divide both."""
    return nn.GroupNorm(channels // math.gcd(channels, {group}), channels)
'''

SQUEEZE_EXCITATION = '''
class SqueezeExcitation(nn.Module):
    """Weigh channels by what their means say of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        between = max(1, channels // {reduction})
        self.weigh = nn.Sequential(nn.Linear(channels, between), nn.ReLU(), nn.Linear(between, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x.mean(dim=(2, 3))).unsqueeze(2).unsqueeze(3)
'''


def norm_call(name: str) -> str | None:
    """Return the call that makes a norm, with {} for its channels; None where there is no norm."""
    if name.startswith("group:"):
        return f"nn.GroupNorm({name.removeprefix('group:')}, {{}})"
    return _NORMS.get(name)


def source(form: ResidualArchitecture, data: DataForm, reduction: int) -> NetworkSource:
    """Return an architecture's network, of whose squeeze-and-excitation `reduction` channels share one."""
    blocks, channels = [], form.stem
    for stage, (depth, width) in enumerate(zip(form.depths, form.widths, strict=True)):
        for place in range(depth):
            blocks.append(f"ResidualBlock({channels}, {width}{', stride=2' if stage and not place else ''})")
            channels = width
    norm, activation = norm_call(form.norm), ACTIVATIONS[form.activation]
    stem = convolution(data.image_shape[0], form.stem, bias=norm is None)
    last = activation if norm is None else f"nn.Sequential({norm.format(channels)}, {activation})"
    layers = [
        f"self.stem = {stem}",
        *sequential("blocks", blocks),
        f"self.last = {last}",
        f"self.classifier = nn.Linear({channels}, {len(data.classes)})",
    ]
    return NetworkSource(
        classes=with_used(library(reduction), block_class(form), layers),
        layers=tuple(layers),
        forward=("x = self.stem(x)", "x = self.blocks(x)", "return self.classifier(self.last(x).mean(dim=(2, 3)))"),
        names=renamed(form, [f"blocks.{place}" for place in range(len(blocks))]),
    )


def library(reduction: int) -> dict[str, str]:
    """Return what blocks use, by name; `reduction` channels share one in squeeze-and-excitation."""
    from robust_nas.spaces.residual.network import GROUP

    return {
        "group_norm": GROUP_NORM.format(group=GROUP),
        "SqueezeExcitation": SQUEEZE_EXCITATION.format(reduction=reduction),
    }


def renamed(form: BlockForm, blocks: Sequence[str]) -> dict[str, str]:
    """Return the names of the modules of blocks in the code, by those in the network."""
    parts = range(3 if form.block == "bottleneck" else 2)
    names = {f"norms.{part}": f"norm_{part + 1}" for part in parts}
    names |= {f"convolutions.{part}": f"conv_{part + 1}" for part in parts}
    return {f"{block}.{old}": f"{block}.{new}" for block in blocks for old, new in names.items()}


def block_class(form: BlockForm) -> str:
    """Return the class of the blocks."""
    from robust_nas.spaces.residual.network import BOTTLENECK

    norm, bias = norm_call(form.norm), form.norm == "none"
    init = ["super().__init__()"]
    if form.block == "basic":
        channels, kernels, strided = ["in_channels", "out_channels", "out_channels"], [form.kernel] * 2, 1
    else:
        init.append(f"between = max(1, out_channels // {BOTTLENECK})")
        channels, kernels, strided = ["in_channels", "between", "between", "out_channels"], [1, form.kernel, 1], 2
    init.append(f"self.activation = {ACTIVATIONS[form.activation]}")
    forward = []
    for place, (before, after, kernel) in enumerate(zip(channels, channels[1:], kernels, strict=False), start=1):
        made = convolution(before, after, kernel, "stride" if place == strided else 1, bias=bias)
        init += [] if norm is None else [f"self.norm_{place} = {norm.format(before)}"]
        init.append(f"self.conv_{place} = {made}")
        normed = "x" if norm is None else f"self.norm_{place}(x)"
        if place == 1:
            forward += [
                f"activated = self.activation({normed})",
                "shortcut = x if self.shortcut is None else self.shortcut(activated)",
                "x = self.conv_1(activated)",
            ]
        else:
            forward.append(f"x = self.conv_{place}(self.activation({normed}))")
    if form.se != "none":
        init.append("self.excitation = SqueezeExcitation(out_channels)")
    init += [
        "self.shortcut = None",
        "if in_channels != out_channels or stride > 1:",
        "    self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)",
    ]
    forward.append(f"return shortcut + {'x' if form.se == 'none' else 'self.excitation(x)'}")
    order = "activation and convolution" if norm is None else "norm, activation and convolution"
    return f'''class ResidualBlock(nn.Module):
    """{order.capitalize()}, {"two" if form.block == "basic" else "three"} times, and a shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
{indented(init, 2)}

    def forward(self, x: Tensor) -> Tensor:
{indented(forward, 2)}
'''
