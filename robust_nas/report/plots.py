"""The report's figures, as inline SVG that follows the page's font and is the same for the same numbers."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robust_nas.core.figures import (
    ATTACKED,
    CERTIFIED,
    CLEAN,
    CURVES,
    DIM,
    INK,
    MUTED,
    PAPER,
    figure_of,
    fraction_axis,
    styled,
)
from robust_nas.core.palette import HUES, with_variables
from robust_nas.core.text import visible
from robust_nas.report._elements import Html, element, identifier

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"clean": (CLEAN, "o"), "attacked": (ATTACKED, "s"), "certified": (CERTIFIED, "^")}
_OPERATION_DASHES = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (7, 2)))


def operation_colours(operations: Sequence[str]) -> dict[str, str]:
    """Return a colour for each operation; `none` is grey."""
    named = [name for name in operations if name != "none"]
    colours = {name: HUES[index % len(HUES)] for index, name in enumerate(named)}
    return {**colours, "none": DIM}


def operation_dashes(operations: Sequence[str]) -> dict[str, Any]:
    """Return a line style for each operation; `none` is dotted."""
    named = [name for name in operations if name != "none"]
    dashes = {name: _OPERATION_DASHES[index % len(_OPERATION_DASHES)] for index, name in enumerate(named)}
    return {**dashes, "none": (0, (1, 2))}


def to_svg(figure: Figure, key: str, name: str) -> Html:
    """Return a figure as inline SVG. Its colours are those of the palette, and become the page's variables.

    Args:
        figure: the figure to draw.
        key: goes before every id in it, so that several figures can share a page.
        name: the figure's name for those who cannot see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None
    width = view[1].split()[2]
    text = text[text.index(">") + 1 : text.rindex("</svg>")]
    # The style sheet in the file would apply to the whole page; the page's own says the same about its figures.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub("<[^>]*>", functools.partial(_with_own_ids, key=identifier(key)), text)
    return element(
        "svg",
        Html(visible(re.sub(r"\n\s*", "\n", text))),
        viewBox=view[1],
        role="img",
        aria_label=name,
        style=f"--natural:{float(width):g}px",
    )


def _with_own_ids(tag: re.Match[str], key: str) -> str:
    """Return a tag whose ids, and what refers to ids, begin with `key`, and whose colours are the page's."""
    text = with_variables(tag[0]).replace(' id="', f' id="{key}-').replace('xlink:href="#', f'href="#{key}-')
    return text.replace("url(#", f"url(#{key}-")


def _epoch_axis(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_xlabel("epoch")


@styled
def concentration_plot(
    epochs: Sequence[int],
    concentrations: Sequence[Sequence[float]],
    operations: Sequence[str],
    strongest: int,
    key: str,
    name: str,
) -> Html:
    """Plot the concentrations [epochs][operations] of one edge; the line of `strongest` is thicker."""
    figure, axes = figure_of(320, 190)
    colours, dashes = operation_colours(operations), operation_dashes(operations)
    for index, operation in enumerate(operations):
        axes.plot(
            epochs,
            [row[index] for row in concentrations],
            color=colours[operation],
            linestyle=dashes[operation],
            linewidth=2.6 if index == strongest else 1.5,
            gid=f"operation-{index}",
        )
    axes.set_xlim(epochs[0], max(epochs[-1], epochs[0] + 1))
    axes.set_ylim(bottom=0)
    _epoch_axis(axes)
    return to_svg(figure, key, name)


@styled
def entropy_plot(epochs: Sequence[int], entropies: Sequence[float], key: str, name: str) -> Html:
    """Plot the entropy of the mean mixture, in nats."""
    figure, axes = figure_of(320, 190)
    axes.plot(epochs, entropies, color=INK)
    axes.set_xlim(epochs[0], max(epochs[-1], epochs[0] + 1))
    axes.set_ylim(0, 1.08 * max(*entropies, 1e-9))
    _epoch_axis(axes)
    return to_svg(figure, key, name)


@styled
def curve_plot(
    epochs: Sequence[int],
    accuracies: Mapping[str, Sequence[float | None]],
    key: str,
    name: str,
    best_epoch: int | None = None,
) -> Html:
    """Return validation accuracies, by their names in `CURVES`, over the epochs, and the epoch that was kept."""
    figure, axes = figure_of(320, 200)
    for kind, values in accuracies.items():
        _, colour, _, dashes = CURVES[kind]
        known = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
        if not known:
            continue
        axes.plot(*zip(*known, strict=True), color=colour, linestyle=dashes)
        best = [point for point in known if point[0] == best_epoch]
        if best:
            axes.plot(
                *best[0],
                marker="o",
                color=colour,
                markersize=7,
                markerfacecolor=PAPER,
                markeredgewidth=2,
                clip_on=False,
            )
    if best_epoch is not None:
        axes.axvline(best_epoch, color=DIM, linewidth=1, zorder=0)
        near_the_end = best_epoch > (epochs[0] + epochs[-1]) / 2
        axes.annotate(
            f"kept: epoch {best_epoch}",
            (best_epoch, 0.02),
            xytext=(-5 if near_the_end else 5, 0),
            textcoords="offset points",
            ha="right" if near_the_end else "left",
            color=MUTED,
        )
    axes.set_xlim(min(epochs), max(max(epochs), min(epochs) + 1))
    fraction_axis(axes)
    _epoch_axis(axes)
    return to_svg(figure, key, name)
