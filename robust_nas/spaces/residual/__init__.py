"""Residual networks whose depths, widths and blocks are decided: the decisions that matter for robustness.

The depth and the width of each stage come from RobustWRN (Huang et al. 2021, arXiv:2110.03825) and RobustResNet (Huang
et al. 2023, arXiv:2212.11005), where those of the last stage can be less. The stem, the kernel, the activation, the
normalisation, squeeze-and-excitation and the kind of block come from the latter, from RobArch (arXiv:2301.03110) and
from Robust Principles (Peng et al. 2023, arXiv:2308.16258).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.residual import CHOICES, ResidualArchitecture, check_numbers
from robust_nas.core.errors import InputError, suggest
from robust_nas.spaces import BuiltFrom
from robust_nas.spaces._decided import Decisions, check_options

if TYPE_CHECKING:
    from robust_nas.datasets import DataForm, NetworkData
    from robust_nas.spaces import NetworkSource
    from robust_nas.spaces.residual.network import ResidualNetwork


@dataclass(frozen=True, kw_only=True)
class ResidualSpace(Decisions):
    """Wide pre-activation residual networks (arXiv:1605.07146) of as many stages as there are lists of depths.

    Every key but the last lists the options of a decision; one option alone decides it.

    Args:
        name: the declaration's name.
        depths: of each stage, the numbers of blocks.
        widths: of each stage, the numbers of channels.
        kernels: of the blocks' convolutions.
        activations: of relu, silu, gelu and softplus.
        norms: of batch, group, instance and none.
        se: squeeze-and-excitation, of none and relu.
        blocks: of basic and bottleneck.
        stems: the first convolution's channels.
        se_reduction: number of channels that share one inside squeeze-and-excitation (arXiv:1709.01507 has 16).

    Raises:
        InputError: for an option that there is not, none or twice the same, or stages without a list.
    """

    name: str
    depths: tuple[tuple[int, ...], ...]
    widths: tuple[tuple[int, ...], ...]
    kernels: tuple[int, ...] = (3,)
    activations: tuple[str, ...] = ("relu",)
    norms: tuple[str, ...] = ("batch",)
    se: tuple[str, ...] = ("none",)
    blocks: tuple[str, ...] = ("basic",)
    stems: tuple[int, ...] = (16,)
    se_reduction: int = 16

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.widths):
            raise InputError(
                "space.depths and space.widths must have one list of options for each stage, but got "
                f"{len(self.depths)} and {len(self.widths)}."
            )
        if self.se_reduction < 1:
            raise InputError(f"space.se_reduction must be at least 1, but got {self.se_reduction}.")
        for key in ("depths", "widths"):
            for stage, options in enumerate(getattr(self, key)):
                check_options(f"{key}[{stage}]", options)
                check_numbers(f"space.{key}[{stage}]", key, options)
        for key in ("kernels", "stems"):
            check_options(key, getattr(self, key))
            check_numbers(f"space.{key}", key, getattr(self, key))
        for key, names in {"activations": "activation", "norms": "norm", "se": "se", "blocks": "block"}.items():
            check_options(key, getattr(self, key))
            for option in getattr(self, key):
                if option not in CHOICES[names]:
                    raise InputError(
                        f"space.{key} must be of {', '.join(CHOICES[names])}, but got '{option}'. "
                        f"{suggest(option, CHOICES[names])}"
                    )

    @property
    def decisions(self) -> dict[str, tuple[str, ...]]:
        """Depth and width of each stage, then what all blocks have in common."""
        stages = range(1, len(self.depths) + 1)
        found: dict[str, Sequence[object]] = {}
        found |= {f"depth {stage}": options for stage, options in zip(stages, self.depths, strict=True)}
        found |= {f"width {stage}": options for stage, options in zip(stages, self.widths, strict=True)}
        found |= {"kernel": self.kernels, "activation": self.activations, "norm": self.norms, "se": self.se}
        found |= {"block": self.blocks, "stem": self.stems}
        return {name: tuple(map(str, options)) for name, options in found.items()}

    @property
    def sizes(self) -> tuple[str, ...]:
        """The decisions of depth and width."""
        return tuple(name for name in self.decisions if name.split()[0] in ("depth", "width"))

    @property
    def unshared(self) -> dict[str, tuple[object, ...]]:
        """The keys that list several options beside those of depth and width."""
        keys = ("kernels", "activations", "norms", "se", "blocks", "stems")
        return {key: options for key in keys if len(options := getattr(self, key)) > 1}

    def shared_names(self, architecture: AnyArchitecture) -> dict[str, str]:
        """Return the blocks' names by stage: their own go through all stages."""
        assert isinstance(architecture, ResidualArchitecture)
        places = [f"{stage}.{place}" for stage, depth in enumerate(architecture.depths) for place in range(depth)]
        return {f"blocks.{number}": f"stages.{place}" for number, place in enumerate(places)}

    def parse(self, text: str) -> ResidualArchitecture:
        """Read an architecture of this space.

        Raises:
            InputError: if it is malformed, or has another number of stages or what the space has not.
        """
        architecture = ResidualArchitecture.parse(text)
        self._check_number(text, "stages", len(architecture.depths), len(self.depths))
        return self._checked(architecture)

    def decided(self, values: Sequence[str]) -> ResidualArchitecture:
        """Return the architecture of the values of `decisions`."""
        stages = len(self.depths)
        depths, widths = values[:stages], values[stages : 2 * stages]
        kernel, activation, norm, se, block, stem = values[2 * stages :]
        return ResidualArchitecture(
            depths=tuple(map(int, depths)),
            widths=tuple(map(int, widths)),
            kernel=int(kernel),
            activation=activation,
            norm=norm,
            se=se,
            block=block,
            stem=int(stem),
        )

    def decisions_of(self, architecture: AnyArchitecture) -> tuple[str, ...]:
        """Return the values of `decisions` that make an architecture."""
        assert isinstance(architecture, ResidualArchitecture)
        return tuple(itertools.chain.from_iterable(part.split("-") for part in architecture.parts.values()))

    def network(self, architecture: AnyArchitecture, data: NetworkData, *, affine: bool = True) -> ResidualNetwork:
        """Return the architecture's network; `affine=False` gives normalisation without weights of its own."""
        from robust_nas.spaces.residual.network import ResidualNetwork

        assert isinstance(architecture, ResidualArchitecture)
        network = ResidualNetwork(architecture, data, self.se_reduction, affine)
        network.built_from = BuiltFrom.of(self, architecture, data)
        return network

    def source(self, architecture: AnyArchitecture, data: DataForm) -> NetworkSource:
        """Return what `network` builds, as code."""
        from robust_nas.spaces.residual.source import source

        assert isinstance(architecture, ResidualArchitecture)
        return source(architecture, data, self.se_reduction)
