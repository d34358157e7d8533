"""Residual networks of any depth by their usual names, with what differs from them: `resnet-152 width=2 stem=cifar`.

This module imports neither torch nor anything slow.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures._splits import split as split
from robust_nas.architectures._splits import step
from robust_nas.core.checks import check_type
from robust_nas.core.errors import InputError, suggest
from robust_nas.core.text import aligned


@dataclass(frozen=True)
class Net:
    """A published line of networks of different depths.

    Args:
        base: of each stage, the channels that the width multiplies: those of 3x3 convolutions.
        extra: layers that its depth counts beside those of the blocks.
        preactivated: norm and activation before each convolution, and not after it (arXiv:1603.05027).
        stem: "imagenet", 7x7 of stride 2 and a max pool; or "cifar", 3x3.
        split: the rule by which blocks are split over stages.
        bottleneck_from: the depth from which blocks are bottlenecks; None for never.
        widens_stem: whether the first stage's width multiplies the stem's channels too.
    """

    base: tuple[int, ...]
    extra: int
    preactivated: bool
    stem: str
    split: str
    bottleneck_from: int | None = None
    widens_stem: bool = True


NETS = {
    "resnet": Net((64, 128, 256, 512), 2, False, "imagenet", "grown", bottleneck_from=50),
    "preact-resnet": Net((64, 128, 256, 512), 2, True, "cifar", "grown", bottleneck_from=50),
    "cifar-resnet": Net((16, 32, 64), 2, False, "cifar", "even"),
    "wrn": Net((16, 32, 64), 4, True, "cifar", "even", widens_stem=False),
}
"""He et al. 2016 (arXiv:1512.03385: table 1 as torchvision has it, and section 4.2 for CIFAR), He et al. 2016
(pre-activation, arXiv:1603.05027), Zagoruyko & Komodakis 2016 (wide, arXiv:1605.07146)."""

CHOICES = {
    "block": ("basic", "bottleneck"),
    "stem": ("imagenet", "cifar"),
    "activation": ("relu", "silu", "gelu", "softplus"),
    "se": ("none", "relu"),
    "denoise": ("none", "gaussian", "dot"),
}
"""The decisions between names; "norm" is batch, group or group:G."""

CONVOLUTIONS = {"basic": 2, "bottleneck": 3}
"""The layers of a block."""

EXPANSION = {"basic": 1, "bottleneck": 4}
"""The ratio of a block's output width to its 3x3 convolution's (arXiv:1512.03385)."""

GROUPS = 32
"""The groups of `norm=group` (Wu & He 2018, arXiv:1803.08494)."""

LARGEST = {"depth": 10_000, "channels": 2**16}

_FORM = "resnet-152 width=2 stem=cifar norm=group:8"
_NAME = re.compile(r"(preact-|cifar-)?resnet-([0-9]{1,9})|wrn-([0-9]{1,9})(-[0-9.]{1,9})?")
_KEYS = ("split", "width", *CHOICES, "norm")


@dataclass(frozen=True, order=True, kw_only=True, repr=False)
class ResNetArchitecture(AnyArchitecture):
    """A residual network of a published line, as deep and as wide as one likes.

    Args:
        net: a name in `NETS`.
        stages: of each stage, its blocks.
        widths: of each stage, the multiplier of its channels.
        block: "basic", two convolutions of 3x3; or "bottleneck", 1x1, 3x3 and 1x1, whose output is 4 times as wide.
        stem: "imagenet", which divides the resolution by 4, or "cifar".
        norm: "batch", or "group:G" of G groups; "group" is 32.
        activation: "relu", "silu", "gelu" or "softplus".
        se: the squeeze-and-excitation at the end of every block: "none", or "relu", by the activation inside it.
        denoise: the feature denoising after every stage (arXiv:1812.03411): "none", "gaussian" or "dot".

    Raises:
        InputError: for a value that is none of these, or channels that are not whole or no multiple of the groups.
    """

    net: str
    stages: tuple[int, ...]
    widths: tuple[float, ...]
    block: str
    stem: str
    norm: str = "batch"
    activation: str = "relu"
    se: str = "none"
    denoise: str = "none"

    form = _FORM

    def __post_init__(self) -> None:
        check_net(self.net)
        for key, names in CHOICES.items():
            if (value := getattr(self, key)) not in names:
                raise InputError(f"The {key} of a ResNet is one of {', '.join(names)}, but got '{value}'.")
        number = len(NETS[self.net].base)
        for key, found in {"blocks": self.stages, "width": self.widths}.items():
            if len(found) != number:
                raise InputError(f"A {self.net} has {number} stages, but got {len(found)} numbers for their {key}.")
        if min(self.stages) < 1 or self.depth > LARGEST["depth"]:
            raise InputError(
                f"A ResNet has 1 block or more in each stage, and {LARGEST['depth']} layers at most, but got "
                f"{'-'.join(map(str, self.stages))} blocks."
            )
        object.__setattr__(self, "widths", tuple(map(float, self.widths)))
        object.__setattr__(self, "norm", f"group:{GROUPS}" if self.norm == "group" else self.norm)
        self._check_groups()

    def _check_groups(self) -> None:
        """Raise InputError unless the groups of the norm divide the channels that it sees."""
        groups = self.groups
        channels = {f"stage {stage}": own for stage, own in enumerate(self.channels, start=1)}
        channels["the stem"] = self.stem_channels
        for where, own in channels.items():
            if groups is not None and own % groups:
                common = math.gcd(*channels.values())
                # As many groups as channels would be instance norm.
                most = max(1, min(groups, common // 2))
                fitting = next(count for count in range(most, 0, -1) if common % count == 0)
                raise InputError(
                    f"The {own} channels of {where} of '{self}' are no multiple of the {groups} groups of its norm; "
                    f"norm=group:{fitting} divides all of its channels."
                )

    @classmethod
    def of_depth(
        cls, net: str, depth: int, widths: Sequence[float] | float = 1, *, split: str = "", **options: Any
    ) -> ResNetArchitecture:
        """Return the network of a depth.

        Args:
            net: a name in `NETS`.
            depth: number of layers, as its name has it: 152.
            widths: multiplier of all channels, or one for each stage.
            split: the rule by which blocks are split over stages (`_splits.split`); the line's own, if not given.
            options: other fields; the line's own, if not given.

        Raises:
            InputError: for a depth that the split does not reach, with the nearest that it does; or a wrong value.
        """
        check_net(net)
        own = NETS[net]
        block = options.pop("block", "") or own_block(net, depth)
        if block not in CHOICES["block"]:
            raise InputError(f"The block of a ResNet is one of {', '.join(CHOICES['block'])}, but got '{block}'.")
        return cls.of_stages(net, _split_of(net, depth, block, split or own.split), widths, block=block, **options)

    @classmethod
    def of_stages(
        cls, net: str, stages: Sequence[int], widths: Sequence[float] | float = 1, **options: Any
    ) -> ResNetArchitecture:
        """Return the network whose stages have these numbers of blocks; all else is as in `of_depth`.

        Blocks are basic where these make a network that has them by its depth.

        Raises:
            InputError: for a wrong value.
        """
        check_net(net)
        own = NETS[net]
        per_stage = tuple(widths) if isinstance(widths, Sequence) else (widths,) * len(own.base)
        block = options.pop("block", "") or own_block(net, own.extra + CONVOLUTIONS["basic"] * sum(stages))
        stem = options.pop("stem", "") or own.stem
        return cls(net=net, stages=tuple(stages), widths=per_stage, block=block, stem=stem, **options)

    @classmethod
    def recognises(cls, text: str) -> bool:
        return _NAME.fullmatch(text.strip().partition(" ")[0]) is not None

    @classmethod
    def parse(cls, text: str) -> ResNetArchitecture:
        """Read a name, such as resnet-152, preact-resnet-18, cifar-resnet-20 or wrn-28-10, and what differs from it.

        Raises:
            InputError: naming the part that is unknown or malformed, or what `of_depth` raises.
        """
        check_type("An architecture", text, str, f"a text such as {_FORM}")
        name, *parts = text.split() or [""]
        found = _NAME.fullmatch(name)
        if found is None:
            raise InputError(
                f"A ResNet is written {_FORM}, and begins with resnet-152, preact-resnet-18, cifar-resnet-20 or "
                f"wrn-28-10, but got '{name}'."
            )
        net = "wrn" if found[3] else f"{found[1] or ''}resnet"
        given = _values(parts, text)
        if found[4]:
            if "width" in given:
                raise InputError(
                    f"The width of '{text}' is there twice; give it as {name} or as width={given['width']}."
                )
            given["width"] = found[4][1:]
        widths = parse_widths(given.pop("width", "1"))
        return cls.of_depth(net, int(found[2] or found[3]), widths[0] if len(widths) == 1 else widths, **given)

    @property
    def depth(self) -> int:
        """The number of layers with weights along the main path, as its name has it."""
        return NETS[self.net].extra + CONVOLUTIONS[self.block] * sum(self.stages)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each stage, the channels of its 3x3 convolutions."""
        return tuple(_whole(base, width) for base, width in zip(NETS[self.net].base, self.widths, strict=True))

    @property
    def stem_channels(self) -> int:
        """The channels of the first convolution."""
        own = NETS[self.net]
        return self.channels[0] if own.widens_stem else own.base[0]

    @property
    def groups(self) -> int | None:
        """The groups of the group norm; None where it is a batch norm."""
        if self.norm == "batch":
            return None
        found = re.fullmatch(r"group:([0-9]{1,6})", self.norm)
        if found is None or int(found[1]) < 1:
            raise InputError(f"The norm of a ResNet is one of batch, group and group:8, but got '{self.norm}'.")
        return int(found[1])

    @property
    def kernel(self) -> int:
        """Pixels a side of the convolutions that are not of one pixel."""
        return 3

    @property
    def own_space(self) -> dict[str, Any]:
        """The table of the space that has this network alone: its string says all of it."""
        found = {
            "kind": "resnet",
            "name": f"{self.net}-{self.depth}",
            "net": self.net,
            "stage_depths": tuple((own,) for own in self.stages),
            "stage_widths": tuple((own,) for own in self.widths),
        }
        options = {"block": "blocks", "stem": "stems", "norm": "norms", "activation": "activations"}
        options |= {key: key for key in ("se", "denoise")}
        return found | {plural: (getattr(self, key),) for key, plural in options.items()}

    @property
    def parts(self) -> dict[str, str]:
        """All facts by name, with those that its string leaves out."""
        outputs = [EXPANSION[self.block] * own for own in self.channels]
        facts = {"net": self.net, "depth": self.depth, "blocks": self.stages, "width": self.widths, "channels": outputs}
        facts |= {key: getattr(self, key) for key in ("block", "stem", "norm", "activation", "se", "denoise")}
        return {key: _joined(value) if isinstance(value, tuple | list) else str(value) for key, value in facts.items()}

    def __str__(self) -> str:
        name, own, width = f"{self.net}-{self.depth}", NETS[self.net], _joined(self.widths)
        if len(set(self.widths)) == 1:
            width = _joined(self.widths[:1])
        if self.net == "wrn" and "-" not in width:
            name, width = f"{name}-{width}", "1"
        usual = split(own.split, sum(self.stages), len(own.base))
        written = {
            "split": ("" if self.stages == usual else _joined(self.stages), ""),
            "block": (self.block, own_block(self.net, self.depth)),
            "width": (width, "1"),
            "stem": (self.stem, own.stem),
            "norm": (norm_text(self.norm), "batch"),
            **{key: (getattr(self, key), CHOICES[key][0]) for key in ("activation", "se", "denoise")},
        }
        return " ".join([name, *(f"{key}={value}" for key, (value, known) in written.items() if value != known)])

    def describe(self) -> str:
        """Return the string form and all facts, line by line."""
        return "\n".join([f"string      {self}", *aligned(list(self.parts.items()), left=2)])


def check_net(net: str) -> None:
    """Raise InputError unless `net` is the name of a line of networks."""
    if net not in NETS:
        raise InputError(f"There is no line of ResNets '{net}'. {suggest(net, NETS)}")


def own_block(net: str, depth: int) -> str:
    """Return the kind of block that a network of this depth has, where nothing is said."""
    start = NETS[net].bottleneck_from
    return "bottleneck" if start is not None and depth >= start else "basic"


def parse_widths(text: str) -> tuple[float, ...]:
    """Read a multiplier of channels, or one for each stage: 2 or 1-1-1.5-2.

    Raises:
        InputError: for what are no numbers above 0.
    """
    parts = text.split("-")
    if not all(re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,12})?", part) and float(part) > 0 for part in parts):
        raise InputError(
            "The width of a ResNet is a multiplier of its channels, such as 2, or one for each stage, such as "
            f"1-1-1.5-2, but got '{text}'."
        )
    return tuple(map(float, parts))


def width_text(width: float) -> str:
    """Return a multiplier as it is written: 2 or 1.5."""
    return str(int(width)) if float(width).is_integer() else repr(float(width))


def norm_text(norm: str) -> str:
    """Return a norm as it is written: group, where there are the usual groups."""
    return "group" if norm == f"group:{GROUPS}" else norm


def _joined(values: Sequence[float]) -> str:
    return "-".join(width_text(value) for value in values)


def _whole(base: int, width: float) -> int:
    """Return `base` times `width`.

    Raises:
        InputError: if that is no whole number, or too large.
    """
    channels = Fraction(repr(float(width))) * base if math.isfinite(width) else Fraction(0)
    if channels.denominator != 1 or not 1 <= channels <= LARGEST["channels"]:
        near = min(max(1, round(channels)), LARGEST["channels"])
        raise InputError(
            f"A width of {width_text(width)} makes {float(channels):g} of {base} channels, which must be a whole "
            f"number from 1 to {LARGEST['channels']}; a width of {width_text(near / base)} makes {near}."
        )
    return int(channels)


def _values(parts: Sequence[str], text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in _KEYS or not value:
            raise InputError(f"A ResNet is written {_FORM}, but got '{part}'. {suggest(key, _KEYS)}")
        if key in found:
            raise InputError(f"A ResNet has one {key}, but '{text}' has several.")
        found[key] = value
    return found


def _split_of(net: str, depth: int, block: str, rule: str) -> tuple[int, ...]:
    """Return the blocks of each stage.

    Raises:
        InputError: for a depth that the rule does not reach, with the nearest that it does.
    """
    own, stages = NETS[net], len(NETS[net].base)
    if depth > LARGEST["depth"]:
        raise InputError(f"A ResNet has {LARGEST['depth']} layers at most, but got {depth}.")
    blocks, rest = divmod(depth - own.extra, CONVOLUTIONS[block])
    found = split(rule, max(blocks, 0), stages)
    if rest == 0 and found is not None:
        return found
    if "-" in rule:
        right = own.extra + CONVOLUTIONS[block] * sum(map(int, rule.split("-")))
        raise InputError(f"{rule} {block} blocks make a {net} of depth {right}, but got {depth}.")
    nearest = _nearest(net, depth, block, rule)
    raise InputError(
        f"The split '{rule}' of {block} blocks over {stages} stages makes no {net} of depth {depth}; the nearest "
        f"{'is' if len(nearest) == 1 else 'are'} {' and '.join(map(str, nearest))}."
    )


def _nearest(net: str, depth: int, block: str, rule: str) -> list[int]:
    """Return the next depths below and above that a rule reaches, if there are both."""
    stages = len(NETS[net].base)
    least = NETS[net].extra + CONVOLUTIONS[block] * stages
    between = CONVOLUTIONS[block] * step(rule, stages)
    below = least + (depth - least) // between * between
    return [near for near in itertools.islice((below, below + between), 2) if near >= least] or [least]
