"""Pieces of the Python modules that networks are written as: `NetworkSource` has the whole."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

WIDTH = 112
"""Characters of a line inside a method, which is indented by 8."""

RELU_CONV_BN = '''
class ReLUConvBN(nn.Sequential):
    """ReLU, convolution, batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(out_channels),
        )
'''

AVERAGE_POOL = "nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)"


def convolution(
    before: int | str, after: int | str, kernel: int = 3, stride: int | str = 1, *, bias: bool = False
) -> str:
    """Return the call of a convolution that keeps the resolution, or divides it by its stride.

    Numbers may be names of arguments.
    """
    parts = [str(before), str(after), str(kernel)]
    parts += [f"stride={stride}"] if stride != 1 else []
    parts += [f"padding={kernel // 2}"] if kernel > 1 else []
    return f"nn.Conv2d({', '.join(parts)}{'' if bias else ', bias=False'})"


def sequential(name: str, modules: Sequence[str]) -> list[str]:
    """Return the statement that makes modules follow each other; equal neighbours share a line."""
    return [f"self.{name} = nn.Sequential(", *(f"    {line}," for line in in_runs(modules)), ")"]


def in_runs(modules: Sequence[str]) -> list[str]:
    """Return the items of a list of modules, in which three or more equal neighbours are one item."""
    lines = []
    for module, run in itertools.groupby(modules):
        count = len(list(run))
        lines += [f"*[{module} for _ in range({count})]"] if count > 2 else [module] * count
    return lines


def summed(start: str, terms: Sequence[str]) -> list[str]:
    """Return the statement of a sum, in several lines if it is long; it begins with "return" or "node_2 ="."""
    line = f"{start} {' + '.join(terms)}"
    if len(line) <= WIDTH:
        return [line]
    return [f"{start} (", f"    {terms[0]}", *(f"    + {term}" for term in terms[1:]), ")"]


def with_used(library: Mapping[str, str], own: str, calls: Sequence[str] = ()) -> str:
    """Return the classes of an architecture, behind those of a library that they or calls elsewhere use.

    Args:
        library: classes and functions by name; a later one may use earlier ones.
        own: the classes.
        calls: the calls.
    """
    used = [own]
    for name, text in reversed(list(library.items())):
        if re.search(rf"\b{name}\(", "\n".join([*used, *calls])):
            used.insert(0, text)
    return "\n\n".join(text.strip("\n") + "\n" for text in used)


def indented(lines: Sequence[str], depth: int) -> str:
    """Return lines of code at a depth of blocks."""
    return "\n".join(" " * 4 * depth + line if line else "" for line in lines)
