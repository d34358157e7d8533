"""The page of a run: `write_report(run)` writes `report.html`, from the files in the run folder only.

The page loads nothing, runs nothing and is the same for the same files. A stage that has not run is named, and its
section is left out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robust_nas import spaces
from robust_nas.architectures.cell import Architecture
from robust_nas.architectures.genotype import Genotype
from robust_nas.architectures.model_name import ModelArchitecture
from robust_nas.core.figures import CURVES
from robust_nas.core.palette import variable
from robust_nas.core.pixels import format_pixels
from robust_nas.core.writing import write_text
from robust_nas.report import plots
from robust_nas.report._checks import checks, warnings
from robust_nas.report._contents import Contents, format_attack
from robust_nas.report._elements import Content, Html, element
from robust_nas.report._page import (
    DASH,
    EPSILON,
    attack_seconds,
    column_head,
    definitions,
    duration,
    environment_facts,
    explained,
    facts_line,
    frame,
    scroll,
    setup,
    unbroken,
)
from robust_nas.report._pictures import confusion, examples, over_epsilon, over_steps
from robust_nas.report._results import distances, results
from robust_nas.report._size import over_size
from robust_nas.report._smoothed import smoothed
from robust_nas.report.drawing import draw
from robust_nas.report.findings import Difference, compare_ensemble, enumerate_in_words, limits, percent, summary
from robust_nas.runtime.run_folder import RunFolder, unfinished_stages
from robust_nas.searches import SearchResult

if TYPE_CHECKING:
    from robust_nas.records import SearchRecord
    from robust_nas.records.search import Elastic, Row
    from robust_nas.records.training import Trained


def write_report(run: RunFolder) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises:
        InputError: if one of the run's files is damaged.
    """
    path = run / "report.html"
    write_text(path, page(Contents.read(run)))
    return path


def page(contents: Contents) -> Html:
    """Return the whole page."""
    method = contents.certification.method if contents.certification else None
    sections = (
        ("Results", results(contents, method)),
        ("Accuracy over size", over_size(contents)),
        ("Architectures", _architectures(contents)),
        ("Search", _search(contents)),
        ("Training", _training(contents)),
        ("Accuracy over epsilon", over_epsilon(contents)),
        ("Accuracy over steps", over_steps(contents)),
        ("Smallest distortions", distances(contents)),
        ("Confusion under attack", confusion(contents)),
        ("Adversarial examples", examples(contents)),
        ("Ensemble", _ensemble(contents)),
        ("Smoothed classifiers", smoothed(contents)),
        ("Checks", checks(contents)),
        ("What was and was not measured", explained(limits(contents))),
        ("Configuration and environment", _setup(contents)),
    )
    return frame(contents, _header(contents), sections)


def _header(contents: Contents) -> Html:
    missing = [stage for stage in unfinished_stages(contents.path) if stage not in ("record", "report")]
    note = f"This report is partial. Not yet run: {enumerate_in_words(missing)}." if missing else None
    facts = (f"{contents.norm}, {EPSILON} = {format_pixels(contents.epsilon)}", f"seed {contents.seed}")
    return element(
        "header",
        element("h1", f"Robust architectures on {contents.settings.data.name}"),
        facts_line(contents, *facts),
        [element("p", unbroken(sentence), class_="lead") for sentence in summary(contents)],
        element("p", note, class_="missing", role="note") if note else None,
        warnings(contents),
    )


# Results -------------------------------------------------------------------------------------------------------------


def _architectures(contents: Contents) -> Content:
    chosen = {name: model.architecture for name, model in contents.trained.items()}
    if not chosen and contents.derivation:
        chosen = {f"model-{index}": text for index, text in enumerate(contents.derivation.chosen)}
    if not chosen:
        return None
    cards = [_architecture_card(contents, name, text) for name, text in chosen.items()]
    drawn = any(isinstance(contents.parse(text), Architecture | Genotype) for text in chosen.values())
    note = (
        "A node is the sum of its incoming edges. Dotted lines are edges without an operation (none); grey ones carry "
        "nothing from the input to the output. A cell of a genotype begins with the outputs of the two cells before, "
        "and its output is all of its other nodes, joined."
    )
    head = element("p", note, class_="note") if drawn else None
    return [head, element("div", cards, _candidates(contents), _as_python(contents), class_="grid broad")]


def _architecture_card(contents: Contents, name: str, text: str) -> Html:
    model, parsed, short = contents.trained.get(name), contents.parse(text), contents.short(text)
    parts = {} if parsed is None else parsed.parts
    facts = {"SE" if key == "se" else key.capitalize(): value for key, value in parts.items()}
    if model is not None:
        facts |= _facts_of(model)
    drawing = None if parsed is None else draw(parsed, contents.operations, f"cell-{name}")
    return element(
        "figure",
        element("h3", name, " ", element("small", short) if short != text else None),
        drawing,
        element(
            "figcaption",
            element(
                "code", [[part, element("wbr")] for part in re.findall(r"[^|),]*\|\+?|[^|),]*[),]+ ?|[^|),]+", text)]
            ),
        ),
        definitions(facts),
    )


def _as_python(contents: Contents) -> Content:
    """Say how to use the networks without this package; nothing of architectures of others' kinds.

    A model of one's own is code already, and an export writes all networks or none.
    """
    parsed = {name: contents.parse(model.architecture) for name, model in contents.trained.items()}
    name = next((name for name, architecture in parsed.items() if architecture), None)
    if name is None or any(isinstance(architecture, ModelArchitecture) for architecture in parsed.values()):
        return None
    module = name.replace("-", "_")
    command = f"robust-nas export runs/{shlex.quote(contents.path.resolve().name)} --python"
    lines = (
        "import torch",
        f"from {module} import Network",
        "network = Network().eval()",
        f'weights = torch.load("{module}.pt", weights_only=True)',
        "network.load_state_dict(weights)",
    )
    return element(
        "div",
        element("h3", "In plain torch"),
        element(
            "p",
            element("code", command),
            " writes each network as one readable file, which needs torch alone:",
            class_="note",
        ),
        element("pre", "\n".join(lines)),
    )


def _facts_of(model: Trained) -> dict[str, str]:
    return {
        **({} if model.from_ is None else {"From": model.from_}),
        "Parameters": f"{model.parameters:,}",
        "Multiply-adds": f"{model.multiply_adds:,}",
        "Training": f"{model.epochs} epochs of {model.method}, {duration(model.seconds)}",
        "Validation": _accuracies(model.validation),
    }


def _candidates(contents: Contents) -> Content:
    # A run of a given architecture chose from nothing.
    if contents.derivation is None or not contents.derivation.candidates or contents.settings.search.name == "given":
        return None
    candidates = contents.derivation.candidates
    columns = {
        "clean": [candidate.validation_clean for candidate in candidates],
        "robust": [candidate.validation_robust for candidate in candidates],
        "certified": [candidate.validation_certified for candidate in candidates],
    }
    # Certified accuracy is there where candidates are ranked by it.
    kinds = [kind for kind, values in columns.items() if any(value is not None for value in values)]
    kinds = kinds or ["clean", "robust"]
    shown = [columns[kind] for kind in kinds]
    # Where the choice looked at it: the mean transfer rate with the chosen ones.
    has_transfer = any(candidate.transfer is not None for candidate in candidates)
    if has_transfer:
        shown.append([candidate.transfer_rate for candidate in candidates])
    rows = [
        element(
            "tr",
            element("th", str(candidate.rank or DASH), scope="row"),
            element("td", element("code", contents.short(candidate.architecture)), class_="left"),
            element("td", f"{candidate.log_posterior:.2f}".replace("-", "\N{MINUS SIGN}")),
            [element("td", DASH if value is None else percent(value)) for value in values],
        )
        for candidate, *values in zip(candidates, *shown, strict=True)
    ]
    heads = ["Rank", "Architecture", "Log posterior", *(f"{kind.capitalize()}, %" for kind in kinds)]
    caption = (
        "The candidates, in the order of what the search has measured or believes. Those with a rank were trained."
        if all(value is None for value in columns["clean"])
        else "The candidates: the most probable architectures that compute different functions, then by "
        f"{kinds[-1]} accuracy with the supernet's weights on {contents.derivation.num_validation} validation images. "
        "Inherited weights do not predict the accuracy after training. Those with a rank were trained."
    )
    if has_transfer:
        heads.append("Transfer, %")
        caption += (
            " Transfer is the mean share of adversarial examples that a candidate and the other chosen ones have in "
            "common, the less the better for an ensemble."
        )
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", [column_head(text, left=text in ("Rank", "Architecture")) for text in heads])),
        element("tbody", rows),
    )
    return element("div", element("h3", "Derivation"), scroll(table, "Derivation"))


_BREAKS = re.compile(r"[^|,]*(?:\|\+?|, )|[^|,]+")
"""The parts of an architecture's string between which a line may end."""

CELLS_OVER_TIME = 12
"""Cells that the search's part of the report draws at most."""


def _search(contents: Contents) -> Content:
    search = contents.search
    if search is not None and search.elastic is not None:
        return _elastic(search, search.elastic)
    if search is None or not search.trajectory:
        return None
    trajectory, end, operations = search.trajectory, search.end, search.operations or ()
    # Of Dirichlet searches, what their distributions are; of others, the mixture itself.
    kind = "mixture" if end.concentration is None else "concentration"
    epochs = [row.epoch for row in trajectory]
    figures = []
    for index, edge in enumerate(search.edge_names or ()):
        moved = [row.shown[index] for row in trajectory]
        final = end.shown[index]
        winner = max(range(len(operations)), key=lambda place: final[place])
        share = final[winner] / sum(final)
        caption = f"ends at {operations[winner]} with {percent(share)} % of the mean mixture"
        name = f"{kind.capitalize()} on edge {edge.replace('-', ' to ')} over {epochs[-1]} epochs: {caption}."
        figure = plots.concentration_plot(epochs, moved, operations, winner, f"edge-{index}", name)
        arrow = edge.replace("-", " \N{RIGHTWARDS ARROW} ")
        head = element("h3", f"Edge {arrow} ", element("small", f"{operations[winner]}, {percent(share)} %"))
        figures.append(element("figure", head, figure))
    entropies = [row.entropy for row in trajectory]
    name = f"Entropy of the mean mixture: from {entropies[0]:.2f} to {end.entropy:.2f} nats."
    head = element("h3", "Entropy ", element("small", "nats, mean over edges"))
    figures.append(element("figure", head, plots.entropy_plot(epochs, entropies, "entropy", name)))
    accuracies = {name: [row.validation.get(name) for row in trajectory] for name in end.validation}
    name = f"Supernet on validation images, at the end: {_accuracies(end.validation)}."
    head = element("h3", "Supernet ", element("small", "validation accuracy"))
    figure = plots.curve_plot(epochs, accuracies, "supernet", name)
    figures.append(element("figure", head, figure, _curve_legend(accuracies)))
    return [
        element("p", _about_search(search), class_="note"),
        _operation_legend(operations),
        element("div", figures, class_="grid"),
        _cells_over_time(contents, search),
    ]


def _elastic(search: SearchRecord, course: Elastic) -> Content:
    """Show the training of an elastic supernet: the accuracies of its largest and smallest network."""
    epochs, figures, legend = [row.epoch for row in course.epochs], [], None
    for role, architecture in {"largest": course.largest, "smallest": course.smallest}.items():
        rows: list[dict[str, float]] = [getattr(row, role) for row in course.epochs]
        accuracies = {name: [row.get(name) for row in rows] for name in rows[-1]}
        name = f"The {role} network on validation images, at the end: {_accuracies(rows[-1])}."
        head = element("h3", f"{role.capitalize()} network ", element("small", architecture))
        figures.append(element("figure", head, plots.curve_plot(epochs, accuracies, f"elastic-{role}", name)))
        legend = _curve_legend(accuracies)
    note = (
        f"Networks of all depths and widths with shared weights, over {epochs[-1]} epochs, and "
        f"{len(search.measured or ())} of them measured with these weights ({duration(search.seconds)} in all). The "
        "curves are accuracies of the largest and the smallest one on validation images, with the shared weights."
    )
    return [element("p", note, class_="note"), element("div", figures, class_="grid"), legend]


def _about_search(search: SearchRecord) -> list[str]:
    shown = "Mean weights" if search.end.concentration is None else "Dirichlet concentrations"
    note = [
        f"{shown} of the operations on each edge, over {search.trajectory[-1].epoch} epochs of search"
        f" ({duration(search.seconds)} until now). The operation that ends highest is drawn thicker."
    ]
    if search.search.objective is not None:
        note.append(f" Both levels minimise the loss of {search.search.objective.name}.")
    for collapse in search.collapses:
        back = f"epoch {collapse.back_to}, to which it went back"
        note.append(f" The search collapsed in epoch {collapse.epoch} ({collapse.reason}), after {back}.")
    if search.hold_sample is not None:
        held = "held fixed" if search.hold_sample else "drawn again"
        note.append(f" The mixture was {held} between crafting an adversarial example and its loss.")
    return [*note, " Validation is at the mean mixture, where nothing is drawn."]


def _cells_over_time(contents: Contents, search: SearchRecord) -> Content:
    """Draw the most probable architecture at every epoch in which it changed."""
    spans: list[tuple[Architecture | Genotype, int, int, float | None]] = []
    for row in search.trajectory:
        cell = _most_probable(contents, search, row.shown)
        if cell is None:
            return None
        if spans and spans[-1][0] == cell:
            spans[-1] = (cell, spans[-1][1], row.epoch, row.seconds)
        else:
            spans.append((cell, row.epoch, row.epoch, row.seconds))
    figures = []
    for index, (cell, first, last, seconds) in enumerate(spans[-CELLS_OVER_TIME:]):
        when = f"epoch {first}" if first == last else f"epochs {first} to {last}"
        after = "" if seconds is None else f", {duration(seconds)}"
        short = cell.digits(contents.operations) if isinstance(cell, Architecture) else "Genotype"
        drawing = draw(cell, contents.operations, f"then-{index}")
        figures.append(element("figure", element("h3", short, " ", element("small", f"{when}{after}")), drawing))
    skipped = len(spans) - len(figures)
    text = "The most probable operations, epoch by epoch, wherever they changed" + (
        f": the last {len(figures)}, {skipped} earlier ones left out." if skipped else "."
    )
    return [
        element("h3", "The derived cell over time"),
        element("p", text, class_="note"),
        element("div", figures, class_="grid"),
    ]


def _most_probable(contents: Contents, search: SearchRecord, weights: Sequence[Row]) -> Architecture | Genotype | None:
    """Return the architecture that a mixture, or weights in proportion to one, gives; None where digits fail."""
    if search.space["kind"] != "cell":
        rows = [[value / sum(row) for value in row] for row in weights]
        best = SearchResult(spaces.described(search.space), rows, None, {}).best
        return best if isinstance(best, Architecture | Genotype) else None
    if len(contents.operations) > 10:
        return None
    digits = "".join(str(max(range(len(row)), key=row.__getitem__)) for row in weights)
    return Architecture.parse(digits, contents.operations)


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
            stroke=variable(colours[operation]),
            stroke_width="2.5",
            stroke_dasharray=pattern,
        )
        items.append(element("li", element("svg", line, viewBox="0 0 30 12", aria_hidden="true"), operation))
    return element("ul", items, class_="legend")


def _accuracies(found: Mapping[str, float]) -> str:
    """Return accuracies on validation images in words."""
    return ", ".join(f"{kind} {percent(accuracy)} %" for kind, accuracy in found.items())


def _curve_legend(kinds: Iterable[str]) -> Html:
    lines = []
    for kind in kinds:
        text, colour, pattern, _ = CURVES[kind]
        line = element(
            "line",
            x1="0",
            y1="6",
            x2="30",
            y2="6",
            stroke=variable(colour),
            stroke_width="2.5",
            stroke_dasharray=pattern or None,
        )
        lines.append(element("li", element("svg", line, viewBox="0 0 30 12", aria_hidden="true"), text))
    return element("ul", lines, class_="legend")


def _training(contents: Contents) -> Content:
    figures, kinds = [], ["clean", "robust"]
    for index, (name, model) in enumerate(contents.trained.items()):
        rows = [row for row in contents.metrics if row["stage"] == f"train-{index}"]
        # A joined run has not trained it.
        if not rows or model.kept is None or model.best is None or model.last is None:
            continue
        epochs = [row["step"] for row in rows]
        if "validation_certified" in rows[-1]:
            kinds = ["clean", "robust", "certified"]
        accuracies = {kind: [row.get(f"validation_{kind}") for row in rows] for kind in kinds}
        last = model.kept == "last"
        kept_epoch = model.last_epoch if last else model.best_epoch
        other, other_name = (model.best, f"best epoch {model.best_epoch}") if last else (model.last, "last epoch")
        others = ", ".join(f"{percent(accuracy)} %" for accuracy in other.values())
        text = f"kept epoch {kept_epoch}: {_accuracies(model.validation)}; {other_name}: {others}"
        if model.collapsed:
            text += "; stopped there, as the robust accuracy had fallen"
        figure = plots.curve_plot(epochs, accuracies, f"training-{index}", f"Training of {name}: {text}.", kept_epoch)
        figures.append(
            element(
                "figure",
                element("h3", name),
                figure,
                element("figcaption", text.capitalize() + ".", _both_epochs(contents, name)),
            )
        )
    if not figures:
        return None
    note = (
        "Accuracy on validation images after each epoch. The weights of the epoch with the best robust accuracy, or of "
        "the best certified one where the training minimises bounds, are kept (those of the last one, where the recipe "
        "says so); everything else on this page is measured with them."
    )
    return [element("p", note, class_="note"), _curve_legend(kinds), element("div", figures, class_="grid")]


def _both_epochs(contents: Contents, name: str) -> str | None:
    """Return both epochs' accuracy under the strongest attack on the epoch that is not kept, on test images."""
    other = contents.evaluation.other_epochs.get(name) if contents.evaluation else None
    if other is None or name not in contents.attacked:
        return None
    strongest = min(other.attacks, key=lambda item: item.accuracy)
    clean = contents.attacked[name].clean
    kept = contents.attack_on(name, (strongest.name, strongest.norm, strongest.epsilon))
    if kept is None:
        return None
    return (
        f" On {strongest.count} test images, under {format_attack(strongest.name)}: the kept epoch "
        f"{percent(kept.accuracy)} % (clean {percent(clean.accuracy)} %), the {other.epoch} epoch "
        f"{percent(strongest.accuracy)} % (clean {percent(other.clean.accuracy)} %)."
    )


def _ensemble(contents: Contents) -> Content:
    ensemble = contents.ensemble
    if ensemble is None:
        return None
    rows = []
    for member, weight, scale in zip(ensemble.members, ensemble.weights, ensemble.scales, strict=True):
        best = " (best single network by validation)" if member == ensemble.best_single else None
        head = element("th", member, element("small", contents.digits_of(member), best), scope="row")
        cells = [element("td", f"{weight:.3f}"), element("td", f"{scale:.4g}")]
        bar = element("span", class_="bar", style=f"width:{100 * weight / max(ensemble.weights):.1f}%")
        rows.append(element("tr", head, cells, element("td", bar, class_="bars", aria_hidden="true")))
    facts = (
        f"Weights fitted on the certified margins of {ensemble.num_validation} validation images at radius "
        f"{format_pixels(ensemble.epsilon)}; objective {ensemble.objective:.6g}, against "
        f"{ensemble.uniform_objective:.6g} of equal weights"
    )
    table = element(
        "table",
        element("caption", f"{facts}. Each network's logits are divided by its scale before they are weighted."),
        element("thead", element("tr", [column_head(text) for text in ("Network", "Weight", "Scale", "")])),
        element("tbody", rows),
    )
    weights = scroll(table, "The ensemble's weights")
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
    heads = [column_head("Ensemble, in points"), *(column_head(f"over {name}") for name in compared)]
    caption = (
        "The gain of the ensemble. An asterisk marks a difference whose two 95 % intervals do not overlap; the others "
        "may be chance. Worst cases are left out: they may be over different attacks."
    )
    table = element(
        "table", element("caption", caption), element("thead", element("tr", heads)), element("tbody", rows)
    )
    return scroll(table, "The ensemble compared")


def _points(item: Difference | None) -> str:
    if item is None:
        return DASH
    text = "0.0" if abs(item.points) < 0.05 else f"{item.points:+.1f}".replace("-", "\N{MINUS SIGN}")
    return f"{text}*" if item.apart else text


# Sources -------------------------------------------------------------------------------------------------------------


def _setup(contents: Contents) -> Html:
    facts = environment_facts(contents.environment)
    if contents.recorded:
        facts["Recorded"] = f"{contents.recorded.rows} rows of the local table"
    return setup(contents, "config.toml", facts, _seconds(contents))


def _seconds(contents: Contents) -> dict[str, float]:
    """Return the duration of each stage, as far as the files say."""
    proofs = [item.seconds for items in contents.certified.values() for item in items]
    seconds = {
        "search": contents.search.seconds if contents.search else None,
        "derive": contents.derivation.seconds if contents.derivation else None,
        "train": sum(model.seconds for model in contents.trained.values()) if contents.trained else None,
        "attack": attack_seconds(contents) if contents.attacked else None,
        "certify": sum(proofs) if contents.certified else None,
        "ensemble": contents.ensemble.seconds if contents.ensemble else None,
    }
    return {stage: value for stage, value in seconds.items() if value is not None}
