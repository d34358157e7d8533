"""The page of a stand-alone attack: `write_attack_report(folder)` writes `report.html`, from the files there only."""

from __future__ import annotations

from pathlib import Path

from robust_nas.core.writing import write_text
from robust_nas.report._checks import checks, warnings
from robust_nas.report._contents import AttackContents, format_attack
from robust_nas.report._elements import Content, Html, element
from robust_nas.report._page import attack_seconds, environment_facts, explained, facts_line, frame, setup, unbroken
from robust_nas.report._pictures import confusion, examples, over_epsilon, over_steps
from robust_nas.report._results import distances, results
from robust_nas.report.findings import (
    about_attacks,
    enumerate_in_words,
    format_threat,
    percent,
    threats_in_words,
    with_interval,
)


def write_attack_report(folder: Path) -> Path:
    """Write `report.html` into a folder made by `robust-nas attack MODEL ...` and return its path.

    Raises:
        InputError: if it is not such a folder, or one of its files is missing or damaged.
    """
    path = folder / "report.html"
    write_text(path, page(AttackContents.read(folder)))
    return path


def page(contents: AttackContents) -> Html:
    """Return the whole page."""
    facts, seconds = environment_facts(contents.environment), {"attack": attack_seconds(contents)}
    sections = (
        ("Results", results(contents)),
        ("Accuracy over epsilon", over_epsilon(contents)),
        ("Accuracy over steps", over_steps(contents)),
        ("Smallest distortions", distances(contents)),
        ("Confusion under attack", confusion(contents)),
        ("Adversarial examples", examples(contents)),
        ("Checks", checks(contents)),
        ("What was and was not measured", explained(_limits(contents))),
        ("Configuration and environment", setup(contents, "attack.toml", facts, seconds)),
    )
    return frame(contents, _header(contents), sections)


def _header(contents: AttackContents) -> Html:
    threats = ", ".join(format_threat(threat) for threat in contents.threats)
    return element(
        "header",
        element("h1", f"Accuracy under attack on {contents.data}"),
        facts_line(contents, threats, f"seed {contents.seed}"),
        [element("p", _lead(contents, model), class_="lead") for model in contents.attacked],
        element("p", _attacks_in_words(contents), class_="note"),
        warnings(contents),
    )


def _lead(contents: AttackContents, model: str) -> Content:
    """Return a model's pointwise worst case in a sentence, with the attacks in it."""
    result, worst = contents.attacked[model], contents.attacked[model].worst_case
    number = element("strong", unbroken(f"{percent(worst.accuracy)} %"))
    sentence = f" ({percent(worst.low)} to {percent(worst.high)}) of {worst.count} {contents.split} images "
    if worst.threat is None:
        each = [
            f"{with_interval(item)} those at {format_threat(threat)}"
            for threat in contents.threats
            if (item := contents.worst_case_of(model, threat))
        ]
        number_of = "both" if len(each) == 2 else f"all {len(each)}"
        sentence += f"withstand every attack of {number_of} threat models; {', '.join(each)}"
        sentence += "." if result.average is None else f"; {percent(result.average)} % on average."
    else:
        sentence += f"withstand every attack at {format_threat(worst.threat)}."
    return [f"{model}: ", number, unbroken(f"{sentence} Clean: {with_interval(result.clean)}.")]


def _attacks_in_words(contents: AttackContents) -> str:
    runs = {tuple(dict.fromkeys(item.name for item in result.attacks)) for result in contents.attacked.values()}
    if len(runs) == 1:
        named = f"The attacks are {enumerate_in_words([format_attack(name) for name in runs.pop()])}."
    else:
        named = "Not every model met the same attacks: see the table."
    return (
        f"{named} An image counts only if it withstands each of them (the pointwise worst case). In brackets, 95 % "
        "Wilson intervals."
    )


def _limits(contents: AttackContents) -> list[tuple[str, str]]:
    """Return the limits of the measurements, as (subject, a sentence or two)."""
    return [
        *about_attacks(contents),
        (
            "Models",
            "The models were attacked as they were given. Their training and selection are not known here: if "
            f"these used {contents.split} images, all accuracies are optimistic.",
        ),
        (
            "Seeds",
            f"The attacks were run with one seed ({contents.seed}). The intervals are about the sample of images only.",
        ),
        (
            "Scope",
            f"One data set ({contents.data}) and {threats_in_words(contents.threats)}. Nothing was certified; other "
            "norms, corruptions and shifts of the data were not measured.",
        ),
    ]
