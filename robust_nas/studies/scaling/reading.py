"""The reading of a scaling study: what its cells tell, as text, as facts and as one page.

    answer = reading.report(Path("runs/scale-1a2b3c4d"))      # its text, facts and page
    found = reading.read(study)                               # of a StudyRecord: laws, frontiers, comparisons

The parts are `laws`, `frontier` and `comparisons`, over the errors that `measured` has with what chance does to them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from robust_nas import records
from robust_nas.core.checks import check_type
from robust_nas.core.errors import InputError
from robust_nas.core.text import aligned
from robust_nas.records import plain
from robust_nas.records.reading import Kind, Reading
from robust_nas.records.scaling import StudyRecord
from robust_nas.report.scaling_findings import findings, with_interval
from robust_nas.report.scaling_page import write_scaling_report
from robust_nas.report.size_plots import in_short
from robust_nas.studies.scaling.comparisons import compared, stages
from robust_nas.studies.scaling.frontier import COSTS, at_equal_cost, budgets, frontier, within
from robust_nas.studies.scaling.laws import joint, laws
from robust_nas.studies.scaling.measured import Sample, samples
from robust_nas.studies.scaling.published import PUBLISHED

_LINE = 118


class Answer(NamedTuple):
    """The answer of a study's folder.

    Args:
        text: for the terminal.
        facts: the same as data; fractions for errors and accuracies.
        page: the path of the page.
    """

    text: str
    facts: dict[str, Any]
    page: Path


def report(folder: Path, budget: float | None = None) -> Answer:
    """Read a study's folder, write `scaling.html` into it, and return the answer.

    Args:
        folder: of the study.
        budget: training FLOPs to find the best network for; three inside the measured ones, if not given.

    Raises:
        InputError: if it is no study's folder, or the budget is no number above 0.
    """
    from robust_nas.studies.scaling import results  # brings what builds networks, which a record does not need

    given = f" --budget {budget:g}" if budget is not None else ""
    study = results.read(folder)
    records.write(folder / "scaling.json", study)
    found = read(study, budget, command=f"robust-nas scale report {folder}{given}")
    page = write_scaling_report(found, folder / "scaling.html")
    return Answer(f"{text(found)}\n\npage: {page}", {**plain(found), "page": str(page)}, page)


def read(study: StudyRecord, budget: float | None = None, *, command: str = "") -> Reading:
    """Return what a study's cells tell.

    Args:
        study: its cells.
        budget: training FLOPs to find the best network for; three inside the measured ones, if not given.
        command: what makes this, for the page.

    Raises:
        InputError: for a budget that is no number above 0.
    """
    if budget is not None:
        check_type("The budget", budget, (int, float), "a number of training FLOPs, such as 1e15")
        if not 0 < budget < float("inf"):
            raise InputError(
                f"The budget must be a number of training FLOPs above 0, such as 1e15, but got {budget:g}."
            )
    kinds: tuple[Kind, ...] = get_args(Kind)
    every: dict[Kind, list[Sample]] = {kind: samples(study, kind) for kind in kinds}
    both = [sample for kind in kinds for sample in every[kind] if sample.networks]
    robust = [sample for sample in every["robust"] if sample.networks]
    wanted = budgets(robust) if budget is None else [float(budget)]
    fitted = [own for sample in both for own in laws(sample)]
    over_training = {
        own.setting: own for own in fitted if (own.error, own.over, own.at) == ("robust", "training_flops", None)
    }
    found = Reading(
        study=study,
        command=command,
        settings=tuple(sample.setting for sample in every["robust"]),
        laws=tuple(fitted),
        joint=tuple(joint(sample) for sample in both),
        frontiers=tuple(frontier(sample, over) for sample in both for over in COSTS),
        equal_cost=tuple(pair for sample in both for over in COSTS[:2] for pair in at_equal_cost(sample, over)),
        stages=tuple(stages(sample) for sample in both),
        within=tuple(within(sample, over_training[sample.setting], each) for sample in robust for each in wanted),
        compared=tuple(own for kind in kinds for own in compared(every[kind])),
        published=PUBLISHED,
    )
    return replace(found, findings=findings(found))


def text(reading: Reading) -> str:
    """Return a reading as text for the terminal: the networks of each setting, and the sentences."""
    import textwrap

    study = reading.study
    lines = [f"scaling study {study.name}: {study.method} on {study.data}, {study.threat}"]
    lines.append("errors are means over seeds, in brackets their 95 % intervals over seeds")
    for setting in reading.settings:
        priced = {
            frontier.error: frontier.networks
            for frontier in reading.frontiers
            if frontier.setting == setting and frontier.over == "parameters"
        }
        if not priced:
            continue
        clean = {network.network: network.error for network in priced.get("clean", ())}
        rows = [["network", "parameters", "seeds", "clean error", "robust error", ""]]
        for network in priced.get("robust", ()):
            own = clean.get(network.network)
            rows.append(
                [
                    network.network,
                    in_short(network.cost),
                    str(network.num_seeds),
                    with_interval(own) if own else "-",
                    with_interval(network.error),
                    "on the front" if network.on_front else "",
                ]
            )
        lines += ["", *([setting] if setting else []), *aligned(rows, left=1)]
    if any(best.network for best in reading.within):
        lines += ["", "The best within a budget of training FLOPs:", *aligned(_budget_rows(reading), left=1)]
    lines.append("")
    for sentence in reading.findings:
        lines += textwrap.wrap(sentence, _LINE, subsequent_indent="  ")
    return "\n".join(lines)


def _budget_rows(reading: Reading) -> list[list[str]]:
    rows = [["budget", "setting", "network", "robust error", "by the law", "with parameters"]]
    if len(reading.settings) == 1:
        rows[0].remove("setting")
    for best in reading.within:
        row = [
            f"{best.budget:.3g}",
            *([best.setting] if len(reading.settings) > 1 else []),
            best.network or "-",
            with_interval(best.error) if best.error else "-",
            with_interval(best.predicted) if best.predicted else "-",
            in_short(best.parameters) if best.parameters else "-",
        ]
        rows.append(row)
    return rows
