"""The page of a scaling study: `write_scaling_report(reading, path)`."""

from __future__ import annotations

from pathlib import Path

from robust_nas import __version__
from robust_nas.core.writing import write_text
from robust_nas.records.reading import Reading
from robust_nas.records.scaling import CellRow
from robust_nas.report import scaling_plots as plots
from robust_nas.report._elements import Content, Html, element
from robust_nas.report._page import DASH, definitions, duration, explained, unbroken, whole_page
from robust_nas.report._scaling_costs import compared, frontiers, stages, steps, within
from robust_nas.report._scaling_laws import depth_and_width, laws, over_size
from robust_nas.report._scaling_parts import priced_by, table_of
from robust_nas.report.findings import percent
from robust_nas.report.scaling_findings import (
    STATUSES,
    counted,
    shown_accuracy,
)
from robust_nas.report.size_plots import in_short


def write_scaling_report(reading: Reading, path: Path) -> Path:
    """Write the page of a study's reading to `path` and return that."""
    write_text(path, page(reading))
    return path


def page(reading: Reading) -> Html:
    """Return the whole page."""
    sections = (
        ("Error over size", over_size(reading)),
        ("Laws", laws(reading)),
        ("Depth and width", depth_and_width(reading)),
        ("Accuracy over cost", frontiers(reading)),
        ("Where capacity helps", stages(reading)),
        ("The best within a budget", within(reading)),
        ("Settings compared", compared(reading)),
        ("Accuracy over PGD steps", steps(reading)),
        ("Published points", _published(reading)),
        ("Cells that did not finish", _failures(reading)),
        ("All cells", _cells(reading)),
        ("What was and was not measured", explained(_limits(reading))),
        ("How this was made", _made(reading)),
    )
    return whole_page(reading.study.name, __version__, _header(reading), sections)


def _header(reading: Reading) -> Html:
    study = reading.study
    facts = [study.name, study.threat, study.method, *study.hardware, f"robust-nas {__version__}"]
    first, *rest = reading.findings or ("",)
    return element(
        "header",
        element("h1", f"Depth and width on {study.data}"),
        element("p", " \N{MIDDLE DOT} ".join(fact for fact in facts if fact), class_="facts"),
        element("p", unbroken(first), class_="lead"),
        element("ul", [element("li", unbroken(sentence)) for sentence in rest], class_="findings") if rest else None,
        element("p", "Errors are means over seeds; in brackets, 95 % intervals over seeds.", class_="note"),
    )


# Published, failures, cells ------------------------------------------------------------------------------------------


def _published(reading: Reading) -> Content:
    if not reading.published:
        return None
    first = reading.published[0]
    note = (
        f"Published by others, and in none of this study's numbers, fits or figures: {first.source}. The data are "
        f"{first.data} and the attack is {first.attack}, so that no number here compares with these but the direction: "
        "deeper networks were more robust there."
    )
    rows = [
        element(
            "tr",
            element("th", own.network, scope="row"),
            element("td", str(own.depth)),
            element("td", f"{percent(own.robust)} %"),
            element("td", own.data, class_="left"),
            element("td", own.attack, class_="left"),
            element("td", "published"),
        )
        for own in reading.published
    ]
    named = [own.network for own in reading.published]
    values = [(own.depth, own.robust) for own in reading.published]
    words = ", ".join(f"{title} {percent(own)} %" for title, (_, own) in zip(named, values, strict=True))
    figures: list[Content] = [*_measured_depths(reading)]
    figures += [
        element(
            "figure",
            element("h3", f"Published: robust accuracy on {first.data} over depth"),
            plots.depth_plot(values, named, "published", f"Published robust accuracy over depth: {words}."),
        )
    ]
    heads = ["Network", "Depth", "Robust accuracy", "Data", "Attack", "Origin"]
    return [
        element("p", note),
        element("div", figures, class_="grid broad"),
        table_of(heads, rows, f"Trained by {first.training}.", "Published points"),
    ]


def _measured_depths(reading: Reading) -> list[Content]:
    """Return this study's robust accuracies over depth, in a figure of their own."""
    values = sorted(
        {
            (network.depth, 1 - network.error.value)
            for setting in reading.settings
            for network in priced_by(reading, setting, "robust", "parameters")
        }
    )
    if len({depth for depth, _ in values}) < 2:
        return []
    title = f"Measured here: robust accuracy on {reading.study.data} over depth"
    words = ", ".join(f"{percent(accuracy)} % at {depth}" for depth, accuracy in values)
    return [element("figure", element("h3", title), plots.depth_plot(values, [], "measured", f"{title}: {words}."))]


def _failures(reading: Reading) -> Content:
    rows = [
        element(
            "tr",
            element("th", row.name, scope="row"),
            element("td", STATUSES[row.status], class_="left"),
            element("td", row.reason or DASH, class_="left", style="white-space:normal"),
        )
        for row in reading.study.cells
        if row.status != "finished"
    ]
    if not rows:
        return None
    caption = "None of these is in a fit, a mean or a comparison."
    return table_of(["Cell", "End", "Reason"], rows, caption, "Cells that did not finish", left=3)


def _cells(reading: Reading) -> Content:
    attacks = list(dict.fromkeys(label for row in reading.study.cells for label in row.attacks))
    rows = []
    for row in reading.study.cells:
        notes = [
            note
            for note in ("" if row.status == "finished" else row.status, "collapsed" if row.collapsed else "")
            if note
        ]
        rows.append(
            element(
                "tr",
                element("th", row.name, element("small", ", ".join(notes)) if notes else None, scope="row"),
                element("td", in_short(row.parameters)),
                element("td", in_short(row.multiply_adds)),
                element("td", str(row.epochs)),
                element("td", in_short(row.training_flops)),
                [_accuracy_cell(row, kind) for kind in ("clean", "robust")],
                [
                    element("td", percent(own.accuracy) if (own := row.attacks.get(label)) else DASH)
                    for label in attacks
                ],
                element("td", duration(row.seconds) if row.seconds is not None else DASH),
                element("td", f"{row.peak_memory / 2**20:,.0f}" if row.peak_memory else DASH),
            )
        )
    heads = ["Cell", "Parameters", "Multiply-adds", "Epochs", "Training FLOPs", "Clean, %", "Robust, %"]
    heads += [*(f"{label}, %" for label in attacks), "Time", "Memory, MiB"]
    caption = (
        "Accuracy on test images, clean and in the worst case over all attacks; below it the 95 % Wilson interval over "
        "the images. Time is that of the training, and memory the largest resident one of its process."
    )
    return table_of(heads, rows, caption, "All cells")


def _accuracy_cell(row: CellRow, kind: str) -> Html:
    shown, found = shown_accuracy(row, kind), row.robust if kind == "robust" else row.clean
    if shown is None or found is None:
        return element("td", DASH)
    return element("td", shown, element("small", f"{percent(found.low)}{DASH}{percent(found.high)}"))


def _limits(reading: Reading) -> list[tuple[str, str]]:
    """Return the limits of the measurements, as (subject, a sentence or two)."""
    study = reading.study
    seeds = sorted({row.seed for row in study.cells})
    return [
        (
            "Seeds",
            f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))}). Intervals are about seeds alone: all "
            "networks meet the same test images, and another data set, method or schedule may give another order.",
        ),
        (
            "Laws",
            "A power law with an irreducible term is an assumption. Its coefficients depend on each other, so that a "
            "wide interval of one does not make predictions inside the measured sizes as wide.",
        ),
        (
            "Training",
            "All cells of a setting have the same schedule. A larger network may want a longer one, which these "
            "numbers hold against it.",
        ),
        (
            "Attacks",
            f"Robust accuracy is the worst case over the attacks of each cell at {study.threat}: an upper bound of the "
            "true one. Stronger attacks lower it, and may lower it by more for some networks.",
        ),
    ]


def _made(reading: Reading) -> Content:
    study = reading.study
    facts = {
        "This page": reading.command,
        "Study": study.command or "",
        "Data": study.data,
        "Threat model": study.threat,
        "Training": study.method,
        "Hardware": "; ".join(study.hardware),
        "robust-nas": __version__,
    }
    return definitions({key: text for key, text in facts.items() if text})
