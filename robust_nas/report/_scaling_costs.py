"""The sections on cost and comparisons: frontiers, stages, budgets of training, settings, steps of the attack."""

from __future__ import annotations

from robust_nas.records.reading import SIZES, Estimate, Reading, setting_of
from robust_nas.records.scaling import CellRow
from robust_nas.report import scaling_plots as plots
from robust_nas.report._elements import Content, element
from robust_nas.report._page import DASH, unbroken
from robust_nas.report._results import legend
from robust_nas.report._scaling_parts import table_of
from robust_nas.report.findings import enumerate_in_words, percent
from robust_nas.report.scaling_findings import (
    compared_in_words,
    counted,
    of_setting,
    points,
    stages_in_words,
    with_interval,
)
from robust_nas.report.size_plots import Sized, in_short, size_plot

_MOST_STEPS = 21  # networks in a plot over steps: above, lines cannot be told apart


# Cost, stages, budgets, settings -------------------------------------------------------------------------------------


def frontiers(reading: Reading) -> Content:
    figures = []
    for index, own in enumerate(reading.frontiers):
        sizes = {network.cost for network in own.networks}
        if own.error != "robust" or own.over == "parameters" or len(sizes) < 2:
            continue
        title = f"Robust accuracy over {SIZES[own.over]}{of_setting(own.setting)}"
        sized = [
            Sized(
                f"{network.depth} \N{MULTIPLICATION SIGN} {network.width}",
                network.cost,
                *_accuracy(network.error),
                network.on_front,
            )
            for network in own.networks
        ]
        best = [network.network for network in own.networks if network.on_front]
        figure, unnamed = size_plot(
            sized,
            "attacked",
            f"cost-{index}",
            f"{title}. On the Pareto front: {enumerate_in_words(best)}.",
            SIZES[own.over],
        )
        caption = f"Without room for their names: {enumerate_in_words(unnamed)}." if unnamed else None
        figures.append(
            element("figure", element("h3", title), figure, element("figcaption", caption) if caption else None)
        )
    if not figures:
        return None
    note = (
        "Filled markers are on the Pareto front: no cheaper network is as robust. Names are depth "
        "\N{MULTIPLICATION SIGN} width."
    )
    rows = [
        element(
            "tr",
            element("th", network.network, scope="row"),
            element("td", own.setting, class_="left") if len(reading.settings) > 1 else None,
            element("td", SIZES[own.over], class_="left"),
            element("td", in_short(network.cost)),
            element("td", with_interval(network.error)),
            element("td", f"{100 * network.share:.0f} %" if network.share is not None else DASH),
        )
        for own in reading.frontiers
        if own.error == "robust"
        for network in own.networks
        if network.on_front or (network.share or 0) > 0.05
    ]
    heads = [
        "Network",
        *(["Setting"] if len(reading.settings) > 1 else []),
        "Cost",
        "",
        "Robust error",
        "Draws of seeds",
    ]
    caption = "The networks on a front, and those that may be: it is there in so many draws of all networks' seeds."
    table = table_of(heads, rows, caption, "Networks on the fronts", left=3 if len(reading.settings) > 1 else 2)
    folded = element("details", element("summary", "The fronts as a table, with what chance does to them"), table)
    return [element("p", note, class_="note"), element("div", figures, class_="grid"), folded]


def _accuracy(error: Estimate) -> tuple[float, float, float]:
    low, high = (error.value if end is None else end for end in (error.low, error.high))
    return 1 - error.value, 1 - high, 1 - low


def stages(reading: Reading) -> Content:
    told = [found for found in reading.stages if found.effects]
    if not told:
        reasons = dict.fromkeys(found.refusal for found in reading.stages if found.refusal)
        return [element("p", reason) for reason in reasons] or None
    rows = [
        element(
            "tr",
            element("th", f"Stage {effect.stage}", scope="row"),
            element("td", found.error + (f", {found.setting}" if found.setting else ""), class_="left"),
            element("td", _relative(effect.effect)),
        )
        for found in told
        for effect in found.effects
    ]
    caption = (
        "The change of the error, as a share of it, when a stage's capacity doubles and the others' stays: by least "
        "squares of the logarithms over all networks. A stage's capacity is its blocks times the square of its "
        "channels."
    )
    return [
        *(element("p", unbroken(stages_in_words(found))) for found in told),
        table_of(["Stage", "Error", "Change per doubling"], rows, caption, "Effects of stages", left=2),
    ]


def _relative(found: Estimate) -> str:
    value, *ends = (f"{100 * each:+.1f}" for each in (found.value, found.low, found.high) if each is not None)
    return (f"{value} %" + (f" ({ends[0]} to {ends[1]})" if ends else "")).replace("-", "\N{MINUS SIGN}")


def within(reading: Reading) -> Content:
    if not reading.within:
        return None
    several = len(reading.settings) > 1
    rows = [
        element(
            "tr",
            element("th", in_short(best.budget), scope="row"),
            element("td", best.setting, class_="left") if several else None,
            element("td", best.network or "none is cheap enough", class_="left"),
            element("td", with_interval(best.error) if best.error else DASH),
            element("td", with_interval(best.predicted) if best.predicted else DASH),
            element("td", in_short(best.parameters) if best.parameters else DASH),
        )
        for best in reading.within
    ]
    heads = [
        "Budget",
        *(["Setting"] if several else []),
        "Best network",
        "Its robust error",
        "By the law",
        "Parameters then",
    ]
    caption = (
        "The measured network of least robust error whose training takes no more FLOPs than the budget (attacks "
        "included, two for each multiply-add), and what the law over training FLOPs gives for a network that takes "
        "all of it, inside the measured range alone."
    )
    content: list[Content] = [
        table_of(heads, rows, caption, "The best within a budget of training FLOPs", left=3 if several else 2)
    ]
    reasons: dict[str, list[str]] = {}
    for best in reading.within:
        if best.refusal:
            reasons.setdefault(best.refusal, []).append(
                in_short(best.budget) + (f" ({best.setting})" if several else "")
            )
    if reasons:
        told = [
            f"Nothing by the law at {enumerate_in_words(where)}: {reason[:1].lower()}{reason[1:]}"
            for reason, where in reasons.items()
        ]
        content.append(element("p", " ".join(told), class_="note"))
    epochs = {row.epochs for row in reading.study.cells}
    if len(epochs) == 1:
        text = (
            f"All cells train for {counted(epochs.pop(), 'epoch')}, so that a budget buys size alone; the best share "
            "of size and epochs shows where epochs vary too (--epochs 10,20,40)."
        )
        content.append(element("p", text, class_="note"))
    return content


def compared(reading: Reading) -> Content:
    if not reading.compared:
        return None
    rows = [(f"{own.second} against {own.first}", own.error, own.difference) for own in reading.compared]
    words = "; ".join(compared_in_words(own) for own in reading.compared)
    figure = element(
        "figure",
        legend({"clean": "clean error", "attacked": "robust error"}),
        plots.difference_plot(rows, "compared", f"Differences of settings. {words}"),
    )
    table_rows = [
        element(
            "tr",
            element("th", f"{own.second} against {own.first}", scope="row"),
            element("td", own.error),
            element("td", points(own.difference)),
            element("td", str(own.num_pairs)),
            element(
                "td",
                " to ".join(points(Estimate(value=end(own.networks.values()))) for end in (min, max)),
            ),
        )
        for own in reading.compared
    ]
    caption = (
        "The error of the one minus that of the other, paired over networks and seeds, with the 95 % t interval of the "
        "mean over these networks and seeds. Nothing is corrected for the number of comparisons."
    )
    table = table_of(
        ["Settings", "Error", "Difference", "Pairs", "By network"], table_rows, caption, "Settings compared"
    )
    return [element("div", [figure], class_="grid broad"), table]


def steps(reading: Reading) -> Content:
    """Return accuracy over the steps of PGD, the mean over seeds of each network and setting."""
    found: dict[str, list[CellRow]] = {}
    for row in reading.study.cells:
        setting = setting_of(row, reading.study)
        own = found.setdefault(row.network + (f", {setting}" if setting else ""), [])
        if row.status == "finished" and row.steps:
            own.append(row)
    found = {title: rows for title, rows in found.items() if rows}
    if not found:
        return None
    chosen, left = list(found.items())[:_MOST_STEPS], max(len(found) - _MOST_STEPS, 0)
    lines, rows = [], []
    for place, (title, cells) in enumerate(chosen):
        shared = sorted(set.intersection(*({int(step) for step in row.steps} for row in cells)))
        means = [(step, sum(row.steps[str(step)] for row in cells) / len(cells)) for step in shared]
        if means:
            lines.append((place, means))
            shown = ", ".join(f"{percent(accuracy)} after {step:,}" for step, accuracy in means)
            rows.append(
                element(
                    "tr",
                    element("th", title, scope="row"),
                    element("td", shown, class_="left", style="white-space:normal"),
                )
            )
    if not lines:
        return None
    note = "The share of test images that no step so far has fooled, the mean over seeds." + (
        f" {counted(left, 'network')} more are in the table of cells alone." if left else ""
    )
    words = "; ".join(f"{title}" for title, _ in chosen)
    figure = plots.steps_plot(lines, "steps", f"Accuracy over the steps of PGD of {words}.")
    table = table_of(["Network", "Accuracy, %"], rows, "Accuracy after so many steps.", "Accuracy over steps", left=2)
    folded = element("details", element("summary", "Accuracy over steps as a table"), table)
    return [
        element("p", note, class_="note"),
        plots.legend([title for title, _ in chosen]),
        element("div", [element("figure", figure)], class_="grid broad"),
        folded,
    ]
