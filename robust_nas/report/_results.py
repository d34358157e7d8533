"""The numbers: each model's accuracies, drawn and in a table, and the distances of its adversarial examples."""

from __future__ import annotations

import re

from robust_nas.core.palette import variable
from robust_nas.core.pixels import format_pixels
from robust_nas.report import attack_plots, plots
from robust_nas.report._contents import Measurements, Rated, Threat, format_attack
from robust_nas.report._elements import Content, Html, element
from robust_nas.report._page import DASH, EPSILON, column_head, interval_of, scroll
from robust_nas.report.findings import enumerate_in_words, format_threat, percent

_MOST_UPRIGHT = 13
"""The columns under a second head that a printed page takes upright; with more, it is a broad one."""


def results(contents: Measurements, method: str | None = None) -> Content:
    """Return the accuracies of all models: the important ones drawn, all of them in a table.

    Args:
        contents: the folder's files.
        method: the kind of bounds that certified accuracies come from.
    """
    if not (contents.attacked or contents.certified):
        return None
    return [_overview(contents), scroll(_table(contents, method), "Results")]


def _table(contents: Measurements, method: str | None) -> Html:
    kinds = {item.count for item in _all_measurements(contents)}
    shared = kinds.pop() if len(kinds) == 1 else None
    several, radii = len(contents.threats) > 1, contents.certified_epsilons
    # What a telephone shows without scrolling comes first: the worst case and the certificates before each attack.
    first: list[Content] = [element("th", "Model", scope="col", rowspan=2)]
    second: list[Content] = []
    if contents.attacked:
        first.append(element("th", element("span", "Clean", class_="clean"), scope="col", rowspan=2))
    if several:
        first.append(_group("All threats", "attacked", 2))
        second += [_head("Union", "worst case"), _head("Average", "of worst cases")]
    elif contents.threats:
        span = element("span", "Worst case", class_="attacked")
        below = element("small", format_threat(contents.threats[0]))
        first.append(element("th", span, below, scope="col", rowspan=2))
    if radii:
        first.append(_group("Certified", "certified", len(radii), f"by {method} bounds"))
        second += [_head(f"{EPSILON} = {format_pixels(epsilon)}") for epsilon in radii]
    for threat in contents.threats:
        attacks = _attacks_at(contents, threat)
        first.append(_group(f"Under attack, {format_threat(threat)}", "attacked", len(attacks) + several))
        second += [_head("Worst case")] if several else []
        # "PGD over epsilon" in two lines, to keep the column narrow.
        second += [_head(*format_attack(name).split(" ", 1)) for name, *_ in attacks]
    over = f"Every number is over {shared} images" if shared else "n is the number of images"
    caption = (
        f"Accuracy in % with its 95 % Wilson interval. {over}; {DASH} marks a missing measurement. The worst case "
        "counts an image as correct only if it withstands every attack that was run on that model"
    )
    caption += " at that threat model, the union only if it withstands those of all threat models." if several else "."
    return element(
        "table",
        element("caption", caption),
        element("thead", element("tr", first), element("tr", second)),
        element("tbody", [_row(contents, model, shared) for model in contents.models]),
        class_="wide" if len(second) <= _MOST_UPRIGHT else "wide broadest",
    )


def _group(text: str, kind: str, count: int, below: str | None = None) -> Html:
    """Return the head of several columns."""
    span = element("span", text, class_=kind)
    return element("th", span, element("small", below) if below else None, scope="colgroup", colspan=count)


def _head(text: str, below: str | None = None) -> Html:
    # A line may end between an attack's settings.
    parts = [[part, element("wbr")] for part in re.split(r"(?<=[\[,=])", text)]
    return element("th", parts, element("small", below) if below else None, scope="col")


def _attacks_at(contents: Measurements, threat: Threat) -> list[tuple[str, str, float]]:
    return [attack for attack in contents.measured if attack[1:] == threat]


def _all_measurements(contents: Measurements) -> list[Rated]:
    found: list[Rated] = [item for items in contents.certified.values() for item in items]
    for result in contents.attacked.values():
        found += [result.clean, result.worst_case, *result.attacks]
    return found


def _row(contents: Measurements, model: str, shared: int | None) -> Html:
    result = contents.attacked.get(model)
    cells = [_cell(result.clean if result else None, shared)] if contents.attacked else []
    several = len(contents.threats) > 1
    if several:
        cells.append(_cell(contents.union_of(model), shared, strong=True))
        average = result.average if result and contents.union_of(model) else None
        cells.append(element("td", DASH if average is None else percent(average)))
    proved = [_cell(contents.certificate_of(model, epsilon), shared) for epsilon in contents.certified_epsilons]
    attacked: list[Html] = []
    for threat in contents.threats:
        measured = [contents.attack_on(model, attack) for attack in _attacks_at(contents, threat)]
        among = f"of {sum(item is not None for item in measured)} attacks"
        worst = _cell(contents.worst_case_of(model, threat), shared, among, strong=True)
        (attacked if several else cells).append(worst)
        attacked += [_cell(item, shared) for item in measured]
    cells += [*proved, *attacked]
    digits = contents.digits_of(model)
    head = element("th", contents.title_of(model), element("small", digits) if digits else None, scope="row")
    return element("tr", head, cells, class_="joined" if contents.is_combined(model) else None)


def _cell(item: Rated | None, shared: int | None, among: str | None = None, *, strong: bool = False) -> Html:
    if item is None:
        return element("td", element("span", DASH, title="not run", aria_label="not run"))
    below = [element("small", interval_of(item))]
    if shared is None:
        below.append(element("small", f"n = {item.count}".replace(" ", "\N{NO-BREAK SPACE}")))
    if among:
        below.append(element("small", among))
    value = percent(item.accuracy)
    return element("td", element("strong", value) if strong else value, below)


def _overview(contents: Measurements) -> Html:
    rows = []
    radius = contents.quoted_radius
    for model in contents.models:
        result = contents.attacked.get(model)
        proved = contents.certificate_of(model, radius) if radius is not None else None
        values: dict[str, Rated] = {"clean": result.clean, "attacked": result.worst_case} if result else {}
        rows.append((contents.title_of(model), {**values, "certified": proved} if proved else values))
    named = {}
    if contents.attacked:
        threats = enumerate_in_words([format_threat(threat) for threat in contents.threats])
        union = " together" if len(contents.threats) > 1 else ""
        named = {"clean": "clean", "attacked": f"worst case at {threats}{union}"}
    if radius is not None:
        named["certified"] = f"certified at {format_pixels(radius)}"
    figure = attack_plots.overview_plot(rows, "overview", f"{enumerate_in_words(list(named.values()))} of each model.")
    return element("figure", legend(named), figure, style="margin-bottom:1.2rem")


def legend(named: dict[str, str]) -> Html:
    """Return a legend of clean, attacked and certified, with their markers."""
    shapes = {
        "o": '<circle cx="6" cy="6" r="4.2"/>',
        "s": '<rect x="2" y="2" width="8" height="8"/>',
        "^": '<path d="M6 1.6 10.8 10.2H1.2Z"/>',
    }
    items = []
    for kind, text in named.items():
        colour, marker = plots.MARKERS[kind]
        swatch = element("svg", Html(shapes[marker]), viewBox="0 0 12 12", fill=variable(colour), aria_hidden="true")
        items.append(element("li", swatch, text))
    return element("ul", items, class_="legend")


def distances(contents: Measurements) -> Content:
    """Return a table of how far the nearest adversarial examples are that were found."""
    attacked = contents.attacked
    items = [(model, item) for model in contents.models if model in attacked for item in attacked[model].distortions]
    if not items:
        return None
    order = list(dict.fromkeys((item.norm, item.attack) for _, item in items))
    rows, shares = [], ("0.1", "0.25", "0.5", "0.75", "0.9")
    for model, item in sorted(items, key=lambda pair: order.index((pair[1].norm, pair[1].attack))):
        head = element("th", contents.title_of(model), scope="row")
        how = element("td", f"{format_attack(item.attack)}, {item.norm}", class_="left")
        cells = [element("td", _distance(item.quantiles.get(share))) for share in shares]
        rows.append(element("tr", head, how, cells, element("td", f"{item.found} of {item.count}")))
    heads = [column_head("Model"), column_head("Attack", left=True)]
    heads += [column_head(f"{100 * float(share):g} %") for share in shares]
    caption = (
        "The distance within which an adversarial example was found for so many of the images: at 50 %, the median. "
        f"An image that is misclassified as it is has distance 0; {DASH} means that fewer were found. The attack "
        "looks for the nearest example, and may miss it: true distances are no larger."
    )
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", heads, column_head("Found"))),
        element("tbody", rows),
        class_="named",
    )
    return scroll(table, "Smallest distortions")


def _distance(value: float | None) -> str:
    """Return a distance with three digits, which line up in a column."""
    if value is None:
        return DASH
    return f"{value:#.3g}".rstrip(".") if value else "0"
