"""Accuracy over size: every model's parameters against its accuracies, and the Pareto fronts of the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from robust_nas.core.pixels import format_pixels
from robust_nas.report._contents import Contents, Rated
from robust_nas.report._elements import Content, Html, element
from robust_nas.report._page import DASH, column_head, interval_of, scroll
from robust_nas.report.findings import enumerate_in_words, format_threat, percent
from robust_nas.report.size_plots import Sized, size_plot
from robust_nas.tables import non_dominated

if TYPE_CHECKING:
    from robust_nas.records.ensemble import Weighting


def over_size(contents: Contents) -> Content:
    """Return a plot over the parameters for each kind of accuracy; a sentence where all models have one size."""
    sizes = _sizes(contents)
    measured = _kinds(contents, list(sizes))
    kinds = {title: found for title, found in measured.items() if len({sizes[model] for model in found}) > 1}
    if not kinds:
        if all(len(found) < 2 for found in measured.values()):
            return None
        text = "All measured models have the same number of parameters, so that nothing is drawn over the size."
        return element("p", text, class_="note")
    figures, fronts = [], {}
    for index, (title, found) in enumerate(kinds.items()):
        fronts[title] = _front(sizes, found)
        points = [
            Sized(contents.title_of(model), sizes[model], item.accuracy, item.low, item.high, model in fronts[title])
            for model, item in found.items()
        ]
        words = ", ".join(f"{point.title} {percent(point.accuracy)} % with {point.size:,}" for point in points)
        best = enumerate_in_words([contents.title_of(model) for model in fronts[title]])
        kind = ("clean", "attacked", "certified")[_place(title)]
        name = f"{title} over the number of parameters: {words}. On the Pareto front: {best}."
        figure, unnamed = size_plot(points, kind, f"size-{index}", name)
        caption = f"Without room for their names: {enumerate_in_words(unnamed)}." if unnamed else None
        below = element("figcaption", caption) if caption else None
        figures.append(element("figure", element("h3", title), figure, below))
    note = (
        "Filled markers are on the Pareto front: no model that is as small is more accurate, and none that is smaller "
        "is as accurate. Where 95 % intervals, the vertical lines, overlap, that may be chance. A combined model is as "
        "large as the networks with a weight in it."
    )
    counts = {item.count for found in kinds.values() for item in found.values()}
    if len(counts) > 1:
        note += f" Accuracies are over {enumerate_in_words([str(count) for count in sorted(counts)])} images."
    table = scroll(_table(contents, sizes, kinds, fronts), "Accuracy over size")
    folded = element("details", element("summary", "Sizes and accuracies as a table"), table)
    return [element("p", note, class_="note"), element("div", figures, class_="grid"), folded]


def _sizes(contents: Contents) -> dict[str, int]:
    """Return the number of parameters of every model; a combined one has those of its members with a weight."""
    sizes = {name: model.parameters for name, model in contents.trained.items()}
    if (ensemble := contents.ensemble) and all(member in sizes for member in ensemble.members):
        combined: Mapping[str, Weighting] = {"uniform": ensemble.uniform, "ensemble": ensemble}
        for name, found in combined.items():
            with_weight = [member for member, weight in zip(ensemble.members, found.weights, strict=True) if weight > 0]
            sizes[name] = sum(sizes[member] for member in with_weight)
    return {model: sizes[model] for model in contents.models if model in sizes}


def _kinds(contents: Contents, models: Sequence[str]) -> dict[str, dict[str, Rated]]:
    """Return the models' accuracies of each kind, by the kind's title."""
    attacked = {model: contents.attacked[model] for model in models if model in contents.attacked}
    threats = enumerate_in_words([format_threat(threat) for threat in contents.threats])
    found: dict[str, dict[str, Rated]] = {
        "Clean": {model: result.clean for model, result in attacked.items()},
        f"Worst case at {threats}": {model: result.worst_case for model, result in attacked.items()},
    }
    if (radius := contents.quoted_radius) is not None:
        proved = {model: contents.certificate_of(model, radius) for model in models}
        found[f"Certified at {format_pixels(radius)}"] = {model: item for model, item in proved.items() if item}
    return found


def _place(title: str) -> int:
    return ("Clean", "Worst", "Certified").index(title.split(" ")[0])


def _front(sizes: Mapping[str, int], found: Mapping[str, Rated]) -> list[str]:
    """Return the models that no other model beats in size and accuracy, the smallest first."""
    models = list(found)
    values = np.array([(-sizes[model], found[model].accuracy) for model in models], dtype=np.float64)
    return sorted((models[place] for place in non_dominated(values)), key=lambda model: sizes[model])


def _table(
    contents: Contents,
    sizes: Mapping[str, int],
    kinds: Mapping[str, Mapping[str, Rated]],
    fronts: Mapping[str, Sequence[str]],
) -> Html:
    rows = []
    for model, size in sizes.items():
        head = element("th", contents.title_of(model), scope="row")
        cells = []
        for title, found in kinds.items():
            item, mark = found.get(model), element("small", "on the front") if model in fronts[title] else None
            cells.append(element("td", DASH) if item is None else element("td", *_value(item), mark))
        rows.append(element("tr", head, element("td", f"{size:,}"), cells))
    heads = [column_head(text) for text in ("Model", "Parameters", *(f"{title}, %" for title in kinds))]
    return element(
        "table",
        element("caption", "Number of parameters, and accuracy in % with its 95 % Wilson interval."),
        element("thead", element("tr", heads)),
        element("tbody", rows),
        class_="named",
    )


def _value(item: Rated) -> tuple[Content, Content]:
    return percent(item.accuracy), element("small", interval_of(item))
