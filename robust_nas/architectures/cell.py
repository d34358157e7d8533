"""Architectures of cell spaces: the string form, the digits form, and the test that two of them compute the same
function.

A cell is a complete directed acyclic graph: node 0 is the input, every later node is the sum of one operation applied
to each earlier node, and the last node is the output (NAS-Bench-201, arXiv:2001.00326, section 2.1). This module
imports neither torch nor anything slow.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from robust_nas.architectures import AnyArchitecture
from robust_nas.core.checks import check_type
from robust_nas.core.errors import InputError, suggest

if TYPE_CHECKING:
    import networkx

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The operations of cells, NAS-Bench-201's; an operation's digit is its place in this list."""


def edges_of(num_nodes: int) -> list[tuple[int, int]]:
    """Return a cell's (source, target) pairs in the string form's order: 0-1, 0-2, 1-2, 0-3, 1-3, 2-3, ..."""
    return [(source, target) for target in range(1, num_nodes) for source in range(target)]


@dataclass(frozen=True, order=True, repr=False)
class Architecture(AnyArchitecture):
    """A cell: one operation's name per edge, in the order of `edges_of`.

    Raises:
        InputError: if the number of operations fits no cell.
    """

    operations: tuple[str, ...]

    form = "|nor_conv_3x3~0|+|skip_connect~0|none~1|, or the digits of its operations, 310"

    def __post_init__(self) -> None:
        nodes = self.num_nodes
        if len(self.operations) != nodes * (nodes - 1) // 2 or nodes < 2:
            raise InputError(
                f"A cell of n nodes has n (n - 1) / 2 edges (1, 3, 6, ...), but got {len(self.operations)} operations."
            )

    @classmethod
    def recognises(cls, text: str) -> bool:
        stripped = text.strip()
        return "~" in stripped or (stripped.isascii() and stripped.isdigit())

    @classmethod
    def parse(cls, text: str, operations: Sequence[str] = OPERATIONS) -> Architecture:
        """Read the string form `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`, or the digits form `323133`.

        Args:
            text: either form.
            operations: the names allowed; digits count in this list.

        Raises:
            InputError: naming the malformed part, the missing edge or the unknown operation.
        """
        check_type("An architecture", text, str, "a text such as |op~0|+|op~0|op~1|, or digits")
        text = text.strip()
        if text.isascii() and text.isdigit():
            unknown = sorted({digit for digit in text if int(digit) >= len(operations)})
            if unknown:
                raise InputError(
                    f"The architecture '{text}' has the digit {unknown[0]}, but the operations are "
                    f"{', '.join(f'{index} {name}' for index, name in enumerate(operations))}."
                )
            return cls(tuple(operations[int(digit)] for digit in text))
        found: list[str] = []
        for target, node in enumerate(text.split("+"), start=1):
            parts = node.strip().removeprefix("|").removesuffix("|").split("|")
            if not (node.strip().startswith("|") and node.strip().endswith("|")):
                raise InputError(
                    f"The architecture '{text}' is malformed at '{node}': a node is written |operation~source|...|, "
                    "and nodes are joined by '+'."
                )
            for source, part in itertools.zip_longest(range(target), parts):
                match = re.fullmatch(r"(\w+)~(0|[1-9][0-9]*)", part or "")
                if part is None or source is None or match is None or int(match[2]) != source:
                    wanted = (
                        f"edge {source}-{target}" if source is not None else f"only {target} edges into node {target}"
                    )
                    raise InputError(
                        f"The architecture '{text}' must have {wanted}, but got '{part or 'nothing'}' there."
                    )
                if match[1] not in operations:
                    raise InputError(
                        f"The architecture '{text}' has the unknown operation '{match[1]}' on edge {source}-{target}. "
                        f"{suggest(match[1], operations)}"
                    )
                found.append(match[1])
        return cls(tuple(found))

    @classmethod
    def parse_with(cls, text: str, operations: Sequence[str]) -> Architecture:
        return cls.parse(text, operations)

    @classmethod
    def enumerate(cls, num_nodes: int = 4, operations: Sequence[str] = OPERATIONS) -> Iterator[Architecture]:
        """Yield every architecture of a cell space, the last edge varying fastest."""
        for choice in itertools.product(operations, repeat=len(edges_of(num_nodes))):
            yield cls(choice)

    @property
    def num_nodes(self) -> int:
        """The number of nodes, input included."""
        return round((1 + (1 + 8 * len(self.operations)) ** 0.5) / 2)

    @property
    def edges(self) -> list[tuple[int, int, str]]:
        """The (source, target, operation) triples."""
        pairs = edges_of(self.num_nodes)
        return [(source, target, name) for (source, target), name in zip(pairs, self.operations, strict=True)]

    def __str__(self) -> str:
        nodes = range(1, self.num_nodes)
        return "+".join("|" + "".join(f"{op}~{i}|" for i, j, op in self.edges if j == node) for node in nodes)

    def digits(self, operations: Sequence[str] = OPERATIONS) -> str:
        """Return the digits form: each operation's place in `operations`, edge by edge."""
        return "".join(str(operations.index(name)) for name in self.operations)

    def short(self, operations: Sequence[str]) -> str:
        """Return the digits form, or the string form where there are more operations than digits."""
        return str(self) if len(operations) > 10 else self.digits(operations)

    def describe(self) -> str:
        """Return the forms, the edges, and how many cells compute the same."""
        lines = [
            f"string     {self}",
            f"digits     {self.digits()}  ({', '.join(f'{i} {name}' for i, name in enumerate(OPERATIONS))})",
            f"canonical  {self.canonical}",
            *(f"edge {i}-{j}   {name}" for i, j, name in self.edges),
        ]
        if self.num_nodes == 4:
            size = sum(other.is_equivalent(self) for other in Architecture.enumerate())
            lines.append(
                f"class      {size} of the 15625 strings compute this function when corresponding parameters are equal"
            )
        if not self.is_connected:
            lines.append("caution    no path from input to output: the network's output is constant")
        return "\n".join(lines)

    @cached_property
    def edge_terms(self) -> tuple[str, ...]:
        """The contribution of each edge, as an expression in the cell's input: '#' for zero, the source for a skip.

        Equal expressions compute equal functions when their corresponding parameters are equal. A convolution of a zero
        node counts as zero too, as in NAS-Bench-201; networks are built without it (`pruned`).
        """
        nodes, terms = ["0"], []
        for target in range(1, self.num_nodes):
            incoming = []
            for source, name in ((i, op) for i, j, op in self.edges if j == target):
                if name == "none" or nodes[source] == "#":
                    term = "#"
                else:
                    term = nodes[source] if name == "skip_connect" else f"({nodes[source]})@{name}"
                incoming.append(term)
            terms += incoming
            nodes.append("+".join(sorted(incoming)))
        return tuple(terms)

    @cached_property
    def canonical(self) -> str:
        """The output node's expression: equal for architectures that NAS-Bench-201 counts as one.

        A node's expression is the sorted sum of its edges' (`edge_terms`); over the 15,625 strings this gives exactly
        6,466 classes (NAS-Bench-201's isomorphism that knows of zero and skip).
        """
        return "+".join(sorted(self.edge_terms[-(self.num_nodes - 1) :]))

    @cached_property
    def function(self) -> str:
        """The functions that a network trained with this very string can compute, simplified beyond `canonical`.

        Zero terms are dropped, a skip of a sum is the sum's terms, and the batch norm after a convolution of zero,
        which NAS-Bench-201's networks keep, leaves a trainable constant, 'K', that absorbs other constants and passes
        through pooling and 1x1 convolutions (not 3x3 ones, which see the zero padding at the border). Equal expressions
        mean equal families of functions: trainings of two such architectures differ by chance alone, which makes them a
        measure of noise. Of the 6,466 published representatives 5,006 differ in it.
        """
        nodes: list[tuple[str, ...]] = [("0",)]
        for target in range(1, self.num_nodes):
            terms: list[str] = []
            for source, name in ((i, op) for i, j, op in self.edges if j == target and op != "none"):
                inner = nodes[source]
                if name == "skip_connect":
                    terms += inner
                elif (not inner and "conv" in name) or (inner == ("K",) and name != "nor_conv_3x3"):
                    terms.append("K")
                elif inner:
                    terms.append(f"({'+'.join(inner)})@{name}")
            constant = ["K"] if "K" in terms else []
            nodes.append(tuple(sorted(term for term in terms if term != "K") + constant))
        return "+".join(nodes[-1])

    @cached_property
    def pruned(self) -> Architecture:
        """The same function with `none` on every edge that counts as zero or does not lead to the output."""
        alive = {self.num_nodes - 1}
        for source, target, name in reversed(self.edges):
            if target in alive and name != "none":
                alive.add(source)
        kept = zip(self.edges, self.edge_terms, strict=True)
        return Architecture(
            tuple(name if target in alive and term != "#" else "none" for (_, target, name), term in kept)
        )

    @property
    def family(self) -> str:
        """The `function` of its networks, which are built without edges that `function` still sees (`pruned`)."""
        return self.pruned.function

    @property
    def is_connected(self) -> bool:
        """Whether the output depends on the input: not every path has a `none` on it."""
        return "0" in self.canonical

    def is_equivalent(self, other: Architecture) -> bool:
        """Whether both compute the same function when their corresponding parameters are equal."""
        return self.canonical == other.canonical

    def graph(self) -> networkx.DiGraph:
        """Return the cell as a networkx graph; each edge has the attribute `operation`."""
        import networkx

        graph = networkx.DiGraph()
        graph.add_nodes_from(range(self.num_nodes))
        graph.add_edges_from((i, j, {"operation": name}) for i, j, name in self.edges)
        return graph
