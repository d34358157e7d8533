"""The sections on error over size: laws, and what there is none of; depth against width."""

from __future__ import annotations

from collections.abc import Sequence

from robust_nas.records.reading import SIZES, Estimate, Kind, Law, Reading, Size
from robust_nas.report import scaling_plots as plots
from robust_nas.report._elements import Content, element
from robust_nas.report._page import DASH, explained, unbroken
from robust_nas.report._scaling_parts import KINDS, law_of, points_in_words, priced_by, table_of
from robust_nas.report.findings import enumerate_in_words, percent
from robust_nas.report.scaling_findings import (
    joint_in_words,
    number,
    of_setting,
    pairs_in_words,
    points,
    with_interval,
)
from robust_nas.report.size_plots import in_short

# Error over size -----------------------------------------------------------------------------------------------------


def over_size(reading: Reading) -> Content:
    """Return robust and clean error over parameters and over training FLOPs, with the laws."""
    figures = []
    for over in ("parameters", "training_flops"):
        for kind in KINDS:
            lines = [_line(reading, place, setting, kind, over) for place, setting in enumerate(reading.settings)]
            if not any(line.points for line in lines):
                continue
            title = f"{kind.capitalize()} error over {SIZES[over]}"
            words = "; ".join(
                f"{line.title or 'cells'}: {points_in_words(line.points)}" for line in lines if line.points
            )
            figure = plots.error_plot(
                [line for line in lines if line.points], SIZES[over], f"{kind}-{over}", f"{title}. {words}."
            )
            figures.append(element("figure", element("h3", title), figure))
    if not figures:
        return None
    note = (
        "Each marker is a network's mean over seeds, its vertical line the interval. A curve is the law that was "
        "fitted, with its band over seeds; where it is dashed, it goes beyond the measured sizes. Where there is no "
        "curve, these cells bear no law: the reasons are below."
    )
    named = plots.legend(reading.settings) if len(reading.settings) > 1 else None
    return [element("p", note, class_="note"), named, element("div", figures, class_="grid broad")]


def _line(reading: Reading, place: int, setting: str, kind: Kind, over: Size) -> plots.Line:
    law = law_of(reading, setting, kind, over)
    return plots.Line(
        place,
        setting,
        [(network.cost, network.error) for network in priced_by(reading, setting, kind, over)],
        law.fit.curve if law and law.fit else (),
        kind if len(reading.settings) == 1 else None,
    )


def laws(reading: Reading) -> Content:
    """Return a table of the laws that there are, and the reasons why there are no more."""
    fitted = [law for law in reading.laws if law.fit]
    content: list[Content] = []
    if fitted:
        rows = []
        for law in fitted:
            assert law.fit is not None
            held = law.held_out
            rows.append(
                element(
                    "tr",
                    element("th", _law_title(law), scope="row"),
                    *([element("td", law.setting, class_="left")] if len(reading.settings) > 1 else []),
                    element("td", number(law.fit.exponent)),
                    element("td", with_interval(law.fit.irreducible)),
                    element("td", f"{100 * law.fit.scatter:.1f} %"),
                    element("td", f"{100 * law.fit.noise:.1f} %" if law.fit.noise is not None else DASH),
                    element("td", with_interval(held.predicted) if held else DASH),
                    element("td", with_interval(held.measured) if held else DASH),
                )
            )
        heads = [
            "Law",
            *(["Setting"] if len(reading.settings) > 1 else []),
            "Exponent b",
            "Irreducible E",
            "Off the law",
        ]
        heads += ["Seeds", "Largest, predicted", "Largest, measured"]
        caption = (
            "error = E + A \N{MULTIPLICATION SIGN} size to the power of \N{MINUS SIGN}b. Off the law: the networks' "
            "root mean square distance from it, and Seeds: the standard deviation over seeds, both as shares of the "
            "error. Where networks are further off than seeds vary, size alone does not tell the error. The largest "
            "size is predicted by a fit to all others."
        )
        content.append(table_of(heads, rows, caption, "Laws", left=2 if len(reading.settings) > 1 else 1))
    if refused := _refusals(reading):
        content.append(element("h3", "What these cells do not bear", class_="later"))
        content.append(explained(refused))
    return content or None


def _law_title(law: Law) -> str:
    return f"{law.error.capitalize()} error over {SIZES[law.over]}" + (f", {law.at}" if law.at else "")


def _refusals(reading: Reading) -> list[tuple[str, str]]:
    """Return the reasons against laws, or against going on with them; those for equal ones once."""
    found: dict[tuple[bool, str], dict[str, list[str]]] = {}
    for law in reading.laws:
        if law.refusal:
            kinds = found.setdefault((law.fit is None, law.refusal), {})
            where = ", ".join(part for part in (law.at, law.setting) if part)
            kinds.setdefault(f"{law.error} error over {SIZES[law.over]}", []).append(where)
    titles = {True: "No law", False: "Nothing beyond the measured sizes"}
    rows = []
    for (no_law, reason), kinds in found.items():
        named = [title + (f" ({'; '.join(where)})" if any(where) else "") for title, where in kinds.items()]
        rows.append((titles[no_law], f"{_capital(enumerate_in_words(named))}. {reason}"))
    return rows


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# Depth and width -----------------------------------------------------------------------------------------------------


def depth_and_width(reading: Reading) -> Content:
    content: list[Content] = []
    rows = [row for row in reading.study.cells if row.status == "finished" and row.robust]
    depths = sorted({row.depth for row in rows})
    widths = list(dict.fromkeys(row.width for row in sorted(rows, key=lambda row: row.widths)))
    if len(depths) > 1:
        figures = [
            _over_depth(reading, index, setting, kind, widths)
            for index, setting in enumerate(reading.settings)
            for kind in KINDS
        ]
        if len(widths) > 1:
            content.append(plots.legend([f"width {width}" for width in widths]))
        content.append(element("div", figures, class_="grid broad"))
    if len(depths) > 1 and len(widths) > 1:
        figures = [
            _grid(reading, index, setting, kind, depths, widths)
            for index, setting in enumerate(reading.settings)
            for kind in KINDS
            if priced_by(reading, setting, kind, "parameters")
        ]
        note = "Mean errors in % by depth and width; the darker, the less."
        content += [element("p", note, class_="note later"), element("div", figures, class_="grid broad")]
    content += _equal_cost(reading)
    if len(depths) > 1 and len(widths) > 1:
        content += _joint(reading)
    return content or None


def _over_depth(reading: Reading, index: int, setting: str, kind: Kind, widths: Sequence[str]) -> Content:
    lines = []
    networks = priced_by(reading, setting, kind, "parameters")
    for place, width in enumerate(widths):
        found = [(float(network.depth), network.error) for network in networks if network.width == width]
        law = law_of(reading, setting, kind, "depth", f"width {width}")
        if found:
            curve = law.fit.curve if law and law.fit else ()
            lines.append(
                plots.Line(place, f"width {width}", sorted(found, key=lambda item: item[0]), curve, joined=True)
            )
    if not lines:
        return None
    title = f"{kind.capitalize()} error over depth{of_setting(setting)}"
    words = "; ".join(f"{line.title}: {points_in_words(line.points)}" for line in lines)
    return element(
        "figure",
        element("h3", title),
        plots.error_plot(lines, "depth", f"depth-{kind}-{index}", f"{title}. {words}."),
    )


def _grid(
    reading: Reading, index: int, setting: str, kind: Kind, depths: Sequence[int], widths: Sequence[str]
) -> Content:
    found = {
        (network.width, network.depth): network.error.value
        for network in priced_by(reading, setting, kind, "parameters")
    }
    errors = [[found.get((width, depth)) for depth in depths] for width in widths]
    title = f"{kind.capitalize()} error by depth and width{of_setting(setting)}"
    words = "; ".join(f"width {width}, depth {depth}: {percent(error)} %" for (width, depth), error in found.items())
    figure = plots.grid_plot(depths, widths, errors, f"grid-{kind}-{index}", f"{title}. {words}.")
    return element("figure", element("h3", title), figure)


def _equal_cost(reading: Reading) -> list[Content]:
    """Return depth against width at equal cost: a table of pairs for each cost, and who wins in a sentence."""
    content: list[Content] = []
    for over in dict.fromkeys(pair.over for pair in reading.equal_cost):
        pairs = [pair for pair in reading.equal_cost if pair.over == over]
        several = len(reading.settings) > 1
        rows = [
            element(
                "tr",
                element("th", pair.deeper, scope="row"),
                element("td", pair.wider, class_="left"),
                *([element("td", pair.setting, class_="left")] if several else []),
                element("td", in_short(pair.deeper_cost)),
                element("td", in_short(pair.wider_cost)),
                element("td", pair.error),
                element("td", points(pair.difference)),
                element("td", str(pair.num_seeds)),
                element("td", pair.verdict),
            )
            for pair in pairs
        ]
        heads = ["Deeper", "Wider", *(["Setting"] if several else []), "Cost of the deeper", "Cost of the wider"]
        heads += ["Error", "Difference", "Seeds", "Better"]
        sentences = " ".join(
            pairs_in_words(own) for kind in KINDS if (own := [pair for pair in pairs if pair.error == kind])
        )
        caption = (
            f"Pairs of about as many {SIZES[over]}. The difference is the error of the deeper minus that of the wider, "
            "paired over seeds, with its 95 % t interval; where that holds 0, these seeds do not decide. Nothing is "
            "corrected for the number of pairs."
        )
        content += [
            element("h3", f"At equal {SIZES[over]}", class_="later"),
            element("p", unbroken(sentences)),
            element(
                "details",
                element("summary", f"Pairs of about as many {SIZES[over]} as a table"),
                table_of(heads, rows, caption, f"Depth against width at equal {SIZES[over]}", left=3 if several else 2),
            ),
        ]
    if not content and reading.frontiers:
        text = (
            "No deeper and no wider network of this study cost about the same, so that it does not tell which of the "
            "two is the better use of a cost."
        )
        content.append(element("p", text, class_="note later"))
    return content


def _joint(reading: Reading) -> list[Content]:
    sentences = list(dict.fromkeys(joint_in_words(law) for law in reading.joint))
    content: list[Content] = [element("h3", "Depth and width together", class_="later")] if sentences else []
    content += [element("p", unbroken(sentence)) for sentence in sentences]
    rows = [
        element(
            "tr",
            element("th", f"{in_short(balance.multiply_adds)}", scope="row"),
            element("td", law.error + (f", {law.setting}" if law.setting else ""), class_="left"),
            element("td", _around(balance.depth, ".0f")),
            element("td", _around(balance.width, ".2g")),
            element("td", with_interval(balance.error)),
            element(
                "td", f"the measured {balance.at_edge}s end there" if balance.at_edge else "inside the measured ones"
            ),
        )
        for law in reading.joint
        for balance in law.balances
    ]
    if rows:
        caption = (
            "The depth and width of least error at a cost, by error = E + A \N{MULTIPLICATION SIGN} depth to the power "
            "of \N{MINUS SIGN}a + B \N{MULTIPLICATION SIGN} width to the power of \N{MINUS SIGN}b, inside the measured "
            "depths and widths."
        )
        heads = ["Multiply-adds", "Error", "Depth", "Width", "Error there", "Where"]
        content.append(table_of(heads, rows, caption, "Depth and width of least error", left=2))
    return content


def _around(found: Estimate, form: str) -> str:
    ends = [f"{end:{form}}" for end in (found.low, found.high) if end is not None]
    return f"{found.value:{form}}" + (f" ({ends[0]} to {ends[1]})" if ends else "")
