"""The sentences that are drawn from a scaling study's numbers, for the page and the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from robust_nas.records.reading import SIZES, AtEqualCost, Compared, Estimate, JointLaw, Law, Reading, Stages
from robust_nas.records.scaling import CellRow, Status
from robust_nas.report.findings import enumerate_in_words, percent
from robust_nas.report.size_plots import in_short

STATUSES: dict[Status | Literal["waiting"], str] = {
    "diverged": "diverged",
    "out of memory": "ran out of memory",
    "failed": "failed",
    "waiting": "wait",
}
"""What did not finish, in words."""


def findings(reading: Reading) -> tuple[str, ...]:
    """Return the answer in sentences, the most asked first, with what these cells do not show."""
    found = [*_cells(reading)]
    if any(row.status == "finished" and row.robust for row in reading.study.cells):
        found += [
            *_best(reading),
            *_budget(reading),
            *_laws(reading),
            *_depth_and_width(reading),
            *_settings(reading),
            *_stages(reading),
        ]
    return tuple(found)


def of_setting(setting: str) -> str:
    """Return a setting as the end of a sentence; empty, if nothing varies."""
    return f" with {setting}" if setting else ""


def with_interval(found: Estimate) -> str:
    """Return an error as "38.2 % (37.0 to 39.1)"."""
    if found.low is None or found.high is None:
        return f"{percent(found.value)} %"
    return f"{percent(found.value)} % ({percent(found.low)} to {percent(found.high)})"


def points(found: Estimate) -> str:
    """Return a difference of errors in percentage points, "-3.2 points (-4.1 to -2.3)"."""
    value, *ends = (f"{100 * each:+.1f}" for each in (found.value, found.low, found.high) if each is not None)
    return (f"{value} points" + (f" ({ends[0]} to {ends[1]})" if ends else "")).replace("-", "\N{MINUS SIGN}")


def number(found: Estimate) -> str:
    """Return a coefficient as "0.41 (0.22 to 0.63)"."""
    ends = [f"{each:.2f}" for each in (found.low, found.high) if each is not None]
    return f"{found.value:.2f}" + (f" ({ends[0]} to {ends[1]})" if ends else "")


def _cells(reading: Reading) -> Iterator[str]:
    study, counts = reading.study, Counter(row.status for row in reading.study.cells)
    rows = [row for row in study.cells if row.status == "finished"]
    seeds, networks = {row.seed for row in rows}, {row.network for row in rows}
    sentence = f"{counts['finished']} of {len(study.cells)} cells finished"
    if rows:
        sentence += (
            f": {counted(len(networks), 'network')} from {counted(len(seeds), 'seed')}"
            + (f" in {counted(len(reading.settings), 'setting')}" if len(reading.settings) > 1 else "")
            + f", trained by {study.method} on {study.data} and attacked at {study.threat}"
        )
        images = sorted({row.robust.count for row in rows if row.robust})
        sentence += f", on {enumerate_in_words([f'{count:,}' for count in images])} test images" if images else ""
    yield f"{sentence}."
    if rest := [f"{counts[status]} {words}" for status, words in STATUSES.items() if counts[status]]:
        yield f"{enumerate_in_words(rest)}; such cells are in no number below."
    if collapsed := sum(row.collapsed for row in rows):
        yield (
            f"{counted(collapsed, 'training')} stopped at catastrophic overfitting, with the epoch before it kept; "
            "their numbers count as all others do."
        )
    if rows and len(seeds) == 1:
        yield "There is one seed, so that no number has an interval, and no difference is known from chance."


def _best(reading: Reading) -> Iterator[str]:
    for setting in reading.settings:
        for frontier in reading.frontiers:
            if (frontier.setting, frontier.error, frontier.over) == (setting, "robust", "parameters"):
                priced = [network for network in frontier.networks]
                if not priced:
                    continue
                best = min(priced, key=lambda network: network.error.value)
                yield (
                    f"The least robust error on test images{of_setting(setting)}, of "
                    f"{counted(len(priced), 'network')}, is {with_interval(best.error)}, of {best.network} "
                    f"({in_short(best.cost)} parameters)."
                )


def _budget(reading: Reading) -> Iterator[str]:
    """Yield the best within the budget that was asked for."""
    if len({best.budget for best in reading.within}) != 1:
        return
    budget = in_short(reading.within[0].budget)
    found = [best for best in reading.within if best.error and best.network]
    if not found:
        yield f"No network of this study trains within {budget} FLOPs."
        return
    best = min(found, key=lambda own: 1.0 if own.validation is None else own.validation)
    assert best.error is not None
    yield (
        f"Within {budget} training FLOPs validation images choose {best.network}{of_setting(best.setting)}, whose "
        f"robust error on test images is {with_interval(best.error)}."
    )
    predicted = [own for own in reading.within if own.predicted and own.parameters]
    if predicted:
        least = min(predicted, key=lambda own: own.predicted.value if own.predicted else 1.0)
        assert least.predicted is not None and least.parameters is not None
        yield (
            f"The law over training FLOPs gives {with_interval(least.predicted)} there, for a network of "
            f"{in_short(least.parameters)} parameters{of_setting(least.setting)}."
        )
    else:
        reasons = dict.fromkeys(own.refusal for own in reading.within if own.refusal)
        yield f"By a law nothing is said of that budget: {_lowered(next(iter(reasons), ''))}"


def _laws(reading: Reading) -> Iterator[str]:
    for law in reading.laws:
        if law.error == "robust" and law.over == "parameters":
            yield law_in_words(law)


def law_in_words(law: Law) -> str:
    """Return a law, or why there is none, in a sentence or two."""
    at = f" at {law.at}" if law.at else ""
    where = f"{at}{of_setting(law.setting)}"
    if law.fit is None:
        return f"No law of {law.error} error over {SIZES[law.over]}{where}: {_lowered(law.refusal or '')}"
    fit = law.fit
    sentence = (
        f"{law.error.capitalize()} error falls with {SIZES[law.over]}{where} with the exponent "
        f"{number(fit.exponent)} towards {with_interval(fit.irreducible)}."
    )
    if law.refusal:
        return f"{sentence} Nothing is said beyond the measured sizes: {_lowered(law.refusal)}"
    assert law.held_out is not None
    return (
        f"{sentence} The largest size, held out, is predicted as {with_interval(law.held_out.predicted)}, and was "
        f"measured as {with_interval(law.held_out.measured)}."
    )


def _depth_and_width(reading: Reading) -> Iterator[str]:
    pairs = [pair for pair in reading.equal_cost if (pair.error, pair.over) == ("robust", "multiply_adds")]
    if pairs:
        yield pairs_in_words(pairs)
    for law in reading.joint:
        if law.error == "robust" and law.deep_exponent:
            yield joint_in_words(law)


def pairs_in_words(pairs: Sequence[AtEqualCost]) -> str:
    """Return who wins at equal cost, over all pairs, in a sentence."""
    counts = Counter(pair.verdict for pair in pairs)
    named = [f"{counts['deeper']} for the deeper one", f"{counts['wider']} for the wider one"]
    named += [f"{counts['not decided']} not decided by these seeds"] if counts["not decided"] else []
    return (
        f"{counted(len(pairs), 'pair')} of a deeper and a wider network with about as many {SIZES[pairs[0].over]}, by "
        f"{pairs[0].error} error: {enumerate_in_words(named)}."
    )


def joint_in_words(law: JointLaw) -> str:
    """Return the law of depth and width together in a sentence or two."""
    if law.deep_exponent is None or law.wide_exponent is None or law.irreducible is None:
        return f"No law of {law.error} error over depth and width together{of_setting(law.setting)}: " + _lowered(
            law.refusal or ""
        )
    sentence = (
        f"{law.error.capitalize()} error falls with depth with the exponent {number(law.deep_exponent)}, and with "
        f"width with {number(law.wide_exponent)}, towards {with_interval(law.irreducible)}{of_setting(law.setting)}."
    )
    if law.refusal:
        return f"{sentence} {law.refusal}"
    middle = law.balances[len(law.balances) // 2]
    edge = f", where the measured {middle.at_edge}s end" if middle.at_edge else ""
    return (
        f"{sentence} At {in_short(middle.multiply_adds)} multiply-adds it is least at depth {middle.depth.value:.0f} "
        f"and width {middle.width.value:.2g}{edge}."
    )


def _settings(reading: Reading) -> Iterator[str]:
    for pair in reading.compared:
        if pair.error == "robust":
            yield compared_in_words(pair)


def compared_in_words(pair: Compared) -> str:
    """Return the difference of two settings in a sentence."""
    low, high = pair.difference.low, pair.difference.high
    told = "which these pairs do not tell from 0"
    if low is not None and high is not None and not low <= 0 <= high:
        told = f"so that {pair.second if high < 0 else pair.first} is the better one here"
    return (
        f"{pair.second} against {pair.first}: {points(pair.difference)} of {pair.error} error over {pair.num_pairs} "
        f"pairs of the same network and seed, {told}."
    )


def _stages(reading: Reading) -> Iterator[str]:
    for found in reading.stages:
        if found.error == "robust" and found.effects:
            yield stages_in_words(found)


def stages_in_words(found: Stages) -> str:
    """Return where capacity helps in a sentence."""
    if not found.effects:
        return found.refusal or ""
    best = min(found.effects, key=lambda effect: effect.effect.value)
    if best.effect.high is not None and best.effect.high >= 0:
        where = of_setting(found.setting)
        return (
            f"Twice the capacity in a stage lowers the {found.error} error in none of them by more than chance{where}."
        )
    others = [own for own in found.effects if own is not best]
    apart = best.effect.high is not None and all(
        own.effect.low is not None and own.effect.low > best.effect.high for own in others
    )
    change = f"{100 * best.effect.value:+.1f} %".replace("-", "\N{MINUS SIGN}")
    sentence = (
        f"Twice the capacity in stage {best.stage}, the others held, changes the {found.error} error the most"
        f"{of_setting(found.setting)}, by {change} of it"
    )
    return f"{sentence}, by more than the seeds' chance." if apart else f"{sentence}; the stages' intervals overlap."


def counted(count: int, noun: str) -> str:
    """Return "1 seed" or "3 seeds"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shown_accuracy(row: CellRow, kind: str) -> str | None:
    """Return a cell's accuracy in percent; None if it was not measured."""
    measured = row.robust if kind == "robust" else row.clean
    return percent(measured.accuracy) if measured else None


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
