"""The figures of outcomes of attacks: accuracies, accuracy over epsilon, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import TYPE_CHECKING, Any

from robust_nas.core.figures import ATTACKED, CLEAN, DIM, INK, MUTED, PAPER, RULE, figure_of, fraction_axis, styled
from robust_nas.core.palette import HUES, LIGHT
from robust_nas.core.pixels import format_pixels
from robust_nas.core.text import shortened
from robust_nas.report._elements import Html
from robust_nas.report.plots import MARKERS, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from robust_nas.records.certification import Certified
    from robust_nas.records.evaluation import Point, StepPoint
    from robust_nas.report._contents import Rated

_MODEL_COLOURS = tuple(HUES[index] for index in (2, 4, 5, 0, 3, 7, 8))
_MODEL_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_WIDTH = 420  # as much as a telephone shows, so that letters stay legible there
_LONGEST_LABEL = 20  # letters beside a line's end or a row
_MOST_NUMBERED = 12  # with more classes, numbers in the cells of a heat map would not be legible


@styled
def overview_plot(rows: Sequence[tuple[str, Mapping[str, Rated]]], key: str, name: str) -> Html:
    """Return a line per model with its clean, worst-case and certified accuracy and their 95 % intervals.

    Args:
        rows: each model's name, and its "clean", "attacked" and "certified" accuracy, as far as there are such.
        key: makes the ids of one figure differ from those of the others on the page.
        name: the figure's name for those who cannot see it.
    """
    figure, axes = figure_of(_WIDTH, 34 + 44 * len(rows))
    for index, (title, values) in enumerate(rows):
        axes.text(0, 0.27 - index, shortened(title, 3 * _LONGEST_LABEL), va="center", fontsize=11.5)
        for shift, (kind, (colour, marker)) in zip((0.1, 0, -0.1), MARKERS.items(), strict=True):
            if item := values.get(kind):
                height = shift - index  # so that clean and certified stay apart where they are equal
                axes.plot([item.low, item.high], [height, height], color=colour, linewidth=1.4)
                axes.plot([item.accuracy], [height], color=colour, marker=marker, markersize=6.5, linestyle="none")
    axes.set_yticks([-index for index in range(len(rows))], [""] * len(rows))
    axes.set_ylim(-len(rows) + 0.65, 0.5)
    axes.set_xlim(-0.01, 1.01)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.spines["left"].set_visible(False)
    return to_svg(figure, key, name)


@dataclass(frozen=True)
class Curve:
    """Accuracy over epsilon of one model in one norm.

    Args:
        place: the model's place among all of the page, which is its colour and marker in every figure.
        title: the model's title.
        points: the accuracy at each radius, ascending.
        worst: the worst case over all attacks, by radius.
    """

    place: int
    title: str
    points: Sequence[Point]
    worst: Mapping[float, float]


@styled
def robustness_plot(curves: Sequence[Curve], threat_epsilons: Sequence[float], key: str, name: str) -> Html:
    """Return accuracy over epsilon of several models in one norm.

    Args:
        curves: one per model; its name stands beside its end.
        threat_epsilons: the threat models' radii, marked by dotted lines.
        key: makes the ids of one figure differ from those of the others on the page.
        name: the figure's name for those who cannot see it.
    """
    height = max(265, 70 + 15 * len(curves))
    figure, axes = figure_of(_WIDTH, height)
    radii = sorted({point.epsilon for curve in curves for point in curve.points})
    largest = max([*radii, *threat_epsilons])
    for epsilon in threat_epsilons:
        axes.axvline(epsilon, color=MUTED, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
    for curve in curves:
        colour, marker = _look_of(curve.place)
        epsilons, accuracies = [point.epsilon for point in curve.points], [point.accuracy for point in curve.points]
        low, high = [point.low for point in curve.points], [point.high for point in curve.points]
        axes.fill_between(epsilons, low, high, color=colour, alpha=min(0.12, 0.4 / len(curves)), linewidth=0)
        axes.plot(epsilons, accuracies, color=colour, marker=marker, clip_on=False, gid=f"model-{curve.place}")
        if curve.worst:
            axes.plot(
                *zip(*sorted(curve.worst.items()), strict=True),
                color=colour,
                marker=marker,
                markersize=8,
                markerfacecolor="none",
                markeredgewidth=1.6,
                linestyle="none",
                clip_on=False,
                gid=f"worst-{curve.place}",
                zorder=4,
            )
    axes.set_xlim(-0.02 * largest, 1.02 * largest)
    fraction_axis(axes)
    ends = [_End(curve.place, curve.title, [point.accuracy for point in curve.points]) for curve in curves]
    lasts = [curve.points[-1].epsilon for curve in curves]
    _name_the_ends(axes, ends, lasts, 1.02 * largest, 1.02 * largest, 14 / (0.8 * height))
    longest = max(len(shortened(curve.title, _LONGEST_LABEL)) for curve in curves)
    ticks = _readable([*threat_epsilons, 0.0, *reversed(radii)], (_WIDTH - 65 - 6 * longest) / largest)
    axes.set_xticks(ticks, [format_pixels(tick) for tick in ticks])
    for tick, label in zip(ticks, axes.get_xticklabels(), strict=True):
        if tick in threat_epsilons:
            label.set(color=INK, fontweight="bold")
    axes.set_xlabel("radius \N{GREEK SMALL LETTER EPSILON}")
    return to_svg(figure, key, name)


@dataclass(frozen=True)
class StepLine:
    """Accuracy over the steps of one ascent, of one model.

    Args:
        place: the model's place among all of the page.
        title: the model's title.
        points: the accuracy after each number of steps, ascending.
    """

    place: int
    title: str
    points: Sequence[StepPoint]


@styled
def steps_plot(lines: Sequence[StepLine], key: str, name: str) -> Html:
    """Return accuracy over the steps of one ascent, of several models at one threat model.

    A solid line counts images that no point so far fools, a dashed one those that the last point does not.

    Args:
        lines: one per model; its name stands beside its end.
        key: makes the ids of one figure differ from those of the others on the page.
        name: the figure's name for those who cannot see it.
    """
    height = max(265, 70 + 15 * len(lines))
    figure, axes = figure_of(_WIDTH, height)
    numbers = sorted({point.steps for line in lines for point in line.points})
    # As logarithms on a linear axis, so that the names have their places beside it.
    first, last = log10(numbers[0]), log10(numbers[-1])
    width = (last - first) or 1.0
    for line in lines:
        colour, marker = _look_of(line.place)
        across, up = [log10(point.steps) for point in line.points], [point.accuracy for point in line.points]
        low, high = [point.low for point in line.points], [point.high for point in line.points]
        axes.fill_between(across, low, high, color=colour, alpha=min(0.12, 0.4 / len(lines)), linewidth=0)
        axes.plot(across, up, color=colour, marker=marker, clip_on=False, gid=f"model-{line.place}")
        at_last = [point.last for point in line.points if point.last is not None]
        if len(at_last) == len(across) and at_last != up:
            axes.plot(across, at_last, color=colour, linestyle=(0, (3, 2)), linewidth=1.1, gid=f"last-{line.place}")
    axes.set_xlim(first - 0.02 * width, last + 0.02 * width)
    fraction_axis(axes)
    ends = [_End(line.place, line.title, [point.accuracy for point in line.points]) for line in lines]
    lasts = [log10(line.points[-1].steps) for line in lines]
    _name_the_ends(axes, ends, lasts, last + 0.02 * width, width, 14 / (0.8 * height))
    ticks = [numbers[0]]
    for number in numbers[1:]:
        if log10(number / ticks[-1]) >= 0.09 * width:
            ticks.append(number)
    axes.set_xticks([log10(tick) for tick in ticks], [f"{tick:,}" for tick in ticks])
    axes.set_xlabel("steps")
    return to_svg(figure, key, name)


@dataclass(frozen=True)
class _End:
    """The accuracies of the model at a place, of whose line the end is named."""

    place: int
    title: str
    accuracies: Sequence[float]


def _name_the_ends(
    axes: Axes, ends: Sequence[_End], lasts: Sequence[float], edge: float, width: float, gap: float
) -> None:
    """Write the models' names to the right of `edge`, beside the lines' ends and at least `gap` apart.

    Args:
        lasts: where each line ends, along the axis, of which `width` is shown.
    """
    # Lines that end together, at 0 say, are named in the order in which they came there.
    ordered = sorted(zip(ends, lasts, strict=True), key=lambda pair: list(reversed(pair[0].accuracies)))
    heights = [end.accuracies[-1] for end, _ in ordered]
    for (end, last), height, beside in zip(ordered, heights, _spread(heights, gap), strict=True):
        colour, marker = _look_of(end.place)
        path = [last, edge, edge + 0.05 * width]
        axes.plot(path, [height, height, beside], color=colour, linewidth=0.8, clip_on=False)
        axes.plot([edge + 0.05 * width], [beside], color=colour, marker=marker, clip_on=False)
        title = shortened(end.title, _LONGEST_LABEL)
        beyond = edge + 0.075 * width
        axes.text(beyond, beside, title, va="center", fontsize=10, color=INK, gid=f"name-{end.place}")


def _look_of(place: int) -> tuple[str, str]:
    """Return the colour and the marker of the model at a place."""
    return _MODEL_COLOURS[place % len(_MODEL_COLOURS)], _MODEL_MARKERS[place % len(_MODEL_MARKERS)]


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return ascending heights at least `gap` apart, in [0, 1] as far as there is room."""
    moved, floor = [], 0.0
    for height in heights:
        moved.append(max(height, floor))
        floor = moved[-1] + gap
    # Labels that now reach over the top push down those below.
    ceiling = max(1.0, gap * (len(heights) - 1))
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def _readable(radii: Sequence[float], pixels: float) -> list[float]:
    """Return those radii, ascending, whose labels leave room for those before them: the first is the most important.

    Args:
        radii: in the order of importance.
        pixels: number of pixels of a radius of 1.
    """
    chosen: list[float] = []
    for radius in radii:
        letters = len(format_pixels(radius))
        needed = {other: 8 + 3.5 * (letters + len(format_pixels(other))) for other in chosen}
        if all(abs(radius - other) * pixels >= room for other, room in needed.items()):
            chosen.append(radius)
    return sorted(chosen)


@styled
def epsilon_plot(
    clean: float | None,
    points: Sequence[Point],
    certificates: Sequence[Certified],
    worst: Rated | None,
    threat_epsilon: float,
    key: str,
    name: str,
) -> Html:
    """Return accuracy over epsilon of one model: clean, under the curve's attack, certified.

    Args:
        clean: the clean accuracy, if it was measured.
        points: the model's accuracies under attack, ascending in the radius.
        certificates: its entry in certification.json.
        worst: the worst case over all attacks at `threat_epsilon`, if it was measured.
        threat_epsilon: the threat's radius, marked by a line.
        key: makes the ids of one figure differ from those of the others on the page.
        name: the figure's name for those who cannot see it.
    """
    figure, axes = figure_of(340, 230)
    curve = [(point.epsilon, point.accuracy) for point in points if point.epsilon > 0]
    proved = [(item.epsilon, item.certified) for item in certificates]
    radii = sorted({epsilon for epsilon, _ in [*curve, *proved, (threat_epsilon, 0)] if epsilon > 0})
    # Certified radii are a hundredth of attacked ones: logarithmic from the smallest on, and linear from there to 0.
    axes.set_xscale("symlog", linthresh=radii[0], linscale=0.35)
    axes.set_xlim(-0.08 * radii[0], radii[-1] * 1.15)
    axes.axvline(threat_epsilon, color=DIM, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
    if clean is not None:
        axes.axhline(clean, color=CLEAN, linewidth=1.2, linestyle=(0, (5, 2)), zorder=1)
        axes.plot([0], [clean], marker="o", color=CLEAN, markersize=6, clip_on=False, zorder=4)
    for drawn, kind in ((curve, "attacked"), (proved, "certified")):
        colour, marker = MARKERS[kind]
        if drawn:
            axes.plot(*zip(*sorted(drawn), strict=True), color=colour, marker=marker, zorder=3)
    if worst:
        spread = [[worst.accuracy - worst.low], [worst.high - worst.accuracy]]
        axes.errorbar(
            [threat_epsilon],
            [worst.accuracy],
            yerr=[[max(part, 0.0) for part in side] for side in spread],
            color=ATTACKED,
            marker="D",
            markersize=7,
            markerfacecolor=PAPER,
            markeredgewidth=1.8,
            elinewidth=1.4,
            zorder=5,
        )
    ticks = [0.0] + [10.0**power for power in range(-5, 2) if radii[0] <= 10.0**power <= radii[-1]]
    if not any(0.5 < tick / radii[0] < 2 for tick in ticks):
        ticks.append(radii[0])
    if not any(0.5 < tick / threat_epsilon < 2 for tick in ticks):
        ticks.append(threat_epsilon)
    axes.set_xticks(sorted(ticks), [format_pixels(tick) for tick in sorted(ticks)])
    axes.set_xticks([], minor=True)
    fraction_axis(axes)
    axes.set_xlabel("radius \N{GREEK SMALL LETTER EPSILON}")
    return to_svg(figure, key, name)


@styled
def confusion_plot(counts: Sequence[Sequence[int]], classes: Sequence[str], key: str, name: str) -> Html:
    """Return a heat map of the predictions for each class, each row in percent of its class.

    Args:
        counts: [K][K] images of each class (row) that are read as what (column).
        classes: the classes' names, K of them.
        key: makes the ids of one figure differ from those of the others on the page.
        name: the figure's name for those who cannot see it.
    """
    import numpy as np
    from matplotlib.patches import Rectangle

    size, classes = len(counts), [shortened(name, _LONGEST_LABEL) for name in classes]
    totals = np.maximum(np.sum(counts, axis=1, keepdims=True), 1)
    shares = np.asarray(counts, dtype=np.float64) / totals
    cell = min(44.0, 360 / size)
    longest = max(map(len, classes))
    turned = 6.5 * longest > cell
    aside, above = 26 + 6 * longest, 30 + (4.5 * longest if turned else 10)
    figure, axes = figure_of(aside + size * cell, above + size * cell)
    for (label, read), share in np.ndenumerate(shares):
        colour, edge = (LIGHT["right"], DIM) if label == read else (LIGHT["wrong"], RULE)
        # The shade is the colour's opacity, which does for white and for dark paper; an edge has no opacity.
        if share > 0:
            axes.add_patch(Rectangle((read, label), 1, 1, facecolor=colour, alpha=share, linewidth=0, zorder=0.5))
        axes.add_patch(
            Rectangle((read, label), 1, 1, fill=False, edgecolor=edge, linewidth=0.8, zorder=1 + (label == read))
        )
        if size <= _MOST_NUMBERED and counts[label][read]:
            text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
            axes.text(
                read + 0.5,
                label + 0.52,
                text,
                ha="center",
                va="center",
                color=INK,
                fontsize=9.5,
                zorder=3,
                gid=f"cell-{label}-{read}",
                in_layout=False,  # inside its cell: nothing to make room for
            )
    axes.set_xlim(0, size)
    axes.set_ylim(size, 0)
    axes.set_aspect("equal")
    places = np.arange(size) + 0.5
    turn: dict[str, Any] = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(places, classes, **turn)
    axes.set_yticks(places, classes)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("read as")
    axes.set_ylabel("class")
    return to_svg(figure, key, name)
