"""The trustworthiness of the numbers: warnings, certified <= attacked <= clean, gradient masking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robust_nas.report._contents import Measurements
from robust_nas.report._elements import Content, Html, element
from robust_nas.report._page import DASH, column_head, scroll
from robust_nas.report.findings import check_consistency, failed_checks, format_threat

if TYPE_CHECKING:
    from robust_nas.records.evaluation import Check

_MOST_UPRIGHT = 7
"""The models for which a printed page takes the table upright; with more, it is a broad one."""


def warnings(contents: Measurements) -> Content:
    """Return the warnings about images and models, to stand at the top; nothing if there are none."""
    sentences = contents.notes + [
        f"{contents.title_of(model)}: {note}" for model, result in contents.attacked.items() for note in result.notes
    ]
    for model in contents.attacked:
        if failed := failed_checks(contents, model):
            verb = "checks" if failed > 1 else "check"
            sentences.append(
                f"{contents.title_of(model)}: {failed} {verb} for gradient masking failed (see Checks), so the "
                "accuracies under attack may be too high."
            )
    return [element("p", sentence, class_="missing", role="note") for sentence in sentences] or None


def checks(contents: Measurements) -> Content:
    """Return the checks of certified <= attacked <= clean, and those for gradient masking."""
    if not (contents.attacked or contents.certified):
        return None
    found, order = check_consistency(contents), "\u2264 attacked \u2264 clean"
    order = f"Certified {order}" if contents.certified else "Attacked \u2264 clean"
    text = f"{found.comparisons:,} comparisons of single images"
    text += ", and the curves" if any(result.curve for result in contents.attacked.values()) else ""
    if found.violations:
        statement: list[Content] = [
            element("p", element("strong", f"{order} is violated."), " This is a defect:"),
            element("ul", [element("li", sentence) for sentence in found.violations]),
        ]
    elif not found.comparisons:
        statement = [element("p", "There are no outcomes of single images in the folder; the order was not checked.")]
    else:
        statement = [element("p", element("strong", f"{order} holds"), f" in {text}.")]
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


def _masking(contents: Measurements) -> Content:
    attacked = contents.attacked
    results = {model: found for model in contents.models if model in attacked and (found := attacked[model].masking)}
    if not results:
        return element("p", "The checks for gradient masking were not run.", class_="note")
    rows: list[Html] = []
    for sentence in dict.fromkeys(check.check for found in results.values() for check in found):
        cells = [
            _verdict(contents, [check for check in found if check.check == sentence]) for found in results.values()
        ]
        head = element("th", sentence, scope="row", style="white-space:normal;min-width:14rem")
        rows.append(element("tr", head, cells))
    heads = [column_head("Check"), *(column_head(contents.title_of(model)) for model in results)]
    table = element(
        "table",
        element("caption", "Signs of gradient masking, where attacks fail because gradients mislead them."),
        element("thead", element("tr", heads)),
        element("tbody", rows),
        class_="broadest" if len(results) > _MOST_UPRIGHT else None,
    )
    failures, details = (
        [
            element(
                "li", f"{contents.title_of(model)} ({format_threat(check.threat)}): {check.check} {DASH} {check.detail}"
            )
            for model, found in results.items()
            for check in found
            if check.passed is passed
        ]
        for passed in (False, True)
    )
    failed = [element("p", "Failed:"), element("ul", failures)] if failures else None
    more = element("details", element("summary", "Details of passed checks"), element("ul", details, class_="note"))
    return [scroll(table, "Checks for gradient masking"), failed, more if details else None]


def _verdict(contents: Measurements, checks: Sequence[Check]) -> Html:
    """Return a cell that says whether one check passed at every threat model, and if not, where it failed."""
    if not checks:
        return element("td", DASH)
    failed = [check for check in checks if not check.passed]
    said = element("strong", "FAILED", class_="attacked") if failed else "passed"
    elsewhere = len(failed or checks) < len(contents.threats)
    where = [element("small", format_threat(check.threat)) for check in failed or checks]
    return element("td", said, where if elsewhere else None)
