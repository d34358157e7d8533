"""Genotypes: architectures of the DARTS space (Liu et al. 2019, arXiv:1806.09055), in the form the field writes them.

A genotype has two cells, one that keeps the resolution and one that halves it. A cell's nodes 0 and 1 are the outputs
of the two cells before; every later node is the sum of two operations, each on another earlier node; and the cell's
output is the concatenation of these later nodes. This module imports neither torch nor anything slow.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from robust_nas.architectures import AnyArchitecture
from robust_nas.core.checks import check_type
from robust_nas.core.errors import InputError, suggest

OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The operations of the space; `none` is in mixtures only, no genotype has it."""

CELLS = ("normal", "reduce")
"""The two cells, by the names that genotypes have for them."""

Choice = tuple[str, int]
"""An operation and the node that it is applied to."""

_FORM = (
    "Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6))"
)


def edges_of(num_nodes: int) -> list[tuple[int, int]]:
    """Return a cell's (source, target) pairs, target by target: 0-2, 1-2, 0-3, 1-3, 2-3, ...

    Args:
        num_nodes: nodes that the cell computes; its two inputs are not counted.
    """
    return [(source, target) for target in range(2, 2 + num_nodes) for source in range(target)]


@dataclass(frozen=True, order=True, repr=False)
class Genotype(AnyArchitecture):
    """Two cells: for every computed node in turn, two (operation, source) pairs.

    Args:
        normal: of the cells that keep the resolution.
        reduce: of the cells that halve it.

    Raises:
        InputError: naming the node that is not one.
    """

    normal: tuple[Choice, ...]
    reduce: tuple[Choice, ...]

    form = _FORM

    def __post_init__(self) -> None:
        for cell in CELLS:
            chosen = getattr(self, cell)
            if not chosen or len(chosen) % 2 or len(chosen) != len(self.normal):
                raise InputError(
                    "A genotype has two (operation, source) pairs for each node, and as many nodes in both cells, but "
                    f"got {len(self.normal)} pairs in normal and {len(self.reduce)} in reduce."
                )
            for place, (name, source) in enumerate(chosen):
                target = 2 + place // 2
                where = f"node {target} of the {cell} cell"
                if name not in OPERATIONS[1:]:
                    raise InputError(
                        f"The genotype has the unknown operation '{name}' at {where}. {suggest(name, OPERATIONS[1:])}"
                    )
                if not 0 <= source < target:
                    raise InputError(
                        f"The sources of {where} are nodes 0 to {target - 1}, but the genotype has {source}."
                    )
                if place % 2 and source == chosen[place - 1][1]:
                    raise InputError(f"The two sources of {where} must differ, but the genotype has {source} twice.")

    @classmethod
    def recognises(cls, text: str) -> bool:
        return text.strip().startswith("Genotype(")

    @classmethod
    def parse(cls, text: str) -> Genotype:
        """Read `Genotype(normal=[...], normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6))`.

        The concatenated nodes may be a list as well, `[2, 3, 4, 5]`. Nothing is evaluated.

        Raises:
            InputError: naming the malformed part, or what a genotype cannot have.
        """
        check_type("An architecture", text, str, f"written {_FORM}")
        try:
            call = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise InputError(f"A genotype is written {_FORM}, but got '{_shortened(text)}'.") from None
        wanted = {key for cell in CELLS for key in (cell, f"{cell}_concat")}
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "Genotype":
            raise InputError(f"A genotype is written {_FORM}, but got '{_shortened(text)}'.")
        given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
        if call.args or set(given) != wanted or len(call.keywords) != len(wanted):
            got = ", ".join(given) or "none of these"
            raise InputError(f"A genotype has normal, normal_concat, reduce and reduce_concat by name, but got {got}.")
        genotype = cls(*(_choices(cell, given[cell]) for cell in CELLS))
        nodes = list(range(2, 2 + genotype.num_nodes))
        for cell in CELLS:
            if (joined := _numbers(given[f"{cell}_concat"])) != nodes:
                raise InputError(
                    f"A cell's output is the concatenation of all its nodes, range(2, {2 + len(nodes)}), but "
                    f"{cell}_concat is {ast.unparse(given[f'{cell}_concat']) if joined is None else joined}."
                )
        return genotype

    @property
    def num_nodes(self) -> int:
        """The nodes that each cell computes."""
        return len(self.normal) // 2

    def __str__(self) -> str:
        nodes = f"range(2, {2 + self.num_nodes})"
        cells = (f"{cell}={list(getattr(self, cell))}, {cell}_concat={nodes}" for cell in CELLS)
        return f"Genotype({', '.join(cells)})"

    def describe(self) -> str:
        """Return the string form and the cells, node by node."""
        lines = [f"string     {self}"]
        for cell in CELLS:
            chosen = getattr(self, cell)
            for place in range(0, len(chosen), 2):
                terms = " + ".join(f"{name} of {source}" for name, source in chosen[place : place + 2])
                lines.append(f"{cell} node {2 + place // 2}: {terms}")
        return "\n".join(lines)

    @cached_property
    def canonical(self) -> str:
        """The function of both cells, as expressions in their inputs a and b: equal for genotypes of one function.

        Neither the order of a node's two terms nor the order of nodes matters: what reads the concatenation is a
        convolution over all channels, whose weights can be put in the same order.
        """
        return " / ".join("|".join(sorted(self._terms(getattr(self, cell)))) for cell in CELLS)

    @staticmethod
    def _terms(chosen: Sequence[Choice]) -> list[str]:
        nodes = ["a", "b"]
        for first, second in zip(chosen[::2], chosen[1::2], strict=True):
            nodes.append("+".join(sorted(f"({nodes[source]})@{name}" for name, source in (first, second))))
        return nodes[2:]

    def operations_of(self, operations: Sequence[str] = OPERATIONS) -> list[int | None]:
        """Return each edge's operation as a place in `operations`, None where there is none: normal, then reduce."""
        found: list[int | None] = []
        for cell in CELLS:
            chosen = getattr(self, cell)
            taken = {(source, 2 + place // 2): name for place, (name, source) in enumerate(chosen)}
            found += [operations.index(taken[edge]) if edge in taken else None for edge in edges_of(self.num_nodes)]
        return found


def _choices(cell: str, written: ast.expr) -> tuple[Choice, ...]:
    try:
        value = ast.literal_eval(written)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        value = None
    found: list[Choice] = []
    for pair in value if isinstance(value, list | tuple) else [None]:
        name, source = pair if isinstance(pair, list | tuple) and len(pair) == 2 else (None, None)
        if not isinstance(name, str) or type(source) is not int:
            raise InputError(
                f"A genotype's {cell} is a list of pairs such as ('sep_conv_3x3', 0), but got "
                f"{_shortened(ast.unparse(written) if pair is None else repr(pair))}."
            )
        found.append((name, source))
    return tuple(found)


def _numbers(written: ast.expr) -> list[int] | None:
    """Return the numbers of `range(first, end)` or of a list; None, if it is neither."""
    is_range = isinstance(written, ast.Call) and isinstance(written.func, ast.Name) and written.func.id == "range"
    parts = written.args if isinstance(written, ast.Call) and is_range else getattr(written, "elts", [written])
    numbers = [part.value for part in parts if isinstance(part, ast.Constant) and type(part.value) is int]
    if len(numbers) < len(parts):
        return None
    if not is_range:
        return numbers
    # Not as long as it says: a genotype has no such number of nodes.
    return list(range(*numbers)[:100]) if len(numbers) == 2 else None


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."
