"""Architectures of size spaces: each layer's channels, written as NATS-Bench (arXiv:2009.00437) does: 8:16:64:48:32.

This module imports neither torch nor anything slow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from robust_nas.architectures import AnyArchitecture
from robust_nas.core.checks import check_type
from robust_nas.core.errors import InputError


@dataclass(frozen=True, order=True, repr=False)
class ChannelConfiguration(AnyArchitecture):
    """The output channels of each layer: cells, and the reductions between stages.

    Raises:
        InputError: for no layer, or one without channels.
    """

    channels: tuple[int, ...]

    form = "8:16:64:48:32"

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise InputError(f"Layers have 1 channel or more, but got {list(self.channels)}.")

    @classmethod
    def recognises(cls, text: str) -> bool:
        return re.fullmatch(r"\s*\d+(:\d+)+\s*", text) is not None

    @classmethod
    def parse(cls, text: str) -> ChannelConfiguration:
        """Read numbers with colons between them.

        Raises:
            InputError: naming what is no number.
        """
        check_type("An architecture", text, str, "a text such as 8:16:16:32:32")
        parts = [part.strip() for part in text.split(":")]
        for part in parts:
            if not (part.isascii() and part.isdigit() and len(part) < 10):
                raise InputError(
                    f"Sizes are written as numbers of channels, such as 8:16:64:48:32, but '{text}' has '{part}'."
                )
        return cls(tuple(map(int, parts)))

    def __str__(self) -> str:
        return ":".join(map(str, self.channels))

    def describe(self) -> str:
        """Return the string form and the channels, layer by layer."""
        lines = [f"layer {number}  {channels} channels" for number, channels in enumerate(self.channels, start=1)]
        return "\n".join([f"string   {self}", *lines])
