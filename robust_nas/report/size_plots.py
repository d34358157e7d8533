"""The figure of accuracy over size, with its Pareto front."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from robust_nas.core.figures import DIM, INK, PAPER, figure_of, styled
from robust_nas.core.text import shortened
from robust_nas.report._elements import Html
from robust_nas.report.plots import MARKERS, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in pixels."""

_LONGEST_LABEL = 20
_LETTER, _LINE = 6.4, 13.0  # a letter's width and a line's height, in pixels; of most fonts a little less
_DISTANCES = (9, 16, 24, 34, 46, 60, 76, 94)  # from a point to its name, in pixels, the nearest first
_DIRECTIONS = (
    (1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1),
    (1, 0.5), (1, -0.5), (-1, 0.5), (-1, -0.5), (0.5, 1), (0.5, -1), (-0.5, 1), (-0.5, -1),
)  # fmt: skip


@dataclass(frozen=True)
class Sized:
    """A model's size and accuracy.

    Args:
        title: the model's title.
        size: its number of parameters, or another cost.
        accuracy: a fraction.
        low: the lower end of its 95 % interval.
        high: the upper end.
        on_front: whether it is on the Pareto front.
    """

    title: str
    size: float
    accuracy: float
    low: float
    high: float
    on_front: bool


@styled
def size_plot(
    points: Sequence[Sized], kind: str, key: str, name: str, below: str = "parameters"
) -> tuple[Html, list[str]]:
    """Return accuracy over size with the Pareto front as a staircase, and the titles that found no room in it.

    Args:
        points: of two sizes at least.
        kind: "clean", "attacked" or "certified".
        key: makes the ids of one figure differ from those of the others on the page.
        name: the figure's name for those who cannot see it.
        below: the size in words.
    """
    figure, axes = figure_of(340, 250)
    colour, marker = MARKERS[kind]
    for point in points:
        face = colour if point.on_front else PAPER
        look: dict[str, Any] = {"markersize": 7, "markerfacecolor": face, "markeredgewidth": 1.6, "linestyle": "none"}
        axes.plot([point.size] * 2, [point.low, point.high], color=colour, linewidth=1.2, zorder=2)
        axes.plot([point.size], [point.accuracy], color=colour, marker=marker, zorder=3, **look)
    _axes_of(axes, points, below)
    front = sorted((point.size, point.accuracy) for point in points if point.on_front)
    steps = [*front, (axes.get_xlim()[1], front[-1][1])]
    axes.plot(*zip(*steps, strict=True), color=colour, drawstyle="steps-post", zorder=1, gid="front")
    unnamed = _name_points(figure, axes, points)
    return to_svg(figure, key, name), unnamed


def _axes_of(axes: Axes, points: Sequence[Sized], below: str) -> None:
    """Make the axes hold all points and intervals; sizes that differ much are on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    sizes = [point.size for point in points]
    smallest, largest = min(sizes), max(sizes)
    if largest > 8 * smallest > 0:
        axes.set_xscale("log")
        share = (largest / smallest) ** 0.15
        axes.set_xlim(smallest / share, largest * share)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if largest < 100 * smallest else (1,)))
    else:
        margin = 0.2 * (largest - smallest)
        axes.set_xlim(smallest - margin, largest + margin)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: in_short(size)))
    axes.set_xlabel(below)
    low, high = min(point.low for point in points), max(point.high for point in points)
    margin = max(0.1 * (high - low), 0.02)
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda share, _: f"{100 * share:.4g} %" if -1e-9 <= share < 1.001 else "")
    )


def in_short(size: float) -> str:
    """Return a number of parameters, or operations, as an axis has room for it."""
    for unit, letter in ((1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        # What would be written as 1000 of a unit is 1 of the next.
        if float(f"{size:.4g}") >= unit:
            return f"{size / unit:.4g}{letter}"
    return f"{size:.4g}"


def _name_points(figure: Figure, axes: Axes, points: Sequence[Sized]) -> list[str]:
    """Write each point's name beside it where nothing else is, and return the names that have no room anywhere."""
    figure.draw_without_rendering()  # settles where the axes are
    places = [axes.transData.transform((point.size, point.accuracy)) for point in points]
    markers = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    lines = []
    for point in points:
        (x, low), (_, high) = axes.transData.transform([(point.size, point.low), (point.size, point.high)])
        lines.append((x - 2, low, x + 2, high))
    (front,) = [line for line in axes.lines if line.get_gid() == "front"]
    corners = axes.transData.transform(front.get_xydata())
    for (left, low), (right, high) in pairwise(corners):
        lines += [(left, low - 2, right, low + 2), (right - 2, low, right + 2, high)]
    names: list[Box] = []
    frame, unnamed = axes.get_window_extent().extents, []
    # Those on the front are what a reader looks for: they come first.
    for index in sorted(range(len(points)), key=lambda index: not points[index].on_front):
        title, (x, y) = shortened(points[index].title, _LONGEST_LABEL), places[index]
        # The line to a name may cross intervals, which are thin, but no name and no other point.
        crossed = [other for other in markers if not _meet(markers[index], other)]
        found = next(
            (
                box
                for box in _around(x, y, title)
                if _is_within(box, frame)
                and not any(_meet(box, other) for other in [*markers, *lines, *names])
                and _is_open((x, y), box, [*crossed, *names])
            ),
            None,
        )
        if found is None:
            unnamed.append(points[index].title)
            continue
        names.append(found)
        offset = ((found[0] + found[2]) / 2 - x, (found[1] + found[3]) / 2 - y)
        text = axes.annotate(
            title,
            (points[index].size, points[index].accuracy),
            offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=10,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": DIM, "linewidth": 0.8, "shrinkB": 6}
            if _is_far(found, x, y)
            else None,
            zorder=4,
            gid=f"name-{index}",
        )
        text.set_in_layout(False)
    return unnamed


def _around(x: float, y: float, title: str) -> Iterator[Box]:
    """Yield the boxes around a point in which its title could stand, the best first."""
    width, height = _LETTER * len(title), _LINE
    for distance in _DISTANCES:
        for across, up in _DIRECTIONS:
            # Beside the point, the box is as much of its width to the left as the direction is.
            left = x + across * distance - width * (1 - across) / 2
            bottom = y + up * distance - height * (1 - up) / 2
            yield left, bottom, left + width, bottom + height


def _is_within(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _is_open(point: tuple[float, float], box: Box, others: Sequence[Box]) -> bool:
    """Return whether the way from a point to the middle of a box meets no other box."""
    (x, y), middle = point, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    for step in range(24):
        over, up = x + step / 24 * (middle[0] - x), y + step / 24 * (middle[1] - y)
        if any(_meet((over, up, over, up), other) for other in others):
            return False
    return True


def _is_far(box: Box, x: float, y: float) -> bool:
    """Return whether a box is so far from its point that a line has to lead there."""
    across, up = max(box[0] - x, x - box[2], 0), max(box[1] - y, y - box[3], 0)
    return max(across, up) > _DISTANCES[0] + 1


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
