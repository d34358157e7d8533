"""The figures of a scaling study: error over size with laws, depth and width, accuracy over steps, differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robust_nas.core.figures import DIM, INK, LINES, MUTED, PAPER, RULE, figure_of, styled
from robust_nas.core.palette import HUES, LIGHT, variable
from robust_nas.core.text import shortened
from robust_nas.records.reading import Estimate, OnCurve
from robust_nas.report._elements import Html, element
from robust_nas.report.plots import MARKERS, to_svg
from robust_nas.report.size_plots import in_short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = tuple(HUES[place] for place in (2, 4, 5, 0, 3, 7, 8))
"""Colours of settings, widths or networks by their place; the markers differ as well."""

_SHAPES = {
    "o": '<circle cx="6" cy="6" r="4.2"/>',
    "s": '<rect x="2" y="2" width="8" height="8"/>',
    "^": '<path d="M6 1.6 10.8 10.2H1.2Z"/>',
    "D": '<path d="M6 .8 11.2 6 6 11.2.8 6Z"/>',
    "v": '<path d="M6 10.4 1.2 1.8H10.8Z"/>',
    "<": '<path d="M1.6 6 10.2 1.2V10.8Z"/>',
    ">": '<path d="M10.4 6 1.8 1.2V10.8Z"/>',
}
_MARKERS = tuple(_SHAPES)


def look_of(place: int) -> tuple[str, str]:
    """Return the colour and the marker of the line at a place; those of the first 49 differ."""
    return COLOURS[place % len(COLOURS)], _MARKERS[(place + place // len(COLOURS)) % len(_MARKERS)]


def legend(titles: Sequence[str]) -> Html:
    """Return a legend of lines by their places."""
    items = []
    for place, title in enumerate(titles):
        colour, marker = look_of(place)
        swatch = element("svg", Html(_SHAPES[marker]), viewBox="0 0 12 12", fill=variable(colour), aria_hidden="true")
        items.append(element("li", swatch, title))
    return element("ul", items, class_="legend")


@dataclass(frozen=True)
class Line:
    """Measured errors over a size, and the law that was fitted to them.

    Args:
        place: its colour and marker, in every figure of the page.
        title: its name.
        points: size and error of each network.
        curve: the law; empty where there is none.
        kind: "clean" or "robust", for the colours of a study in which nothing varies.
        joined: whether the points are joined by a thin line, where no law does that.
    """

    place: int
    title: str
    points: Sequence[tuple[float, Estimate]]
    curve: Sequence[OnCurve] = ()
    kind: str | None = None
    joined: bool = False

    @property
    def look(self) -> tuple[str, str]:
        """The colour and the marker."""
        return look_of(self.place) if self.kind is None else MARKERS["attacked" if self.kind == "robust" else "clean"]


@styled
def error_plot(lines: Sequence[Line], below: str, key: str, name: str) -> Html:
    """Return errors over a size: points with their intervals, laws with their bands, dashed beyond the largest size.

    Args:
        lines: with a point at least in one of them.
        below: the size in words.
        key: makes the ids of one figure differ from those of the others on the page.
        name: the figure's name for those who cannot see it.
    """
    figure, axes = figure_of(420, 270)
    for line in lines:
        colour, marker = line.look
        for size, error in line.points:
            if error.low is not None and error.high is not None:
                axes.plot([size, size], [error.low, error.high], color=colour, linewidth=1.2, zorder=2)
            axes.plot([size], [error.value], color=colour, marker=marker, markersize=6, linestyle="none", zorder=3)
        if line.joined and not line.curve:
            ordered = sorted((size, error.value) for size, error in line.points)
            axes.plot(*zip(*ordered, strict=True), color=colour, linewidth=0.8, zorder=1)
        within = [point for point in line.curve if not point.beyond]
        after = [*within[-1:], *(point for point in line.curve if point.beyond)]
        for part, dashes in ((within, "-"), (after if len(after) > 1 else [], (0, (4, 2)))):
            if not part:
                continue
            sizes = [point.size for point in part]
            axes.plot(sizes, [point.error.value for point in part], color=colour, linestyle=dashes, linewidth=1.5)
            if all(point.error.low is not None and point.error.high is not None for point in part):
                low, high = ([getattr(point.error, end) for point in part] for end in ("low", "high"))
                axes.fill_between(sizes, low, high, color=colour, alpha=0.12, linewidth=0)
    sizes = [size for line in lines for size, _ in line.points] + [point.size for line in lines for point in line.curve]
    _size_axis(axes, sizes, below)
    ends = [end for line in lines for _, error in line.points for end in _ends(error)]
    # A band beyond the data may be so wide that it would press all points to a line.
    reach = [point.error.value for line in lines for point in line.curve]
    least, most = min([*ends, *reach]), max([*ends, *reach])
    margin = max(0.12 * (most - least), 0.005)
    axes.set_ylim(max(least - margin, -0.005), min(most + margin, 1.02))
    _percent_axis(axes)
    return to_svg(figure, key, name)


def _ends(error: Estimate) -> list[float]:
    return [error.value if end is None else end for end in (error.low, error.high)]


def _size_axis(axes: Axes, sizes: Sequence[float], below: str) -> None:
    """Make the horizontal axis one of sizes, logarithmic, with ticks that can be read."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    smallest, largest = min(sizes), max(sizes)
    axes.set_xscale("log")
    share = max((largest / smallest) ** 0.06, 1.05)
    axes.set_xlim(smallest / share, largest * share)
    if below in ("depth", "width") and len({*sizes}) <= 6:
        axes.xaxis.set_major_locator(FixedLocator(sorted({*sizes})))
    elif largest < 2 * smallest:
        axes.xaxis.set_major_locator(FixedLocator([smallest, largest]))
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if largest < 100 * smallest else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: in_short(size)))
    axes.set_xlabel(below)


def _percent_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda share, _: f"{100 * share:.4g} %" if -1e-9 <= share < 1.001 else "")
    )


@styled
def grid_plot(
    depths: Sequence[int], widths: Sequence[str], errors: Sequence[Sequence[float | None]], key: str, name: str
) -> Html:
    """Return errors by width (rows) and depth (columns) as shaded cells with numbers in percent, the darkest the least.

    Args:
        depths: ascending.
        widths: ascending, as they are written.
        errors: [widths][depths]; None where nothing finished.
        key: makes the ids of one figure differ from those of the others on the page.
        name: the figure's name for those who cannot see it.
    """
    from matplotlib.patches import Rectangle

    longest = max(map(len, widths))
    figure, axes = figure_of(60 + 6 * longest + 56 * len(depths), 70 + 34 * len(widths))
    known = [error for row in errors for error in row if error is not None]
    low, high = min(known), max(known)
    for row, of_width in enumerate(errors):
        for column, error in enumerate(of_width):
            if error is not None:
                # The shade is the colour's opacity, which does for white and for dark paper.
                shade = 0.1 + 0.85 * (high - error) / (high - low) if high > low else 0.5
                place: dict[str, Any] = {"facecolor": LIGHT["right"], "alpha": shade, "linewidth": 0, "zorder": 0.5}
                axes.add_patch(Rectangle((column, row), 1, 1, **place))
            axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=RULE, linewidth=0.8, zorder=1))
            text = "\N{EN DASH}" if error is None else f"{100 * error:.1f}"
            axes.text(
                column + 0.5, row + 0.52, text, ha="center", va="center", color=INK, fontsize=9.5, in_layout=False
            )
    axes.set_xlim(0, len(depths))
    axes.set_ylim(0, len(widths))
    axes.set_xticks([place + 0.5 for place in range(len(depths))], [str(depth) for depth in depths])
    axes.set_yticks([place + 0.5 for place in range(len(widths))], [shortened(width, 20) for width in widths])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("depth")
    axes.set_ylabel("width")
    return to_svg(figure, key, name)


@styled
def steps_plot(lines: Sequence[tuple[int, Sequence[tuple[int, float]]]], key: str, name: str) -> Html:
    """Return accuracy over the steps of PGD, logarithmic.

    Args:
        lines: place and points (steps, accuracy) of each network.
        key: makes the ids of one figure differ from those of the others on the page.
        name: the figure's name for those who cannot see it.
    """
    figure, axes = figure_of(420, 270)
    for place, points in lines:
        colour, marker = look_of(place)
        dashes = LINES[place // len(COLOURS) % len(LINES)]
        axes.plot(
            *zip(*points, strict=True), color=colour, marker=marker, markersize=4.5, linestyle=dashes, linewidth=1.4
        )
    steps = [float(step) for _, points in lines for step, _ in points if step > 0]
    has_zero = any(step == 0 for _, points in lines for step, _ in points)
    _size_axis(axes, steps, "steps of PGD")
    if has_zero:
        axes.set_xscale("symlog", linthresh=min(steps), linscale=0.4)
        axes.set_xlim(-0.1 * min(steps), max(steps) * 1.2)
        ticks = sorted(
            {0.0, min(steps), *(10.0**power for power in range(5) if min(steps) < 10.0**power < max(steps)), max(steps)}
        )
        axes.set_xticks(ticks, [in_short(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
    accuracies = [accuracy for _, points in lines for _, accuracy in points]
    margin = max(0.1 * (max(accuracies) - min(accuracies)), 0.01)
    axes.set_ylim(max(min(accuracies) - margin, -0.01), min(max(accuracies) + margin, 1.02))
    _percent_axis(axes)
    return to_svg(figure, key, name)


@styled
def difference_plot(rows: Sequence[tuple[str, str, Estimate]], key: str, name: str) -> Html:
    """Return differences of errors in points, a row each, with their intervals around the line of no difference.

    Args:
        rows: title, "clean" or "robust", and the difference.
        key: makes the ids of one figure differ from those of the others on the page.
        name: the figure's name for those who cannot see it.
    """
    titles = list(dict.fromkeys(title for title, _, _ in rows))
    figure, axes = figure_of(420, 56 + 44 * len(titles))
    axes.axvline(0, color=DIM, linewidth=1, zorder=0)
    for index, title in enumerate(titles):
        axes.text(
            0, 0.28 - index, shortened(title, 62), va="center", fontsize=10.5, transform=axes.get_yaxis_transform()
        )
        for shift, kind in ((0.02, "clean"), (-0.14, "robust")):
            for found in [found for own, other, found in rows if (own, other) == (title, kind)]:
                colour, marker = MARKERS["attacked" if kind == "robust" else "clean"]
                height = shift - index
                low, high = (100 * end for end in _ends(found))
                axes.plot([low, high], [height, height], color=colour, linewidth=1.4)
                face = PAPER if found.low is None else colour
                axes.plot(
                    [100 * found.value], [height], color=colour, marker=marker, markerfacecolor=face, markersize=6.5
                )
    axes.set_yticks([])
    axes.set_ylim(-len(titles) + 0.6, 0.5)
    largest = max(0.5, *(abs(100 * end) for _, _, found in rows for end in _ends(found)))
    axes.set_xlim(-1.1 * largest, 1.1 * largest)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("points of error, second minus first")
    return to_svg(figure, key, name)


@styled
def depth_plot(points: Sequence[tuple[int, float]], named: Sequence[str], key: str, name: str) -> Html:
    """Return accuracies over depth: published ones, open and with their names, or those of a study, filled.

    Args:
        points: depth and accuracy.
        named: the networks; empty for those of a study.
        key: makes the ids of one figure differ from those of the others on the page.
        name: the figure's name for those who cannot see it.
    """
    figure, axes = figure_of(420, 230)
    colour, marker = (MUTED, "D") if named else MARKERS["attacked"]
    look: dict[str, Any] = {"marker": marker, "markerfacecolor": PAPER if named else colour, "markeredgewidth": 1.6}
    axes.plot(*zip(*points, strict=True), color=colour, linestyle="none", markersize=7 if named else 5, **look)
    for (depth, accuracy), title in zip(points, named, strict=False):
        axes.annotate(
            f"{title}: {100 * accuracy:.1f} %", (depth, accuracy), (0, 10), textcoords="offset points", ha="center",
            color=INK, fontsize=10,
        )  # fmt: skip
    depths, values = [depth for depth, _ in points], [accuracy for _, accuracy in points]
    _size_axis(axes, depths, "depth")
    if named:
        span = max(depths) / min(depths)
        axes.set_xlim(min(depths) / span**0.35, max(depths) * span**0.35)
    axes.set_ylim(min(values) - 0.02, max(values) + 0.03)
    _percent_axis(axes)
    return to_svg(figure, key, name)
