"""Drawings of cells, nodes from left to right with the operation's name on each edge, and of stages, as bars."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING

from robust_nas.architectures import AnyArchitecture
from robust_nas.architectures.cell import Architecture
from robust_nas.architectures.genotype import CELLS, Genotype
from robust_nas.architectures.residual import ResidualArchitecture
from robust_nas.architectures.resnet import EXPANSION, ResNetArchitecture
from robust_nas.core.figures import DIM, INK, MUTED, PAPER, figure_of, styled
from robust_nas.core.text import shortened
from robust_nas.report._elements import Html, element
from robust_nas.report.plots import operation_colours, to_svg

if TYPE_CHECKING:
    import networkx

_STEP = 1.0  # from one node to the next
_RADIUS = 0.12


def draw(architecture: AnyArchitecture, operations: Sequence[str], key: str) -> list[Html]:
    """Return the drawings of an architecture's cells or stages, as inline SVG with ids that begin with `key`.

    The output of a genotype's cell, all of its computed nodes, is not drawn. Of architectures with neither, their
    strings say all.
    """
    if stages := stages_of(architecture):
        parts = (f"{blocks} block{'s' * (blocks > 1)} of {channels} channels" for blocks, channels in stages)
        return [_draw_stages(stages, key, f"{len(stages)} stages: {', '.join(parts)}.")]
    if isinstance(architecture, Architecture):
        return [draw_cell(architecture, operations, key, describe_cell(architecture))]
    found: list[Html] = []
    if not isinstance(architecture, Genotype):
        return found
    for cell, title in zip(CELLS, ("Normal cell", "Reduction cell"), strict=True):
        chosen = enumerate(getattr(architecture, cell))
        edges = [(source, 2 + place // 2, operation) for place, (operation, source) in chosen]
        name = f"{title}: {', '.join(f'{operation} from node {i} to node {j}' for i, j, operation in edges)}."
        labels = {0: "k\N{MINUS SIGN}2", 1: "k\N{MINUS SIGN}1"}
        drawing = _draw(edges, labels, {(i, j) for i, j, _ in edges}, operations, f"{key}-{cell}", name)
        found += [element("h4", title), drawing]
    return found


def stages_of(architecture: AnyArchitecture) -> list[tuple[int, int]]:
    """Return the blocks and their output channels of each stage of a residual network; none of any other."""
    if isinstance(architecture, ResidualArchitecture):
        return list(zip(architecture.depths, architecture.widths, strict=True))
    if isinstance(architecture, ResNetArchitecture):
        outputs = (EXPANSION[architecture.block] * own for own in architecture.channels)
        return list(zip(architecture.stages, outputs, strict=True))
    return []


@styled
def _draw_stages(stages: Sequence[tuple[int, int]], key: str, name: str) -> Html:
    """Return stages as bars from left to right, as broad as their blocks and as high as their channels.

    A bar of few blocks beside one of many is broad enough for its number.
    """
    from matplotlib.patches import Rectangle

    most, highest = max(blocks for blocks, _ in stages), max(channels for _, channels in stages)
    figure, axes = figure_of(420, 150)
    left = 0.0
    for stage, (blocks, channels) in enumerate(stages, start=1):
        breadth, height = max(blocks / most, 0.14), channels / highest
        bar = Rectangle((left, 0), breadth, height, facecolor=DIM, edgecolor=INK, linewidth=1, alpha=0.6)
        bar.set_gid(f"stage-{stage}")
        axes.add_patch(bar)
        middle = left + breadth / 2
        axes.text(middle, height + 0.04, str(channels), ha="center", va="bottom", fontsize=11, color=INK)
        axes.text(middle, -0.05, str(blocks), ha="center", va="top", fontsize=11, color=INK)
        left += breadth + 0.02
    axes.text(left + 0.02, -0.05, "blocks", ha="left", va="top", fontsize=10.5, color=MUTED)
    axes.text(
        left + 0.02, stages[-1][1] / highest + 0.04, "channels", ha="left", va="bottom", fontsize=10.5, color=MUTED
    )
    axes.set_xlim(-0.02, left + 0.02)
    axes.set_ylim(-0.25, 1.25)
    axes.axis("off")
    return to_svg(figure, key, name)


def draw_cell(architecture: Architecture, operations: Sequence[str], key: str, name: str) -> Html:
    """Return a cell as inline SVG.

    Edges of `none` are faint and unnamed. An edge that carries nothing to the output (its source gets nothing, or its
    target goes nowhere) is grey. Every other edge is a group with the id `KEY-edge-SOURCE-TARGET`.

    Args:
        architecture: the architecture to draw.
        operations: the space's operations, for the colours.
        key: makes the ids of one figure differ from those of the others on the page.
        name: the figure's name for those who cannot see it.
    """
    labels = {0: "in", architecture.num_nodes - 1: "out"}
    return _draw(architecture.edges, labels, _live_edges(architecture.graph()), operations, key, name)


@styled
def _draw(
    edges: Sequence[tuple[int, int, str]],
    labels: Mapping[int, str],
    live: Container[tuple[int, int]],
    operations: Sequence[str],
    key: str,
    name: str,
) -> Html:
    """Return edges as inline SVG, the nodes from left to right in their order; see `draw_cell`.

    Args:
        edges: (source, target, operation) triples.
        labels: of nodes that are not called by their number.
        live: the edges that are not grey.
    """
    from matplotlib.patches import Circle, FancyArrowPatch

    last = max(target for _, target, _ in edges)
    place = {node: (node * _STEP, 0.0) for node in range(last + 1)}
    colours = operation_colours(operations)
    bends = [_bend(source, target) for source, target, _ in edges]
    left, right, low, high = -0.16, last * _STEP + 0.16, min(*bends, -0.2) - 0.12, max(*bends, 0.2) + 0.12
    width = 145 * last
    figure, axes = figure_of(width, width * (high - low) / (right - left))
    for source, target, operation in edges:
        bend = _bend(source, target)
        is_none = operation == "none"
        is_live = (source, target) in live
        colour = colours[operation] if is_live else DIM
        start, end = place[source], place[target]
        # A quadratic curve whose middle is `bend` above the line: arc3 puts its control point at twice that.
        arrow = FancyArrowPatch(
            start,
            end,
            connectionstyle=f"arc3,rad={-2 * bend / (end[0] - start[0])}",
            arrowstyle="-|>,head_length=5,head_width=2.6",
            shrinkA=_RADIUS * 132,
            shrinkB=_RADIUS * 132,
            color=DIM if is_none else colour,
            linewidth=0.8 if is_none else 1.8,
            linestyle=(0, (1, 3)) if is_none else "-",
            zorder=1,
        )
        arrow.set_gid(f"{'none' if is_none else 'edge'}-{source}-{target}")
        axes.add_patch(arrow)
        if not is_none:
            # A bent edge is broken by its name; a straight one is too short for that, and has it on top.
            middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + (bend or 0.075))
            text = axes.text(
                *middle,
                shortened(operation, 24),
                ha="center",
                va="center",
                fontsize=11,
                color=colour if is_live else MUTED,
                zorder=3,
            )
            text.set_bbox({"boxstyle": "square,pad=0.1", "facecolor": PAPER, "edgecolor": "none"})
    for node, (x, y) in place.items():
        axes.add_patch(Circle((x, y), _RADIUS, facecolor=PAPER, edgecolor=INK, linewidth=1.2, zorder=4))
        label = labels.get(node, str(node))
        axes.text(x, y, label, ha="center", va="center", fontsize=11, color=INK, zorder=5)
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")  # the curves are drawn on paper, their names are placed in these coordinates
    axes.axis("off")
    return to_svg(figure, key, name)


def describe_cell(architecture: Architecture) -> str:
    """Return the cell in words, for those who cannot see the drawing."""
    edges = [f"{name} from node {i} to node {j}" for i, j, name in architecture.edges if name != "none"]
    return f"Cell of {architecture.num_nodes} nodes: {', '.join(edges) or 'no operation on any edge'}."


def _live_edges(graph: networkx.DiGraph) -> set[tuple[int, int]]:
    """Return the edges that carry the cell's input to its output."""
    import networkx

    used = networkx.DiGraph()
    used.add_nodes_from(graph)
    used.add_edges_from(edge for edge in graph.edges if graph.edges[edge]["operation"] != "none")
    reached = {0, *networkx.descendants(used, 0)}
    output = max(graph)
    useful = {output, *networkx.ancestors(used, output)}
    return {(i, j) for i, j in used.edges if i in reached and j in useful}


def _bend(source: int, target: int) -> float:
    """Return the height of an edge's middle above the line of nodes: short edges are straight, longer ones bend more.

    Those from even nodes pass above and those from odd nodes below, so that 0-2 and 1-3 do not cross.
    """
    span = target - source
    if span == 1:
        return 0.0
    return (0.28 * (span - 1) + 0.06 * (span - 2)) * (1 if source % 2 == 0 else -1)
