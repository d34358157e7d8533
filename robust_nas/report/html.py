"""The page: `write_report(run)` writes `report.html`, from the files in the run folder only.

The page loads nothing, runs nothing and is the same for the same files. A stage that has not run is named, and its
section is left out.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_nas.pixels import format_pixels
from robust_nas.report import plots
from robust_nas.report._contents import Contents, format_attack
from robust_nas.report._elements import Content, Html, element
from robust_nas.report._style import STYLE
from robust_nas.report.drawing import describe_cell, draw_cell
from robust_nas.report.findings import (
    Difference,
    check_consistency,
    compare_ensemble,
    enumerate_in_words,
    limits,
    percent,
    summary,
)
from robust_nas.run_dir import STAGE_FILES, RunDir, unfinished_stages, write_text

if TYPE_CHECKING:
    import numpy as np

MAX_EXAMPLES = 9

_DASH = "\N{EN DASH}"


def write_report(run: RunDir) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises:
        InputError: if one of the run's files is damaged.
    """
    path = run / "report.html"
    write_text(path, page(Contents.read(run)))
    return path


def page(contents: Contents) -> Html:
    """Return the whole page."""
    sections = [(title, body) for title, section in _SECTIONS if (body := section(contents)) is not None]
    titled = [(title, title.lower().replace(" ", "-"), body) for title, body in sections]
    name = contents.path.resolve().name
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{name} {_DASH} robust-nas"),
        element("style", Html(STYLE)),
    )
    links = [element("li", element("a", title, href=f"#{key}")) for title, key, _ in titled]
    body = element(
        "body",
        _header(contents, name),
        element("nav", element("ul", links), aria_label="Contents"),
        element(
            "main",
            [
                element(
                    "section", element("h2", title, id=f"{key}-title"), content, id=key, aria_labelledby=f"{key}-title"
                )
                for title, key, content in titled
            ],
        ),
        element("footer", f"Written by robust-nas {contents.environment.get('version', '')} from the files in {name}."),
    )
    return Html(f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n")


def _header(contents: Contents, name: str) -> Html:
    environment = contents.environment
    facts = [
        name,
        f"{contents.norm}, \N{GREEK SMALL LETTER EPSILON} = {format_pixels(contents.epsilon)}",
        f"seed {contents.seed}",
        f"robust-nas {environment.get('version', '?')}",
        str(environment.get("device", "")),
        str(environment.get("started", "")).replace("T", " ").replace("+00:00", " UTC"),
    ]
    missing = [stage for stage in unfinished_stages(contents.path) if stage not in ("record", "report")]
    note = f"This report is partial. Not yet run: {enumerate_in_words(missing)}." if missing else None
    return element(
        "header",
        element("h1", f"Robust architectures on {contents.config['data']['name']}"),
        element("p", " \N{MIDDLE DOT} ".join(fact for fact in facts if fact), class_="facts"),
        [element("p", sentence, class_="lead") for sentence in summary(contents)],
        element("p", note, class_="missing", role="note") if note else None,
    )


# The numbers ---------------------------------------------------------------------------------------------------------


def _results(contents: Contents) -> Content:
    if not (contents.attacked or contents.certified):
        return None
    kinds = {item["count"] for item in _all_measurements(contents)}
    shared = kinds.pop() if len(kinds) == 1 else None
    attacks, radii = contents.measured, contents.certified_epsilons
    first: list[Content] = [element("th", "Model", scope="col", rowspan=2)]
    if contents.attacked:
        first.append(element("th", element("span", "Clean", class_="clean"), scope="col", rowspan=2))
        span = element("span", "Accuracy under attack", class_="attacked")
        first.append(element("th", span, scope="colgroup", colspan=len(attacks) + 1))
    if radii:
        span = element("span", f"Certified by {contents.stages['certify']['method']} bounds", class_="certified")
        first.append(element("th", span, scope="colgroup", colspan=len(radii)))
    second = [
        element("th", format_attack(name), element("small", f"{norm} {format_pixels(epsilon)}"), scope="col")
        for name, norm, epsilon in attacks
    ]
    if contents.attacked:
        second.append(element("th", "Worst case", element("small", "of the attacks run"), scope="col"))
    second += [
        element("th", f"\N{GREEK SMALL LETTER EPSILON} = {format_pixels(epsilon)}", scope="col") for epsilon in radii
    ]
    rows = [_result_row(contents, model, shared) for model in contents.models]
    over = f"Every number is over {shared} images" if shared else "n is the number of images"
    caption = (
        f"Accuracy in % with its 95 % Wilson interval. {over}; {_DASH} marks what was not run. The worst case counts "
        "an image as correct only if it withstands every attack that was run on that model."
    )
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", first), element("tr", second)),
        element("tbody", rows),
        class_="wide",
    )
    return [_overview(contents), _scroll(table, "Results")]


def _all_measurements(contents: Contents) -> list[dict[str, Any]]:
    found = [item for results in contents.certified.values() for item in results]
    for result in contents.attacked.values():
        found += [result["clean"], result["worst_case"], *result["attacks"]]
    return found


def _result_row(contents: Contents, model: str, shared: int | None) -> Html:
    result = contents.attacked.get(model)
    cells = []
    if contents.attacked:
        cells.append(_cell(result and result["clean"], shared))
        cells += [_cell(contents.attack_on(model, attack), shared) for attack in contents.measured]
        among = f"of {len(result['attacks'])} attacks" if result else None
        cells.append(_cell(result and result["worst_case"], shared, among))
    cells += [_cell(contents.certificate_of(model, epsilon), shared) for epsilon in contents.certified_epsilons]
    digits = contents.digits_of(model)
    head = element("th", contents.title_of(model), element("small", digits) if digits else None, scope="row")
    return element("tr", head, cells, class_=None if model in contents.trained else "joined")


def _cell(item: dict[str, Any] | None, shared: int | None, among: str | None = None) -> Html:
    if item is None:
        return element("td", element("span", _DASH, title="not run", aria_label="not run"))
    below = [element("small", f"{percent(item['low'])}{_DASH}{percent(item['high'])}")]
    if shared is None:
        below.append(element("small", f"n = {item['count']}"))
    if among:
        below.append(element("small", among))
    return element("td", percent(item["accuracy"]), below)


def _overview(contents: Contents) -> Content:
    rows = []
    for model in contents.models:
        result, radii = contents.attacked.get(model, {}), contents.certified_epsilons
        proved = contents.certificate_of(model, radii[0]) if radii else None
        values = {"clean": result.get("clean"), "attacked": result.get("worst_case"), "certified": proved}
        rows.append((contents.title_of(model), values))
    named = {"clean": "clean", "attacked": f"worst case at {contents.norm} {format_pixels(contents.epsilon)}"}
    if contents.certified_epsilons:
        named["certified"] = f"certified at {format_pixels(contents.certified_epsilons[0])}"
    figure = plots.overview_plot(rows, "overview", "Clean, worst-case and certified accuracy of each model.")
    return element("figure", _legend(named), figure, style="margin-bottom:1.2rem")


def _legend(named: dict[str, str]) -> Html:
    """Return a legend of clean, attacked and certified, with their markers."""
    shapes = {
        "o": '<circle cx="6" cy="6" r="4.2"/>',
        "s": '<rect x="2" y="2" width="8" height="8"/>',
        "^": '<path d="M6 1.6 10.8 10.2H1.2Z"/>',
    }
    items = []
    for kind, text in named.items():
        colour, marker = plots.MARKERS[kind]
        swatch = element("svg", Html(shapes[marker]), viewBox="0 0 12 12", fill=colour, aria_hidden="true")
        items.append(element("li", swatch, text))
    return element("ul", items, class_="legend")


def _scroll(content: Content, name: str) -> Html:
    """Return a box that scrolls sideways, by keyboard too."""
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=name)


# What was found ------------------------------------------------------------------------------------------------------


def _architectures(contents: Contents) -> Content:
    chosen = {name: model["architecture"] for name, model in contents.trained.items()}
    if not chosen and contents.stages["derive"]:
        chosen = {f"model-{index}": text for index, text in enumerate(contents.stages["derive"]["chosen"])}
    if not chosen:
        return None
    cards = [_architecture_card(contents, name, text) for name, text in chosen.items()]
    note = (
        "A node is the sum of its incoming edges. Dotted lines are edges without an operation (none); grey ones carry "
        "nothing from the input to the output."
    )
    return [element("p", note, class_="note"), element("div", cards, _candidates(contents), class_="grid broad")]


def _architecture_card(contents: Contents, name: str, text: str) -> Html:
    architecture, model, short = contents.parse(text), contents.trained.get(name, {}), _short(contents, text)
    facts: dict[str, str] = {}
    if "parameters" in model:
        facts["Parameters"] = f"{model['parameters']:,}"
    if adds := model.get("multiply_adds", model.get("flops")):
        facts["Multiply-adds"] = f"{adds:,}"
    if "epochs" in model:
        facts["Training"] = f"{model['epochs']} epochs of {model.get('method', '')}, {_duration(model.get('seconds'))}"
    if "validation" in model:
        facts["Validation"] = (
            f"clean {percent(model['validation']['clean'])} %, robust {percent(model['validation']['robust'])} %"
        )
    drawing = draw_cell(architecture, contents.operations, f"cell-{name}", describe_cell(architecture))
    return element(
        "figure",
        element("h3", name, " ", element("small", short) if short != text else None),
        drawing,
        element(
            "figcaption", element("code", [[part, element("wbr")] for part in re.findall(r"[^|]*\|\+?|[^|]+", text)])
        ),
        _definitions(facts),
    )


def _candidates(contents: Contents) -> Content:
    derive = contents.stages["derive"]
    if not derive:
        return None
    rows = []
    for candidate in derive["candidates"]:
        rows.append(
            element(
                "tr",
                element("th", str(candidate.get("rank") or _DASH), scope="row"),
                element("td", element("code", _short(contents, candidate["architecture"])), class_="left"),
                element("td", f"{candidate['log_posterior']:.2f}".replace("-", "\N{MINUS SIGN}")),
                [
                    element("td", _DASH if value is None else percent(value))
                    for value in (candidate["validation_clean"], candidate["validation_robust"])
                ],
            )
        )
    heads = ("Rank", "Architecture", "Log posterior", "Clean, %", "Robust, %")
    caption = (
        f"The candidates: the most probable architectures that compute different functions, then by robust accuracy "
        f"with the supernet's weights on {derive.get('num_validation', '?')} validation images. Inherited "
        "weights rank, they do not predict the accuracy after training. Those with a rank were trained."
    )
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", [_column_head(text, left=text in ("Rank", "Architecture")) for text in heads])),
        element("tbody", rows),
    )
    return element("div", element("h3", "Derivation"), _scroll(table, "Derivation"))


def _short(contents: Contents, text: str) -> str:
    """Return an architecture's digits form, or its string form where digits would not do."""
    return contents.parse(text).digits(contents.operations) if len(contents.operations) <= 10 else text


def _column_head(text: str, *, left: bool = False) -> Html:
    return element("th" if text else "td", text, scope="col" if text else None, class_="left" if left else None)


def _search(contents: Contents) -> Content:
    search = contents.stages["search"]
    trajectory = (search or {}).get("trajectory", [])
    if not trajectory or "concentration" not in trajectory[0]:
        return None
    operations, edges = search["operations"], search["edges"]
    epochs = [row["epoch"] for row in trajectory]
    figures = []
    for index, (source, target) in enumerate(edges):
        moved = [row["concentration"][index] for row in trajectory]
        final = moved[-1]
        winner = max(range(len(operations)), key=lambda place: final[place])
        share = final[winner] / sum(final)
        edge = f"{source} \N{RIGHTWARDS ARROW} {target}"
        caption = f"ends at {operations[winner]} with {percent(share)} % of the mean mixture"
        name = f"Concentrations on edge {source} to {target} over {epochs[-1]} epochs: {caption}."
        figure = plots.concentration_plot(epochs, moved, operations, f"edge-{index}", name)
        head = element("h3", f"Edge {edge} ", element("small", f"{operations[winner]}, {percent(share)} %"))
        figures.append(element("figure", head, figure))
    if "entropy" in trajectory[0]:
        entropies = [row["entropy"] for row in trajectory]
        name = f"Entropy of the mean mixture: from {entropies[0]:.2f} to {entropies[-1]:.2f} nats."
        head = element("h3", "Entropy ", element("small", "nats, mean over edges"))
        figures.append(element("figure", head, plots.entropy_plot(epochs, entropies, "entropy", name)))
    if "validation" in trajectory[0]:
        clean, robust = ([row["validation"][kind] for row in trajectory] for kind in ("clean", "robust"))
        name = (
            f"Supernet on validation images: clean {percent(clean[-1])} %, robust {percent(robust[-1])} % at the end."
        )
        head = element("h3", "Supernet ", element("small", "validation accuracy"))
        figure = plots.curve_plot(epochs, clean, robust, "supernet", name)
        figures.append(element("figure", head, figure, _curve_legend()))
    held = {True: "held fixed", False: "drawn again"}.get(search.get("hold_sample"))
    note = [
        f"Dirichlet concentrations of the operations on each edge, over {epochs[-1]} epochs of search"
        f" ({_duration(search.get('seconds'))}). The operation that ends highest is drawn thicker."
    ]
    if held:
        note.append(f" The Dirichlet sample was {held} between crafting an adversarial example and its loss.")
    if "validation" in trajectory[0]:
        note.append(" Validation uses the Dirichlet mean, not a sample.")
    return [
        element("p", note, class_="note"),
        _operation_legend(operations),
        element("div", figures, class_="grid"),
    ]


def _operation_legend(operations: Sequence[str]) -> Html:
    colours, dashes = plots.operation_colours(operations), plots.operation_dashes(operations)
    items = []
    for operation in operations:
        dash = dashes[operation]
        pattern = None if dash == "-" else " ".join(f"{2 * length:g}" for length in dash[1])
        line = element(
            "line",
            x1="0",
            y1="6",
            x2="30",
            y2="6",
            stroke=colours[operation],
            stroke_width="2.5",
            stroke_dasharray=pattern,
        )
        items.append(element("li", element("svg", line, viewBox="0 0 30 12", aria_hidden="true"), operation))
    return element("ul", items, class_="legend")


def _curve_legend() -> Html:
    lines = []
    for text, colour, pattern in (("clean", plots.CLEAN, None), ("under attack", plots.ATTACKED, "8 3")):
        line = element(
            "line", x1="0", y1="6", x2="30", y2="6", stroke=colour, stroke_width="2.5", stroke_dasharray=pattern
        )
        lines.append(element("li", element("svg", line, viewBox="0 0 30 12", aria_hidden="true"), text))
    return element("ul", lines, class_="legend")


def _training(contents: Contents) -> Content:
    figures = []
    for index, (name, model) in enumerate(contents.trained.items()):
        rows = [row for row in contents.metrics if row["stage"] == f"train-{index}"]
        if not rows:
            continue
        epochs = [row["step"] for row in rows]
        clean, robust = ([row.get(f"validation_{kind}") for row in rows] for kind in ("clean", "robust"))
        best = model["validation"]
        text = (
            f"best epoch {model['best_epoch']}: clean {percent(best['clean'])} %, robust {percent(best['robust'])} %; "
            f"last epoch: {percent(model['last']['clean'])} %, {percent(model['last']['robust'])} %"
        )
        figure = plots.curve_plot(
            epochs, clean, robust, f"training-{index}", f"Training of {name}: {text}.", model["best_epoch"]
        )
        figures.append(element("figure", element("h3", name), figure, element("figcaption", text.capitalize() + ".")))
    if not figures:
        return None
    note = (
        "Accuracy on validation images after each epoch. The weights of the epoch with the best robust accuracy are "
        "kept; everything on this page is measured with them."
    )
    return [element("p", note, class_="note"), _curve_legend(), element("div", figures, class_="grid")]


# How robust it is ----------------------------------------------------------------------------------------------------


def _radii(contents: Contents) -> Content:
    if not (contents.attacked or contents.certified):
        return None
    figures = []
    for index, model in enumerate(contents.models):
        result, proved = contents.attacked.get(model), contents.certified.get(model, [])
        if not result and not proved:
            continue
        title = contents.title_of(model)
        name = f"Accuracy of {title} over the radius: {_curve_in_words(result, proved)}"
        figure = plots.epsilon_plot(result, proved, contents.epsilon, f"radius-{index}", name)
        figures.append(element("figure", element("h3", title), figure))
    note = (
        "The axis is linear up to the smallest radius and logarithmic from there on. The dotted line is the threat's "
        "radius; the open diamond on it is the worst case over all attacks with its 95 % interval. Between the "
        "certified and the attacked curve, nothing is known."
    )
    legend = _legend({"clean": "clean", "attacked": "under the curve's attack", "certified": "certified"})
    return [element("p", note, class_="note"), legend, element("div", figures, class_="grid")]


def _curve_in_words(result: dict[str, Any] | None, proved: Sequence[dict[str, Any]]) -> str:
    parts = [f"clean {percent(result['clean']['accuracy'])} %"] if result else []
    parts += [
        f"attacked at {format_pixels(point['epsilon'])} {percent(point['accuracy'])} %"
        for point in (result or {}).get("curve", [])
    ]
    parts += [f"certified at {format_pixels(item['epsilon'])} {percent(item['certified'])} %" for item in proved]
    return f"{', '.join(parts)}."


def _examples(contents: Contents) -> Content:
    if contents.examples is None:
        return None
    import numpy as np

    examples = contents.examples
    originals, adversarial = (np.asarray(examples[key], dtype=np.float64) for key in ("originals", "adversarial"))
    epsilon = float(examples.get("epsilon") or contents.epsilon)
    difference = adversarial - originals
    reach = epsilon if contents.norm == "linf" else float(np.abs(difference).max(initial=1e-12))
    labels, before, after = ([int(value) for value in examples[key]] for key in _PREDICTIONS)
    cards = []
    for index in range(min(len(originals), MAX_EXAMPLES)):
        pictures = (
            (originals[index], f"read as {before[index]}", "original"),
            (adversarial[index], f"read as {after[index]}", "adversarial"),
            (0.5 + difference[index] / (2 * reach), "difference", "amplified difference"),
        )
        images = [
            element(
                "div",
                element("img", src=_png(pixels), alt=f"{kind} image of class {labels[index]}, {text}"),
                element("span", text),
            )
            for pixels, text, kind in pictures
        ]
        fooled = after[index] != labels[index]
        title = f"Class {labels[index]}{'' if fooled else ' (withstood)'}"
        cards.append(element("figure", element("h3", title), element("div", images, class_="triple")))
    attack = format_attack(str(examples.get("attack") or "the attack"))
    model = examples.get("model")
    note = (
        f"Test images{f' of {contents.title_of(str(model))}' if model else ''} and what {attack} makes of them at "
        f"{contents.norm} {format_pixels(epsilon)}: original, adversarial, and their difference times "
        f"{1 / (2 * reach):.3g} around grey. They were picked because the network is surest of its mistake; "
        "how often an attack succeeds stands in the table."
    )
    return [element("p", note, class_="note"), element("div", cards, class_="examples")]


_PREDICTIONS = ("labels", "clean_predictions", "predictions")


def _png(pixels: np.ndarray[Any, Any]) -> str:
    """Return an image [C, H, W] in [0, 1], grey or RGB, as a PNG data address."""
    import numpy as np
    from PIL import Image

    array = np.round(pixels.clip(0, 1) * 255).astype(np.uint8)
    channels = array if len(array) == 3 else array[:1].repeat(3, axis=0)
    buffer = io.BytesIO()
    Image.fromarray(channels.transpose(1, 2, 0)).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _ensemble(contents: Contents) -> Content:
    ensemble = contents.stages["ensemble"]
    if not ensemble:
        return None
    scales = ensemble.get("scales") or [None] * len(ensemble["members"])
    rows = []
    for member, weight, scale in zip(ensemble["members"], ensemble["weights"], scales, strict=True):
        best = " (best single network by validation)" if member == ensemble.get("best_single") else None
        head = element("th", member, element("small", contents.digits_of(member), best), scope="row")
        cells = [element("td", f"{weight:.3f}"), element("td", _DASH if scale is None else f"{scale:.4g}")]
        bar = element("span", class_="bar", style=f"width:{100 * weight / max(ensemble['weights']):.1f}%")
        rows.append(element("tr", head, cells, element("td", bar, class_="bars", aria_hidden="true")))
    facts = f"Weights fitted on the certified margins of {ensemble['num_validation']} validation images"
    if ensemble.get("epsilon") is not None:
        facts += f" at radius {format_pixels(ensemble['epsilon'])}"
    if ensemble.get("objective") is not None and ensemble.get("uniform_objective") is not None:
        facts += (
            f"; objective {ensemble['objective']:.6g}, against {ensemble['uniform_objective']:.6g} of equal weights"
        )
    table = element(
        "table",
        element("caption", f"{facts}. Each network's logits are divided by its scale before they are weighted."),
        element("thead", element("tr", [_column_head(text) for text in ("Network", "Weight", "Scale", "")])),
        element("tbody", rows),
    )
    weights = _scroll(table, "The ensemble's weights")
    return element("div", element("div", weights), element("div", _comparison(contents)), class_="two")


def _comparison(contents: Contents) -> Content:
    compared = {name: found for name, found in compare_ensemble(contents).items() if found}
    if not compared:
        return None
    points = {name: {item.measurement: item for item in found} for name, found in compared.items()}
    rows = []
    for measurement in dict.fromkeys(item.measurement for found in compared.values() for item in found):
        cells = [element("td", _points(found.get(measurement))) for found in points.values()]
        rows.append(element("tr", element("th", measurement, scope="row"), cells))
    heads = [_column_head("Ensemble, in points"), *(_column_head(f"over {name}") for name in compared)]
    caption = (
        "What the ensemble gains. An asterisk marks a difference whose two 95 % intervals do not overlap; the others "
        "may be chance. Worst cases are left out: they may be over different attacks."
    )
    table = element(
        "table", element("caption", caption), element("thead", element("tr", heads)), element("tbody", rows)
    )
    return _scroll(table, "The ensemble compared")


def _points(item: Difference | None) -> str:
    if item is None:
        return _DASH
    text = "0.0" if abs(item.points) < 0.05 else f"{item.points:+.1f}".replace("-", "\N{MINUS SIGN}")
    return f"{text}*" if item.apart else text


def _checks(contents: Contents) -> Content:
    if not (contents.attacked or contents.certified):
        return None
    found = check_consistency(contents)
    text = f"{found.comparisons:,} comparisons of single images, "
    text += "and the curves" if contents.attacked else ""
    if found.violations:
        statement: list[Content] = [
            element(
                "p", element("strong", "Certified \u2264 attacked \u2264 clean is violated."), " This is a defect:"
            ),
            element("ul", [element("li", sentence) for sentence in found.violations]),
        ]
    elif not found.comparisons:
        statement = [
            element("p", "There are no outcomes of single images in the run folder; the order was not checked.")
        ]
    else:
        statement = [
            element("p", element("strong", "Certified \u2264 attacked \u2264 clean holds"), f" in {text.rstrip(', ')}.")
        ]
        if contents.certified and contents.attacked and not found.per_image:
            statement.append(
                element(
                    "p",
                    "No attack in the table was run at or below a certified radius, so certificates were compared with "
                    "attacks along the curves only, and with clean outcomes image by image.",
                    class_="note",
                )
            )
    return [*statement, _masking(contents)]


def _masking(contents: Contents) -> Content:
    checks = {
        model: {check["check"]: check for check in result.get("masking", [])}
        for model, result in contents.attacked.items()
        if result.get("masking")
    }
    if not checks:
        return element("p", "The checks for gradient masking were not run.", class_="note")
    models = [model for model in contents.models if model in checks]
    rows: list[Html] = []
    details: list[Html] = []
    failures: list[Html] = []
    for sentence in dict.fromkeys(sentence for found in checks.values() for sentence in found):
        cells = []
        for model in models:
            check = checks[model].get(sentence)
            if check is None:
                cells.append(element("td", _DASH))
                continue
            cells.append(element("td", "passed" if check["passed"] else element("strong", "FAILED", class_="attacked")))
            item = element("li", f"{contents.title_of(model)}: {sentence} {_DASH} {check['detail']}")
            (details if check["passed"] else failures).append(item)
        rows.append(
            element("tr", element("th", sentence, scope="row", style="white-space:normal;min-width:14rem"), cells)
        )
    heads = [_column_head("Check"), *(_column_head(contents.title_of(model)) for model in models)]
    table = element(
        "table",
        element("caption", "Signs of gradient masking, where attacks fail because gradients mislead them."),
        element("thead", element("tr", heads)),
        element("tbody", rows),
    )
    failed = [element("p", "What failed:"), element("ul", failures)] if failures else None
    more = element("details", element("summary", "What the passed checks found"), element("ul", details, class_="note"))
    return [_scroll(table, "Checks for gradient masking"), failed, more]


# What it rests on ----------------------------------------------------------------------------------------------------


def _limits(contents: Contents) -> Content:
    return element(
        "dl", [[element("dt", about), element("dd", text)] for about, text in limits(contents)], class_="limits"
    )


def _setup(contents: Contents) -> Content:
    environment = contents.environment
    facts = {
        "robust-nas": f"{environment.get('version', '?')}, commit {environment.get('commit') or 'unknown'}",
        "Python": str(environment.get("python", "?")),
        "Packages": ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items()),
        "Device": str(environment.get("device", "?")),
        "Processor": f"{environment.get('cpu', '?')}, {environment.get('cores', '?')} cores",
        "Processes": str(environment.get("world_size", "?")),
        "Arguments": " ".join(map(str, environment.get("arguments") or [])),
        "Started": str(environment.get("started", "?")),
    }
    if record := contents.stages["record"]:
        facts["Recorded"] = f"{record['rows']} rows of the local table"
    return element(
        "div",
        element("div", element("h3", "Configuration (config.toml)"), element("pre", contents.config_text)),
        element("div", element("h3", "Environment"), _definitions(facts), _times(contents)),
        class_="two",
    )


def _times(contents: Contents) -> Content:
    stages = contents.stages
    seconds: dict[str, float] = {}
    for stage in ("search", "derive", "ensemble"):
        if stages[stage] and "seconds" in stages[stage]:
            seconds[stage] = stages[stage]["seconds"]
    if contents.trained:
        seconds["train"] = sum(model.get("seconds", 0.0) for model in contents.trained.values())
    if contents.attacked:
        runs = [attack for result in contents.attacked.values() for attack in result["attacks"]]
        seconds["attack"] = sum(attack.get("seconds", 0.0) for attack in runs)
    if contents.certified:
        seconds["certify"] = sum(
            item.get("seconds", 0.0) for results in contents.certified.values() for item in results
        )
    facts = {stage.capitalize(): _duration(seconds[stage]) for stage in STAGE_FILES if stage in seconds}
    return [element("h3", "Time", style="margin-top:1.6rem"), _definitions(facts)] if facts else None


def _definitions(facts: dict[str, str]) -> Content:
    return element("dl", [[element("dt", key), element("dd", text)] for key, text in facts.items()]) if facts else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "time not recorded"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


_SECTIONS: tuple[tuple[str, Callable[[Contents], Content]], ...] = (
    ("Results", _results),
    ("Architectures", _architectures),
    ("Search", _search),
    ("Training", _training),
    ("Accuracy over epsilon", _radii),
    ("Adversarial examples", _examples),
    ("Ensemble", _ensemble),
    ("Checks", _checks),
    ("What was and was not measured", _limits),
    ("Configuration and environment", _setup),
)
