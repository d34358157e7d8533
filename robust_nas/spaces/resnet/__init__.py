"""Residual networks of any depth and width, of the lines that are published: for studies of depth and width.

ResNets as torchvision has them and those for CIFAR (He et al. 2016, arXiv:1512.03385), pre-activation ResNets
(arXiv:1603.05027) and wide ones (arXiv:1605.07146), with feature denoising (Xie et al. 2019, arXiv:1812.03411).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.resnet import (
    NETS,
    ResNetArchitecture,
    check_net,
    norm_text,
    parse_widths,
    split,
    width_text,
)
from robust_nas.core.errors import InputError
from robust_nas.spaces import BuiltFrom, extreme
from robust_nas.spaces._decided import Decisions, check_options

if TYPE_CHECKING:
    from robust_nas.datasets import DataForm, NetworkData
    from robust_nas.spaces import NetworkSource
    from robust_nas.spaces.resnet.network import ResNet


@dataclass(frozen=True, kw_only=True)
class ResNetSpace(Decisions):
    """Networks of one line; every key but `net` and the last lists the options of a decision.

    Depth is decided in whole (`depths`, `splits`) or stage by stage (`stage_depths`), and so is width.

    Args:
        name: the declaration's name.
        net: of resnet, preact-resnet, cifar-resnet and wrn.
        depths: numbers of layers, as names have them: 152.
        splits: the rules by which a depth's blocks are split over stages, of grown, even, ratios such as 2:2:1, and
            blocks such as 3-8-36-3; the line's own, if there are none here.
        stage_depths: in place of both: of each stage, the numbers of blocks.
        widths: multipliers of all channels.
        stage_widths: in place of these: of each stage, the multipliers of its channels.
        blocks: of basic and bottleneck; what the line has at the depth, if there are none here.
        stems: of imagenet and cifar; the line's own, if there are none here.
        norms: of batch, group and group:G, of G groups.
        activations: of relu, silu, gelu and softplus.
        se: squeeze-and-excitation, of none and relu.
        denoise: feature denoising after every stage, of none, gaussian and dot.
        se_reduction: number of channels that share one inside squeeze-and-excitation (arXiv:1709.01507 has 16).

    Raises:
        InputError: for an option that there is not, none or twice the same, a depth that no split reaches, or channels
            that groups do not divide.
    """

    name: str
    net: str = "resnet"
    depths: tuple[int, ...] = ()
    splits: tuple[str, ...] = ()
    stage_depths: tuple[tuple[int, ...], ...] = ()
    widths: tuple[float, ...] = ()
    stage_widths: tuple[tuple[float, ...], ...] = ()
    blocks: tuple[str, ...] = ()
    stems: tuple[str, ...] = ()
    norms: tuple[str, ...] = ("batch",)
    activations: tuple[str, ...] = ("relu",)
    se: tuple[str, ...] = ("none",)
    denoise: tuple[str, ...] = ("none",)
    se_reduction: int = 16

    def __post_init__(self) -> None:
        check_net(self.net)
        if bool(self.depths) == bool(self.stage_depths) or (self.stage_depths and self.splits):
            raise InputError(
                "space.depths, maybe with splits, or space.stage_depths must list the depths, and one alone."
            )
        if self.widths and self.stage_widths:
            raise InputError("space.widths or space.stage_widths must list the widths, and not both.")
        if self.se_reduction < 1:
            raise InputError(f"space.se_reduction must be at least 1, but got {self.se_reduction}.")
        for key in ("stage_depths", "stage_widths"):
            if (found := len(getattr(self, key))) not in (0, len(NETS[self.net].base)):
                raise InputError(
                    f"space.{key} must have a list of options for each of the {len(NETS[self.net].base)} stages of "
                    f"{self.net}, but got {found}."
                )
        for key in ("norms", "activations", "se", "denoise"):
            check_options(key, getattr(self, key))
        for key in ("depths", "splits", "widths", "blocks", "stems"):
            if options := getattr(self, key):
                check_options(key, options)
        for key in ("stage_depths", "stage_widths"):
            for stage, options in enumerate(getattr(self, key)):
                check_options(f"{key}[{stage}]", options)
        for values in self._telling():
            self.decided(values)

    @property
    def decisions(self) -> dict[str, tuple[str, ...]]:
        """Depth and width, in whole or stage by stage, and what all blocks have in common."""
        found: dict[str, Sequence[object]] = {"depth": self.depths, "split": self.splits}
        found |= {f"blocks {stage}": own for stage, own in enumerate(self.stage_depths, start=1)}
        found |= {"width": list(map(width_text, self.widths))}
        found |= {f"width {stage}": list(map(width_text, own)) for stage, own in enumerate(self.stage_widths, start=1)}
        found |= {"block": self.blocks, "stem": self.stems, "norm": list(map(norm_text, self.norms))}
        found |= {"activation": self.activations, "se": self.se, "denoise": self.denoise}
        return {name: tuple(map(str, options)) for name, options in found.items() if options}

    @property
    def sizes(self) -> tuple[str, ...]:
        """The decisions of depth and width."""
        return tuple(name for name in self.decisions if name.split()[0] in ("depth", "blocks", "width"))

    @property
    def unshared(self) -> dict[str, tuple[str, ...]]:
        """The keys that list several options beside those of depth and width; `blocks` too, where depth decides it."""
        keys = ("splits", "stems", "norms", "activations", "se", "denoise")
        ends = (extreme(self, self.decisions, choose) for choose in (min, max))
        blocks = tuple(dict.fromkeys(end.parts["block"] for end in ends))
        found = {"blocks": self.blocks or blocks, **{key: getattr(self, key) for key in keys}}
        return {key: options for key, options in found.items() if len(options) > 1}

    def shared_names(self, architecture: AnyArchitecture) -> dict[str, str]:
        """Return the names of denoising, which is behind the last block of a stage."""
        assert isinstance(architecture, ResNetArchitecture)
        if architecture.denoise == "none":
            return {}
        stages = enumerate(architecture.stages, start=1)
        return {f"layer{stage}.{depth}": f"layer{stage}.denoising" for stage, depth in stages}

    def _telling(self) -> Iterator[list[str]]:
        """Yield values of the decisions among which there is one for every mistake that some of them make together.

        Depth, split and block may disagree, and so may a width and the norm; all others are of one value each.
        """
        first = {name: values[0] for name, values in self.decisions.items()}
        together = [name for name in first if name in ("depth", "split", "block")]
        for chosen in itertools.product(*(self.decisions[name] for name in together)):
            yield list({**first, **dict(zip(together, chosen, strict=True))}.values())
        for name, norm in itertools.product(first, self.decisions["norm"]):
            for value in self.decisions[name]:
                yield list({**first, "norm": norm, **({} if name == "norm" else {name: value})}.values())

    def parse(self, text: str) -> ResNetArchitecture:
        """Read an architecture of this space.

        Raises:
            InputError: if it is malformed, or of another line, or has what the space has not.
        """
        architecture = ResNetArchitecture.parse(text)
        if architecture.net != self.net:
            raise InputError(
                f"The architectures of {self.name} are of {self.net}, but '{text}' is of {architecture.net}."
            )
        checked = self._checked(architecture)
        ours = self.decided(self.decisions_of(checked))
        for key, own in ours.parts.items():
            if own != checked.parts[key]:
                raise InputError(
                    f"The {key} of an architecture of {self.name} is {own} here, but '{text}' has {checked.parts[key]}."
                )
        return checked

    def decided(self, values: Sequence[str]) -> ResNetArchitecture:
        """Return the architecture of the values of `decisions`."""
        found = dict(zip(self.decisions, values, strict=True))
        options = {key: found[key] for key in ("block", "stem", "norm", "activation", "se", "denoise") if key in found}
        stages = range(1, len(NETS[self.net].base) + 1)
        widths: Sequence[float] = parse_widths(found.get("width", "1")) * len(stages)
        if self.stage_widths:
            widths = [parse_widths(found[f"width {stage}"])[0] for stage in stages]
        if self.depths:
            return ResNetArchitecture.of_depth(
                self.net, int(found["depth"]), widths, split=found.get("split", ""), **options
            )
        blocks = tuple(int(found[f"blocks {stage}"]) for stage in stages)
        return ResNetArchitecture.of_stages(self.net, blocks, widths, **options)

    def decisions_of(self, architecture: AnyArchitecture) -> tuple[str, ...]:
        """Return the values of `decisions` that make an architecture."""
        assert isinstance(architecture, ResNetArchitecture)
        parts = architecture.parts
        found = {"depth": parts["depth"], "split": self._split_of(architecture)}
        found |= {"width": parts["width"] if len(set(architecture.widths)) > 1 else width_text(architecture.widths[0])}
        for stage, (blocks, width) in enumerate(zip(architecture.stages, architecture.widths, strict=True), start=1):
            found |= {f"blocks {stage}": str(blocks), f"width {stage}": width_text(width)}
        found |= {key: parts[key] for key in ("block", "stem", "activation", "se", "denoise")}
        found["norm"] = norm_text(architecture.norm)
        return tuple(found[name] for name in self.decisions)

    def _split_of(self, architecture: ResNetArchitecture) -> str:
        """Return the first rule here that makes an architecture's stages; they themselves, if none does."""
        blocks, stages = sum(architecture.stages), len(architecture.stages)
        made = (rule for rule in self.splits if split(rule, blocks, stages) == architecture.stages)
        return next(made, architecture.parts["blocks"])

    def network(self, architecture: AnyArchitecture, data: NetworkData, *, affine: bool = True) -> ResNet:
        """Return the architecture's network; `affine=False` gives normalisation without weights of its own."""
        from robust_nas.spaces.resnet.network import ResNet

        assert isinstance(architecture, ResNetArchitecture)
        network = ResNet(architecture, data, self.se_reduction, affine)
        network.built_from = BuiltFrom.of(self, architecture, data)
        return network

    def source(self, architecture: AnyArchitecture, data: DataForm) -> NetworkSource:
        """Return what `network` builds, as code."""
        from robust_nas.spaces.resnet.source import source

        assert isinstance(architecture, ResNetArchitecture)
        return source(architecture, data, self.se_reduction)
