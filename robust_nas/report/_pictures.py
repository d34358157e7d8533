"""The pictures: accuracy over epsilon and over steps, confusions under attack, adversarial examples."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from robust_nas.core.pixels import format_pixels
from robust_nas.report import attack_plots
from robust_nas.report._contents import Examples, Measurements, Threat, format_attack
from robust_nas.report._elements import Content, Html, element
from robust_nas.report._page import column_head, scroll
from robust_nas.report._results import legend
from robust_nas.report.findings import format_threat, norm_name, percent, with_interval

if TYPE_CHECKING:
    from robust_nas.records.certification import Certified
    from robust_nas.records.evaluation import Point
    from robust_nas.report._contents import Pixels

MAX_EXAMPLES = 12
MAX_CLASSES = 20  # a heat map has at most so many rows
MAX_CONFUSIONS = 12  # and a table in its place so many


# Accuracy over epsilon -----------------------------------------------------------------------------------------------


def over_epsilon(contents: Measurements) -> Content:
    """Return accuracy over epsilon: all models in one plot per norm, then each with its certificates."""
    with_curves = [model for model in contents.models if model in contents.attacked and contents.attacked[model].curve]
    certified = [model for model in contents.models if contents.certified.get(model)]
    # The curve of a model on its own is in the plot of its certificates.
    joint = None if len(with_curves) == 1 and certified == with_curves else _joint(contents)
    single = _single(contents, certified, contents.threat) if contents.threat and certified else None
    return [joint, single] if joint or single else None


def _joint(contents: Measurements) -> Content:
    figures = []
    for norm in contents.norms:
        radii = [epsilon for other, epsilon in contents.threats if other == norm]
        curves = []
        for place, model in enumerate(contents.models):
            if points := _with_clean(contents, model, norm):
                worst = {epsilon: contents.worst_case_of(model, (norm, epsilon)) for epsilon in radii}
                found = {epsilon: item.accuracy for epsilon, item in worst.items() if item}
                curves.append(attack_plots.Curve(place, contents.title_of(model), points, found))
        if not curves:
            continue
        words = "; ".join(f"{curve.title}: {_points_in_words(curve.points)}" for curve in curves)
        name = f"Accuracy over epsilon in {norm_name(norm)}. {words}."
        figure = attack_plots.robustness_plot(curves, radii, f"curves-{norm}", name)
        figures.append(element("figure", element("h3", norm_name(norm)), figure))
    if not figures:
        return None
    note = (
        "Each line is the accuracy under one attack at each radius, from the clean images at 0 on; a band is its "
        "95 % interval. A dotted line marks a threat model's radius; the open markers on it are the worst cases over "
        "all attacks run there."
    )
    return [element("p", note, class_="note"), element("div", figures, class_="grid broad")]


def _with_clean(contents: Measurements, model: str, norm: str) -> list[Point]:
    """Return a model's curve, with its clean accuracy at 0 if that is over the same images."""
    points = contents.curve_of(model, norm)
    if not points or points[0].epsilon == 0:
        return points
    clean = contents.attacked[model].clean
    start = replace(points[0], epsilon=0.0, accuracy=clean.accuracy, low=clean.low, high=clean.high)
    return [start, *points] if points[0].count == clean.count else points


def _points_in_words(points: Sequence[Point | Certified]) -> str:
    return ", ".join(f"{percent(point.accuracy)} % at {format_pixels(point.epsilon)}" for point in points)


def _single(contents: Measurements, models: Sequence[str], threat: Threat) -> Content:
    figures = []
    for index, model in enumerate(models):
        curve, proved = contents.curve_of(model, threat[0]), contents.certified[model]
        result = contents.attacked.get(model)
        parts = [f"clean {percent(result.clean.accuracy)} %"] if result else []
        parts += [f"attacked {_points_in_words(curve)}"] if curve else []
        parts.append(f"certified {_points_in_words(proved)}")
        title = contents.title_of(model)
        figure = attack_plots.epsilon_plot(
            result.clean.accuracy if result else None,
            curve,
            proved,
            contents.worst_case_of(model, threat),
            threat[1],
            f"radius-{index}",
            f"Accuracy of {title} over the radius: {', '.join(parts)}.",
        )
        figures.append(element("figure", element("h3", title), figure))
    note = (
        "In plots with certificates, the axis is linear up to the smallest radius, then logarithmic. The open "
        "diamond is the worst case over all attacks with its 95 % interval. Between the certified and the attacked "
        "curve, nothing is known."
    )
    shown = legend({"clean": "clean", "attacked": "under the curve's attack", "certified": "certified"})
    return [element("p", note, class_="note later"), shown, element("div", figures, class_="grid")]


# Accuracy over steps -------------------------------------------------------------------------------------------------


def over_steps(contents: Measurements) -> Content:
    """Return accuracy over the steps of one ascent: all models in one plot per threat model."""
    figures = []
    for number, threat in enumerate(contents.stepped):
        lines = [
            attack_plots.StepLine(place, contents.title_of(model), points)
            for place, model in enumerate(contents.models)
            if (points := contents.steps_of(model, threat))
        ]
        first = lines[0].points[0]
        words = "; ".join(
            f"{line.title}: "
            + ", ".join(
                f"{with_interval(point)} after {point.steps:,} of {point.count} images" for point in line.points
            )
            for line in lines
        )
        name = f"Accuracy over the steps of {format_attack(first.attack)} at {format_threat(threat)}. {words}."
        counts = " and ".join(dict.fromkeys(str(point.count) for line in lines for point in line.points))
        about = (
            f"{format_attack(first.attack)}, {format_threat(threat)}, steps of {format_pixels(first.step_size)}, "
            f"{counts} images"
        )
        figures.append(element("figure", element("h3", about), attack_plots.steps_plot(lines, f"steps-{number}", name)))
    if not figures:
        return None
    note = (
        "One ascent, looked at after each number of steps. A solid line counts the images that no point up to there "
        "fools, which is what an attacker gets; a band is its 95 % interval. A dashed line, where it differs, counts "
        "those that the point after exactly so many steps does not fool."
    )
    return [element("p", note, class_="note"), element("div", figures, class_="grid broad")]


# Confusion under attack ----------------------------------------------------------------------------------------------


def confusion(contents: Measurements) -> Content:
    """Return the confusions of classes under attack, a picture per model; a table where there are many classes."""
    parts, largest = [], 0
    for index, model in enumerate(contents.models):
        counts = contents.attacked[model].confusion if model in contents.attacked else None
        if not counts:
            continue
        largest = max(largest, len(counts))
        title, names = contents.title_of(model), [contents.class_name(label) for label in range(len(counts))]
        worst = _most_frequent(counts)
        if len(counts) > MAX_CLASSES:
            shown = [_confusion_table(counts, names, worst[:MAX_CONFUSIONS], title)]
        else:
            name = f"Confusion of {title} under attack: {_confusions_in_words(counts, names, worst[:3])}"
            drawing = attack_plots.confusion_plot(counts, names, f"confusion-{index}", name)
            shown = [drawing, element("figcaption", _confusions_in_words(counts, names, worst[:1]))]
        parts.append(element("figure", element("h3", title), shown))
    if not parts:
        return None
    each = "at any threat model " if len(contents.threats) > 1 else ""
    note = (
        f"Predictions for the images of each class under attack. An image that withstands all attacks {each}counts as "
        "its own class, any other as the class that the first successful attack gave it."
    )
    if largest <= MAX_CLASSES:
        note += " A row is a class and its numbers are percentages of its images; blue is correct, orange is wrong."
    return [element("p", note, class_="note"), element("div", parts, class_="grid broad")]


def _most_frequent(counts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return all confusions as (class, predicted class), the most frequent first."""
    found = [
        (label, read)
        for label, row in enumerate(counts)
        for read, count in enumerate(row)
        if label != read and count > 0
    ]
    return sorted(found, key=lambda pair: -counts[pair[0]][pair[1]])


def _confusions_in_words(
    counts: Sequence[Sequence[int]], names: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> str:
    if not pairs:
        return "No image is misread."
    parts = [
        f"{names[label]} is read as {names[read]} ({counts[label][read]} of {sum(counts[label])} images)"
        for label, read in pairs
    ]
    return f"Most often, {', '.join(parts)}."


def _confusion_table(
    counts: Sequence[Sequence[int]], names: Sequence[str], pairs: Sequence[tuple[int, int]], title: str
) -> Html:
    rows = []
    for label, read in pairs:
        share = percent(counts[label][read] / sum(counts[label]))
        cells = [element("td", text) for text in (str(counts[label][read]), f"{share} %")]
        head = element("th", names[label], scope="row")
        rows.append(element("tr", head, element("td", names[read], class_="left"), cells))
    heads = [
        column_head("Class"),
        column_head("Read as", left=True),
        column_head("Images"),
        column_head("Of the class"),
    ]
    caption = f"The {len(rows)} most frequent confusions among {len(names)} classes."
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", heads)),
        element("tbody", rows),
    )
    return scroll(table, f"Confusions of {title}")


# Adversarial examples ------------------------------------------------------------------------------------------------


def examples(contents: Measurements) -> Content:
    """Return each model's strongest adversarial example of every class, beside its original and their difference."""
    order = {model: place for place, model in enumerate(contents.models)}
    found = sorted(contents.examples, key=lambda examples: order.get(examples.about.model, len(order)))
    parts = [part for examples in found if (part := _examples_of_one(contents, examples))]
    if not parts:
        return None
    note = (
        "Of each class, the adversarial example of which the network is surest: left the original, right the "
        "adversarial image, between them their difference, amplified around grey. They are chosen for effect; how "
        "often an attack succeeds stands in the table."
    )
    return [element("p", note, class_="note"), *parts]


def _examples_of_one(contents: Measurements, examples: Examples) -> Content:
    import numpy as np

    about, originals, adversarial = examples.about, examples.originals, examples.adversarial
    labels, (norm, epsilon) = about.labels, about.threat
    # The surest of every class come first.
    firsts = sorted({label: labels.index(label) for label in labels}.items())[:MAX_EXAMPLES]
    if not firsts:
        return None
    difference = adversarial - originals
    reach = epsilon if norm == "linf" else float(np.abs(difference[[index for _, index in firsts]]).max())
    factor = 1 / (2 * reach) if reach > 0 else 1.0
    cards = [
        _card(
            contents.class_name(label),
            contents.class_name(about.clean_predictions[index]),
            contents.class_name(about.predictions[index]),
            (originals[index], 0.5 + factor * difference[index], adversarial[index]),
            f"{factor:.3g}",
        )
        for label, index in firsts
    ]
    title = contents.title_of(about.model)
    how = (
        f"{format_attack(about.attack)}, {format_threat(about.threat)}; difference \N{MULTIPLICATION SIGN} {factor:.3g}"
    )
    left_out = len(set(labels)) - len(firsts)
    if left_out:
        how += f"; {len(firsts)} of {len(firsts) + left_out} classes"
    return [element("h3", title, " ", element("small", how), class_="group"), element("div", cards, class_="examples")]


def _card(own: str, before: str, after: str, pictures: Sequence[Pixels], factor: str) -> Html:
    texts = (
        ("original", f"read as {before}"),
        ("amplified difference", f"\N{MULTIPLICATION SIGN} {factor}"),
        ("adversarial", f"read as {after}"),
    )
    images = [
        element(
            "div",
            element("img", src=_png(pixels), alt=f"{kind} image of class {own}, {text}"),
            element("span", text),
        )
        for pixels, (kind, text) in zip(pictures, texts, strict=True)
    ]
    title = f"Class {own}{'' if after != own else ' (withstood)'}"
    return element("figure", element("h4", title), element("div", images, class_="triple"))


def _png(pixels: Pixels) -> str:
    """Return an image [C, H, W] in [0, 1], grey or RGB, as a PNG data address."""
    import numpy as np
    from PIL import Image

    array = np.round(pixels.clip(0, 1) * 255).astype(np.uint8)
    channels = array if len(array) == 3 else array[:1].repeat(3, axis=0)
    buffer = io.BytesIO()
    Image.fromarray(channels.transpose(1, 2, 0)).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
