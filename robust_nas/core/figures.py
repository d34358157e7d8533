"""Figures: their style, and the plain ones that results draw of themselves; matplotlib is imported to draw one."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from robust_nas.core.palette import HUES, LIGHT
from robust_nas.core.text import shortened, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

CLEAN, ATTACKED, CERTIFIED = LIGHT["clean"], LIGHT["attacked"], LIGHT["certified"]  # the marker differs as well
INK, MUTED, DIM, RULE, PAPER = LIGHT["ink"], LIGHT["muted"], LIGHT["dim"], LIGHT["rule"], LIGHT["paper"]
CURVES: dict[str, tuple[str, str, str, Any]] = {
    "clean": ("clean", CLEAN, "", "-"),
    "robust": ("under attack", ATTACKED, "8 3", (0, (5, 1.5))),
    "certified": ("certified by intervals", CERTIFIED, "2 2", (0, (1.2, 1.2))),
}
"""The legend's name of each validation accuracy, its colour, and its dashes for SVG and for matplotlib."""

_STYLE: Any = {
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "svg.fonttype": "none",  # text stays text: the page's font, searchable, small
    "svg.hashsalt": "robust-nas",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # for the layout only; the page sets the font
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": DIM,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Make a function draw in the page's style, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context(), warnings.catch_warnings():
            # Not what a file in the current folder says, where matplotlib looks for settings: it could ask for LaTeX.
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            # Of other scripts' letters: the page shows them in the reader's font.
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            return draw(*args, **kwargs)

    return in_style


def figure_of(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of a size in pixels of the page, and its axes."""
    from matplotlib.figure import Figure

    # One point is one pixel at 72 dots per inch, so that a font of 10 points is one of 10 pixels.
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    return figure, figure.subplots()


def fraction_axis(axes: Axes) -> None:
    """Make the vertical axis one of fractions, written in percent."""
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])


def logarithmic_axis(axes: Axes, places: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with a tick at each of the ascending places that has room."""
    ticks = list(places[:1])
    for place in places[1:]:
        if place >= 1.8 * ticks[-1]:
            ticks.append(place)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
    axes.set_xticks([], minor=True)


LINES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (3, 1, 1, 1)), (0, (7, 2)))
"""The styles of lines, one after the other, for those who cannot tell the colours."""


@functools.cache
def _notebook_figure() -> type[Figure]:
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that a notebook shows, whether pyplot is there or not, and that pyplot does not show again."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png")
            return buffer.getvalue()

    return NotebookFigure


def own_figure(width: float, height: float) -> Figure:
    """Return an empty figure on white paper, of a size in inches; it belongs to its caller, and pyplot has none."""
    return _notebook_figure()(figsize=(width, height), dpi=110, layout="constrained", facecolor=LIGHT["paper"])


def _label(text: str) -> str:
    return shortened(visible(text), 32)


@styled
def interval_plot(rows: Sequence[tuple[str, float, float, float, str]], title: str) -> Figure:
    """Draw accuracies with their intervals, a row each: label, accuracy, low, high and the colour."""
    figure = own_figure(6, 1.1 + 0.32 * len(rows))
    axes = figure.subplots()
    for place, (_, accuracy, low, high, colour) in enumerate(rows):
        # An interval may leave out its accuracy by a rounding.
        sides = [[max(accuracy - low, 0.0)], [max(high - accuracy, 0.0)]]
        axes.errorbar(accuracy, place, xerr=sides, fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(rows)), [_label(label) for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.set_title(visible(title), loc="left")
    return figure


Line = tuple[Sequence[float], Sequence[float], str]
"""A line's places, its values and its colour."""


@styled
def line_plot(
    lines: Mapping[str, Line],
    title: str,
    below: str,
    *,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    marked: float | None = None,
    whole: bool = False,
    logarithmic: bool = False,
) -> Figure:
    """Draw fractions as lines with a legend.

    Args:
        lines: by their names.
        title: above the figure.
        below: the horizontal axis.
        bands: the lower and upper ends of lines' intervals.
        marked: a place on the horizontal axis.
        whole: whether places are whole numbers.
        logarithmic: whether the horizontal axis is; ticks are then at the places themselves, or some of them.
    """
    figure = own_figure(6, 3.4)
    axes = figure.subplots()
    for place, (name, (across, up, colour)) in enumerate(lines.items()):
        marker = "o" if len(across) < 30 else None
        axes.plot(across, up, color=colour, linestyle=LINES[place % len(LINES)], marker=marker, label=visible(name))
        if bands and name in bands:
            axes.fill_between(across, *bands[name], color=colour, alpha=0.15, linewidth=0)
    if marked is not None:
        axes.axvline(marked, color=DIM, linewidth=1, zorder=0)
    fraction_axis(axes)
    if whole:
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    if logarithmic:
        logarithmic_axis(axes, sorted({place for across, *_ in lines.values() for place in across}))
    axes.set_xlabel(visible(below))
    axes.set_title(visible(title), loc="left")
    axes.legend(frameon=False)
    return figure


@styled
def matrix_plot(values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str) -> Figure:
    """Draw probabilities [rows][columns] as darker and lighter cells with their numbers."""
    figure = own_figure(1.5 + 0.95 * len(columns), 1.2 + 0.32 * len(rows))
    axes = figure.subplots()
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, numbers in enumerate(values):
        for column, number in enumerate(numbers):
            colour = PAPER if number > 0.6 else INK
            axes.text(column, row, f"{number:.2f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(columns)), [visible(name) for name in columns], rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [visible(name) for name in rows])
    axes.grid(visible=False)
    axes.set_title(visible(title), loc="left")
    return figure


@styled
def bar_plot(values: Mapping[str, float], title: str) -> Figure:
    """Draw shares as bars, a row each."""
    figure = own_figure(6, 1.1 + 0.32 * len(values))
    axes = figure.subplots()
    axes.barh(range(len(values)), list(values.values()), color=HUES[1], height=0.6)
    axes.set_yticks(range(len(values)), [_label(name) for name in values])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_title(visible(title), loc="left")
    return figure


@styled
def picture_plot(pictures: Sequence[Any], labels: Sequence[str], title: str, columns: int = 8) -> Figure:
    """Draw images [H, W] or [H, W, 3] in [0, 1] in rows, each with its label."""
    across, down = min(columns, max(len(pictures), 1)), max(-(-len(pictures) // columns), 1)
    figure = own_figure(0.9 * across, 0.5 + 1.05 * down)
    for axes, picture, label in zip(figure.subplots(down, across, squeeze=False).flat, pictures, labels, strict=False):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(visible(label), fontsize=8)
    for axes in figure.axes:
        axes.set_axis_off()
    figure.suptitle(visible(title), fontsize=10, x=0.01, ha="left")
    return figure
