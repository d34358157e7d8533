"""A robust-accuracy table's figures, each a whole SVG document: accuracies, correlations, main effects, searches."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robust_nas.architectures.cell import Architecture
from robust_nas.core.errors import InputError
from robust_nas.core.figures import ATTACKED, CLEAN, DIM, INK, MUTED, PAPER, figure_of, styled
from robust_nas.core.text import visible
from robust_nas.core.writing import write_text
from robust_nas.report._elements import Html
from robust_nas.tables import Column, Table, non_dominated
from robust_nas.tables.statistics import TOP, MainEffects, main_effects, names_of, rank_correlations

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_TITLE: Any = {"fontsize": 10.5, "loc": "left", "color": INK}
# Okabe and Ito's palette, which people with colour-blindness can tell apart; the dashes differ as well.
_LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_RASTER_DPI = 216  # three dots per pixel of the page, for the points, which are a picture within the drawing


def write_plots(table: Table, folder: Path, label: str | None = None, /, **criteria: Any) -> list[Path]:
    """Write the figures of the columns that fit, and return their paths.

    `accuracy-NAME.svg` for every attacked column that has classes in common with a clean one of the same training,
    `correlations.svg` and `correlations-top.svg` if there are several columns, `effects-NAME.svg` for every column that
    has all architectures.

    Raises:
        InputError: for an unknown criterion or value, or if no column fits.
    """
    columns = table.select(label, **criteria)
    named = list(zip(names_of(columns, table), columns, strict=True))
    figures: dict[str, Html] = {}
    for name, column in named:
        cleans = [(other, clean) for other, clean in named if clean.attack == "clean" and _same_training(clean, column)]
        for clean_name, clean in cleans if column.attack != "clean" else []:
            key = f"accuracy-{name}" if len(cleans) == 1 else f"accuracy-{name}-over-{clean_name}"
            with contextlib.suppress(InputError):
                figures[key] = accuracy_plot(table, clean, column, clean_name, name)
    if len(columns) > 1:
        figures["correlations"] = correlation_plot(table, columns)
        figures["correlations-top"] = correlation_plot(table, columns, top=TOP)
    for name, column in named:
        with contextlib.suppress(InputError):
            figures[f"effects-{name}"] = effects_plot(main_effects(table, **asdict(column)), name)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{re.sub(r'[^a-zA-Z0-9]+', '-', name)}.svg")
        write_text(paths[-1], figure)
    return paths


@styled
def accuracy_plot(table: Table, clean: Column, attacked: Column, clean_name: str, attacked_name: str) -> Html:
    """Return the accuracy of every class in one column over that in another, and the Pareto front of the two.

    On the left all classes; on the right the surroundings of the front, with digits forms and noise floors.

    Raises:
        InputError: if no class is in both.
    """
    x, y = (100 * table.values(**asdict(column)) for column in (clean, attacked))
    front = non_dominated(np.stack([x, y], axis=1))[::-1]  # from the lowest clean accuracy to the highest
    if not front:
        raise InputError(f"No class of the table {table.name} has both {clean_name} and {attacked_name}.")
    figure, _ = figure_of(720, 330)
    figure.clear()
    whole, near = figure.subplots(1, 2)
    for axes, size in ((whole, 3), (near, 9)):
        axes.scatter(x, y, s=size, color=MUTED, alpha=0.35, linewidths=0, rasterized=True)
        axes.plot(x[front], y[front], color=ATTACKED, marker="o", markersize=3.5, linewidth=1.4, zorder=3)
        axes.set_xlabel(f"{clean_name}, %")
    whole.set_ylabel(f"{attacked_name}, %")
    whole.set_title(f"{np.sum(~np.isnan(x + y)):,} classes", **_TITLE)
    floors = [table.noise_floor(**asdict(column)) for column in (clean, attacked)]
    bars = [100 * floor.std if floor else None for floor in floors]
    near.set_title(f"Pareto front ({len(front)}){' with the noise floor' if any(bars) else ''}", **_TITLE)
    near.errorbar(x[front], y[front], bars[1], bars[0], fmt="none", ecolor=ATTACKED, elinewidth=0.8, alpha=0.5)

    width, height = (max(np.ptp(values[front]), 0.06 * np.nanmax(values)) for values in (x, y))
    near.set_xlim(x[front].min() - 0.4 * width, x[front].max() + 0.4 * width)
    near.set_ylim(y[front].min() - 0.4 * height, y[front].max() + max(0.25 * height, 1.1 * (bars[1] or 0)))
    labelled: list[int] = []
    for place in [front[0], front[-1], *front[1:-1]]:
        # Nothing lies above and to the right of the front: its names do, as far as they do not cover each other.
        apart = [(abs(x[place] - x[other]) / width, abs(y[place] - y[other]) / height) for other in labelled]
        if all(sideways > 0.35 or upwards > 0.09 for sideways, upwards in apart):
            labelled.append(place)
            digits = Architecture.parse(table.architectures[place]).digits()
            near.annotate(digits, (x[place], y[place]), xytext=(4, 3), textcoords="offset points", fontsize=9)
    return _document(figure, f"{attacked_name} over {clean_name}")


@styled
def correlation_plot(table: Table, columns: Sequence[Column], *, top: float | None = None) -> Html:
    """Return the Spearman rank correlations of columns as a heat map with numbers.

    Args:
        table: the table.
        columns: of the table, two or more.
        top: if given, each row looks only at this share of classes, the best in its own column.
    """
    names = names_of(columns, table)
    matrix = rank_correlations(table, columns, top=top)
    size = 38 * len(names)
    figure, axes = figure_of(size + 7 * max(map(len, names)), size + 6 * max(map(len, names)))
    _heat_map(axes, matrix, matrix, lambda value: f"{value:.3f}".replace("0.", "."))
    axes.set_xticks(range(len(names)), names, rotation=45, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    within = "all classes" if top is None else f"the best {100 * top:g} % in the row's column"
    axes.set_xlabel(f"Spearman rank correlation\nover {within}")
    return _document(figure, f"rank correlations over {within}")


@styled
def effects_plot(effects: MainEffects, title: str) -> Html:
    """Return the main effects of a column, and how often each operation is among the best, as two heat maps."""
    figure, _ = figure_of(720, 300)
    figure.clear()
    left, right = figure.subplots(1, 2)
    # As many times more as less often is as far from the middle; never is no further than 16 times less.
    logarithms = np.log2(np.maximum(effects.enrichment, 1 / 16))
    for axes, shades, numbers, form in (
        (left, effects.effects, 100 * effects.effects, "+.1f"),
        (right, logarithms, effects.enrichment, ".1f"),
    ):
        _heat_map(axes, shades / (np.abs(shades).max() or 1), numbers, f"{{:{form}}}".format)
        axes.set_xticks(range(len(effects.operations)), effects.operations, rotation=30, ha="left")
    edges = [f"{source}-{target}" for source, target in effects.edges]
    left.set_yticks(
        range(len(edges)),
        [f"{edge}: {100 * share:.0f} %" for edge, share in zip(edges, effects.edge_shares, strict=True)],
    )
    right.set_yticks(range(len(edges)), edges)
    left.set_ylabel("edge: its share of the variance")
    left.set_xlabel(f"{title}:\npoints from the mean, {100 * effects.mean:.1f} %")
    right.set_xlabel(f"{title}:\ntimes as often among the best {100 * TOP:g} % as among all")
    return _document(figure, f"main effects on {title}")


@styled
def search_plot(result: Mapping[str, Any]) -> Html:
    """Return the mean curves of simulated searches (`simulation.json`) with their bands."""
    figure, axes = figure_of(620, 380)
    after = np.arange(1, result["budget"] + 1)
    for place, (label, curve) in enumerate(result["curves"].items()):
        colour, dash = _LINE_COLOURS[place % len(_LINE_COLOURS)], _DASHES[place % len(_DASHES)]
        mean, low, high = (100 * np.array(curve[key]) for key in ("mean", "low", "high"))
        axes.plot(after, mean, color=colour, linestyle=dash, label=label)
        axes.fill_between(after, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.axhline(100 * result["optimum"], color=MUTED, linewidth=0.8, zorder=0)
    # The first few queries are far below; what tells the samplers apart comes after them.
    early = min(5, result["budget"]) - 1
    axes.set_ylim(bottom=100 * min(curve["mean"][early] for curve in result["curves"].values()))
    axes.set_xlim(1, max(result["budget"], 2))
    axes.set_xlabel("queries")
    where = f" on {result['dataset']}" if result["dataset"] else ""
    axes.set_ylabel(f"{' and '.join(result['objectives'])}{where}, %")
    axes.set_title(f"mean {result['measure']} over {result['seeds']} seeds, {result['band']}", **_TITLE)
    axes.legend(loc="lower right")
    return _document(figure, "simulated searches")


def _heat_map(
    axes: Axes, shades: NDArray[np.float64], numbers: NDArray[np.float64], written: Callable[[float], str]
) -> None:
    """Draw a matrix as coloured cells with numbers; the shades go from -1, orange, over 0, white, to 1, blue."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("diverging", [ATTACKED, PAPER, CLEAN]).with_extremes(bad=DIM)
    axes.imshow(shades, cmap=colours, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    for (row, column), number in np.ndenumerate(numbers):
        if not np.isnan(number):
            text = written(number).replace("-", "\N{MINUS SIGN}")
            ink = PAPER if abs(shades[row, column]) > 0.8 else INK
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9.5)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.xaxis.tick_top()


def _same_training(one: Column, other: Column) -> bool:
    """Return whether two columns measure the same networks on the same images."""
    names = ("space", "skeleton", "dataset", "split", "recipe", "recipe_hash")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _document(figure: Figure, title: str) -> Html:
    """Return a figure as a whole SVG document."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Title": title}
    figure.savefig(buffer, format="svg", metadata=metadata, facecolor=PAPER, dpi=_RASTER_DPI)
    return Html(visible(buffer.getvalue()))
