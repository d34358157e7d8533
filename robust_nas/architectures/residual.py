"""Architectures of residual networks as lists of decisions, written `depths=2-3-1 widths=16-32-64 kernel=3 ...`.

This module imports neither torch nor anything slow.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from robust_nas.architectures import AnyArchitecture
from robust_nas.core.checks import check_type
from robust_nas.core.errors import InputError, suggest
from robust_nas.core.text import aligned

CHOICES = {
    "activation": ("relu", "silu", "gelu", "softplus"),
    "norm": ("batch", "group", "instance", "none"),
    "se": ("none", "relu"),
    "block": ("basic", "bottleneck"),
}
"""The decisions between names; all others are between numbers."""

_FORM = "depths=2-3-1 widths=16-32-64 kernel=3 activation=silu norm=batch se=none block=basic stem=16"


@dataclass(frozen=True, order=True, kw_only=True, repr=False)
class ResidualArchitecture(AnyArchitecture):
    """A residual network's decisions, in the order in which they are written.

    Args:
        depths: of each stage, its residual blocks.
        widths: of each stage, its blocks' output channels.
        kernel: pixels a side of the blocks' convolutions (of the middle one, in a bottleneck); odd.
        activation: "relu", "silu", "gelu" or "softplus".
        norm: the normalisation before activations: "batch", "group", "instance" or "none".
        se: the squeeze-and-excitation at the end of every block: "none", or "relu", by the activation inside it.
        block: "basic", two convolutions; or "bottleneck", three, of which the first and the last are of one pixel.
        stem: channels of the first convolution.

    Raises:
        InputError: for a value that is none of these.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    kernel: int
    activation: str
    norm: str
    se: str
    block: str
    stem: int

    form = _FORM

    def __post_init__(self) -> None:
        for key, names in CHOICES.items():
            if getattr(self, key) not in names:
                raise InputError(
                    f"The {key} of a residual network is one of {', '.join(names)}, but got '{getattr(self, key)}'."
                )
        if not self.depths or len(self.depths) != len(self.widths):
            raise InputError(
                f"A residual network has a depth and a width for each stage, but got {len(self.depths)} depths and "
                f"{len(self.widths)} widths."
            )
        for key in ("depths", "widths", "kernel", "stem"):
            check_numbers(f"The {key} of a residual network", key, getattr(self, key))

    @classmethod
    def recognises(cls, text: str) -> bool:
        return text.strip().startswith("depths=")

    @classmethod
    def parse(cls, text: str) -> ResidualArchitecture:
        """Read the form that `str` writes; the keys may be in any order.

        Raises:
            InputError: naming the part that is missing, unknown or malformed.
        """
        check_type("An architecture", text, str, f"written {_FORM}")
        keys, found = [field.name for field in dataclasses.fields(cls)], {}
        for part in text.split():
            key, _, value = part.partition("=")
            if key not in keys or not value:
                raise InputError(
                    f"A residual network is written {_FORM}, but got '{part}'. {suggest(key, keys) if value else ''}"
                )
            if key in found:
                raise InputError(f"A residual network has one {key}, but '{text}' has several.")
            found[key] = value
        if missing := [key for key in keys if key not in found]:
            raise InputError(f"A residual network is written {_FORM}, but '{text}' has no {missing[0]}.")
        numbers = {key: _numbers(key, found.pop(key)) for key in ("depths", "widths", "kernel", "stem")}
        for key in ("kernel", "stem"):
            if len(numbers[key]) != 1:
                raise InputError(f"The {key} of a residual network is one number, but got {len(numbers[key])}.")
        (kernel,), (stem,) = numbers["kernel"], numbers["stem"]
        return cls(depths=numbers["depths"], widths=numbers["widths"], kernel=kernel, stem=stem, **found)

    @property
    def parts(self) -> dict[str, str]:
        """The decisions as they are written."""
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {key: "-".join(map(str, value)) if isinstance(value, tuple) else str(value) for key, value in values}

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.parts.items())

    def describe(self) -> str:
        """Return the string form and the decisions, line by line."""
        return "\n".join([f"string      {self}", *aligned(list(self.parts.items()), left=2)])


def check_numbers(what: str, key: str, value: int | tuple[int, ...]) -> None:
    """Raise InputError unless `value` is one or more numbers that the decision `key` can have.

    Args:
        what: the message's subject.
        key: "depths", "widths", "stem" or "kernel", or a plural of these.
        value: one number, or several.
    """
    for number in value if isinstance(value, tuple) else (value,):
        if key.startswith("kernel") and (number < 3 or number % 2 == 0):
            raise InputError(f"{what} must be odd and at least 3, but got {number}.")
        if number < 1:
            raise InputError(f"{what} must be at least 1, but got {number}.")


def _numbers(key: str, text: str) -> tuple[int, ...]:
    parts = text.split("-")
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise InputError(f"The {key} of a residual network is written in numbers, such as 2-3-1, but got '{text}'.")
    return tuple(int(part) for part in parts)
